"""Labelled windows of folders and CSVs; what devices sent is tested against a real broker in tests/integration."""

import numpy as np
import pytest
import soundfile

from runtime_edge.errors import FormatError, SourceError, SscError, UsageError
from runtime_edge.formats import subjects
from runtime_edge.formats.wire import encode_frame
from runtime_edge.inference.cut_assets.early_exit import LoadedExit
from runtime_edge.inference.engine import Engine
from runtime_edge.inference.prefix import Prefix
from runtime_server.labels.labelled import (
    LabelledClip,
    LabelledEvent,
    is_events,
    of_clips,
    of_events,
    read_clips,
    read_events,
    windows_of,
)

RATE, WINDOW, HOP = 4000, 1024, 512


def write(path, seconds=1.0, level=0.3, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).normal(scale=level, size=int(seconds * RATE)).clip(-1, 1)
    soundfile.write(path, noise, RATE)
    return path


def csv_file(tmp_path, text):
    path = tmp_path / "labels.csv"
    path.write_text(text)
    return path


def test_a_folder_gives_a_label_for_each_subfolder(tmp_path):
    for name in ("dog/a.wav", "dog/deeper/b.flac", "rain/c.wav"):
        write(tmp_path / name)
    (tmp_path / "rain" / "notes.txt").write_text("no recording")
    (tmp_path / "readme.md").write_text("no label")
    found = [(clip.path.name, clip.labels) for clip in read_clips(tmp_path)]
    assert found == [("a.wav", ("dog",)), ("b.flac", ("dog",)), ("c.wav", ("rain",))]
    with pytest.raises(UsageError, match="one subfolder for each label"):
        read_clips(tmp_path / "dog" / "deeper")


def test_recordings_beside_the_subfolders_are_said_to_have_no_label(tmp_path, caplog):
    for name in ("dog/a.wav", "b.wav", "c.WAV", ".d.wav"):
        write(tmp_path / name)
    assert [clip.path.name for clip in read_clips(tmp_path)] == ["a.wav"]
    assert "2 recordings are in no subfolder, so without a label: left out" in caplog.text


def test_a_csv_gives_files_labels_and_folds_in_esc_50s_words_too(tmp_path):
    plain = csv_file(tmp_path, "file,label\na.wav,dog\nb.wav,rain\na.wav,rain\n")
    assert not is_events(plain)
    assert read_clips(plain) == [
        LabelledClip(tmp_path / "a.wav", ("dog", "rain")),
        LabelledClip(tmp_path / "b.wav", ("rain",)),
    ]
    esc = csv_file(tmp_path, "\ufefffilename,fold,target,category\n1-a.wav,1,0,dog\n2-b.wav,2,10,rain\n")
    assert read_clips(esc) == [
        LabelledClip(tmp_path / "1-a.wav", ("dog",), 1),
        LabelledClip(tmp_path / "2-b.wav", ("rain",), 2),
    ]


def test_a_csv_of_events_reads_seconds_and_iso_times(tmp_path):
    path = csv_file(
        tmp_path,
        "device,time,seconds,label\npi-1,1795255200.5,2,dog\npi-2,2026-11-21T10:00:00Z,,rain\n"
        "pi-2,2026-11-21T11:00:00+01:00,0,rain\npi-3,1711211200,,dog\n",
    )
    assert is_events(path)
    noon = 1795255200.0
    assert read_events(path) == [
        LabelledEvent("pi-1", noon + 0.5, noon + 2.5, "dog"),
        LabelledEvent("pi-2", noon, noon, "rain"),
        LabelledEvent("pi-2", noon, noon, "rain"),
        LabelledEvent("pi-3", 1711211200.0, 1711211200.0, "dog"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no lines"),
        ("device,time,label\n", "no lines"),
        ("file,colour\na.wav,red\n", "line 2: no column 'label'"),
        ("file,label\na.wav,\n", "line 2: label is empty"),
        ("file,label\na.wav,dog\n,dog\n", "line 3: file is empty"),
        ("file,label,fold\na.wav,dog,one\n", "line 2: fold: 'one' is not a number"),
        ("file,label,fold\na.wav,dog,1\na.wav,rain,2\n", "line 3: a.wav appears in two folds"),
        ("device,time,label\npi-1,yesterday,dog\n", "line 2: time 'yesterday': expected seconds"),
        ("device,time,label\npi-1,nan,dog\n", "line 2: time 'nan'"),
        ("device,time,label\npi-1,2026-11-28 20:47:00,dog\n", "line 2: time .* has no zone: end it with Z"),
        ("device,time,label\nPi 1,5,dog\n", "line 2: device 'Pi 1'"),
        ("device,label\npi-1,dog\n", "line 2: no column 'time'"),
        ("device,time,seconds,label\npi-1,5,long,dog\n", "line 2: seconds: 'long' is not a number"),
        ("device,time,label\n\npi-1,5,dog\n\npi-1,nan,dog\n", "line 5: time 'nan'"),
        ("file,label\r\na.wav,dog\r\n\r\na.wav,\r\n", "line 4: label is empty"),
        ('file,label\na.wav,"dog\nand cat"\nb.wav,\n', "line 4: label is empty"),
        ('file,label,fold\na.wav,"dog\nand cat",one\n', "line 2: fold: 'one' is not a number"),
    ],
)
def test_what_is_wrong_is_named_by_file_and_line(tmp_path, text, message):
    path = csv_file(tmp_path, text)
    with pytest.raises(SscError, match=message) as caught:
        (read_events if is_events(path) else read_clips)(path)
    assert "labels.csv" in str(caught.value)


def test_what_is_no_text_or_not_there_is_refused(tmp_path):
    path = tmp_path / "labels.csv"
    with pytest.raises(UsageError, match="no such folder or CSV"):
        is_events(path)
    path.write_bytes(b"file,label\n\xff\xfe,dog\n")
    with pytest.raises(FormatError, match="not UTF-8"):
        is_events(path)


def test_every_window_of_a_clip_is_embedded_as_a_device_would(small_bundle, tmp_path):
    clips = [
        LabelledClip(write(tmp_path / "a.wav", seed=1), ("dog",)),
        LabelledClip(write(tmp_path / "b.wav", 0.1, seed=2), ("dog", "rain")),
    ]
    found = of_clips(clips, small_bundle)
    audio = soundfile.read(tmp_path / "a.wav", dtype="float32")[0]
    starts = range(0, RATE - WINDOW + 1, HOP)
    prefix = Prefix(small_bundle)
    expected = np.stack([prefix.embed(audio[start : start + WINDOW]) for start in starts])
    np.testing.assert_allclose(found.embeddings[:-1], expected, atol=1e-6)
    assert found.labels == ("dog", "rain")
    assert found.truth.tolist() == [[True, False]] * len(starts) + [[True, True]]
    assert found.groups.tolist() == [0] * len(starts) + [1]
    assert found.folds is None
    assert found.generations == (1, 1)
    assert not found.exclusive


def test_the_exits_of_a_bundle_embed_every_window_too(calibrated_bundle, tmp_path):
    random, front_end = np.random.default_rng(0), calibrated_bundle.manifest.info.front_end
    soundfile.write(tmp_path / "a.wav", random.uniform(-0.5, 0.5, 3 * front_end.window_samples), front_end.sample_rate)
    clips = [LabelledClip(tmp_path / "a.wav", ("a",))]
    found = of_clips(clips, calibrated_bundle)

    assert set(found.by_exit) == {"stem", "down"}
    for embeddings in found.by_exit.values():
        assert embeddings.shape == found.embeddings.shape
        assert not np.array_equal(embeddings, found.embeddings)


def test_silence_in_a_clip_is_left_out(small_bundle, tmp_path):
    quiet = write(tmp_path / "quiet.wav", level=1e-5)
    loud = write(tmp_path / "loud.wav")
    found = of_clips([LabelledClip(quiet, ("dog",), 1), LabelledClip(loud, ("rain",), 2)], small_bundle)
    assert found.labels == ("rain",)
    assert set(found.groups) == {1}
    assert set(found.folds) == {2}
    with pytest.raises(UsageError, match="louder than -60"):
        of_clips([LabelledClip(quiet, ("dog",))], small_bundle)
    with pytest.raises(SourceError, match=r"missing\.wav"):
        of_clips([LabelledClip(tmp_path / "missing.wav", ("dog",))], small_bundle)


def test_what_cannot_be_read_is_left_out_and_told(small_bundle, tmp_path, caplog):
    write(tmp_path / "dog" / "a.wav")
    write(tmp_path / "rain" / "b.wav")
    (tmp_path / "dog" / "empty.wav").touch()
    (tmp_path / "dog" / "._a.wav").write_bytes(b"\0\5\x16\7" + bytes(100))
    (tmp_path / "rain" / "c.wav").write_bytes((tmp_path / "rain" / "b.wav").read_bytes()[:-1])
    (tmp_path / ".trash").mkdir()
    write(tmp_path / ".trash" / "d.wav")
    (tmp_path / "nothing").mkdir()
    found = of_clips(read_clips(tmp_path), small_bundle)
    assert found.labels == ("dog", "rain")
    assert sorted(set(found.groups)) == [0, 2, 3]
    said = [record.message for record in caplog.records]
    assert [text for text in said if "empty.wav: cannot be decoded" in text]
    assert [text for text in said if "nothing: no audio file" in text and text.endswith("label left out")]
    assert said[-1] == "1 of 4 recordings could not be read"
    assert len(windows_of(read_clips(tmp_path), small_bundle.manifest.info.front_end, 3).embeddings) == 9


def test_the_same_trouble_of_many_recordings_is_said_once(small_bundle, tmp_path, caplog):
    for name in ("dog/a.wav", "dog/b.wav", "rain/c.wav"):
        noise = soundfile.read(write(tmp_path / name, 4.0, 0.1))[0]
        soundfile.write(tmp_path / name, noise + 0.2, RATE)
    windows_of(read_clips(tmp_path), small_bundle.manifest.info.front_end, most=2)
    said = [record.message for record in caplog.records if "constant offset" in record.message]
    assert [one.partition(": ")[0] for one in said] == [str(tmp_path / "dog" / "a.wav")]


def test_frames_that_no_bundle_can_read_and_embeddings_that_are_not_finite_are_left_out(
    play, small_bundle, sounds, frame_of
):
    huge = np.full((1, 8, 127), 3e38, "<f4").tobytes()
    frames = [
        frame_of(sounds[0], 0, 1),
        encode_frame(1, 0, 1, 1, "float32", False, 0.5, huge),
        encode_frame(2, 0, 1, 9, "float32", False, 0.5, b"no such cut"),
        encode_frame(3, 0, 7, 1, "float32", False, 0.5, b"no such generation"),
        encode_frame(4, 0, 1, 1, "float32", True, 0.5, b"no zstd"),
        encode_frame(5, 0, 1, 0, "opus", False, 0.5, b"\x00\xff\xff"),
        b"\xff" * 100,
        b"",
    ]

    async def work(hub):
        for number, frame in enumerate(frames):
            headers = {subjects.IDENTITY_HEADER: f"pi-1.b0.{number}"}
            await hub.stream.publish(subjects.frames("pi-1"), frame, headers=headers)
        return await of_events([LabelledEvent("pi-1", -10.0, 10.0, "dog")], hub, {1: small_bundle})

    examples = play(work)
    assert examples.embeddings.shape == (1, small_bundle.manifest.info.encoder.embedding_dim)
    assert np.isfinite(examples.embeddings).all()


def test_a_device_that_sends_far_more_than_the_others_has_its_share_of_the_examples(
    play, small_bundle, sounds, frame_of
):
    sent = {"pi-1": 4, "pi-2": 4, "pi-3": 80}

    async def work(hub):
        for device, windows in sent.items():
            for number in range(windows):
                headers = {subjects.IDENTITY_HEADER: f"{device}.b0.{number}"}
                await hub.stream.publish(subjects.frames(device), frame_of(sounds[0], number, 1), headers=headers)
        return await of_events([LabelledEvent(device, -10.0, 10.0, "dog") for device in sent], hub, {1: small_bundle})

    assert len(play(work).embeddings) == 12


def test_exits_are_asked_of_windows_that_were_whole_at_their_cut(play, calibrated_bundle):
    """`stem` and `down` have exits: the waveform tells both, an activation at `down` its own, a latent neither."""
    random, engine = np.random.default_rng(0), Engine(calibrated_bundle, "onnx-fp32")
    samples = calibrated_bundle.manifest.info.front_end.window_samples
    width = calibrated_bundle.manifest.info.bottlenecks[0].widths[0].width
    down = calibrated_bundle.manifest.cut_named("down").index
    heard = [random.uniform(-0.5, 0.5, samples).astype(np.float32) for _ in range(3)]
    ways = [(0, 0), (down, 0), (1, width)]
    frames = [
        engine.run(window, number, number, cut, 0.5, finish=False, width=shipped).frame
        for number, (window, (cut, shipped)) in enumerate(zip(heard, ways, strict=True))
    ]

    async def work(hub):
        for number, frame in enumerate(frames):
            headers = {subjects.IDENTITY_HEADER: f"pi-1.b0.{number}"}
            await hub.stream.publish(subjects.frames("pi-1"), frame, headers=headers)
        return await of_events([LabelledEvent("pi-1", -10.0, 10.0, "dog")], hub, {1: calibrated_bundle})

    examples = play(work)
    known = {cut: np.isfinite(found).all(axis=1).tolist() for cut, found in examples.by_exit.items()}
    assert known == {"stem": [True, False, False], "down": [True, True, False]}
    prefix = Prefix(calibrated_bundle)
    for number, (cut, window) in enumerate([("stem", heard[0]), ("down", heard[1])]):
        early = LoadedExit(prefix, calibrated_bundle.manifest.exit(cut))
        prefix.start(window)
        prefix.advance(early.cut)
        assert early.embedding() @ examples.by_exit[cut][number] > 0.99
