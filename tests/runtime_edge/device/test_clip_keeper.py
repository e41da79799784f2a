import asyncio

import numpy as np
import pytest
import soundfile

from runtime_edge.audio.files.folder import is_hidden
from runtime_edge.config import DeviceConfig
from runtime_edge.device.capture import CapturedWindow
from runtime_edge.device.clip_keeper import AROUND_S, MAX_CLIP_S, ClipKeeper, clip_keeper, folder_of
from runtime_edge.device.label_switches import Change
from runtime_edge.errors import UsageError
from runtime_edge.formats.codec import to_pcm

RATE, WINDOW, HOP = 8000, 8000, 4000
BEGAN = 1_795_264_784.0
HOP_S = HOP / RATE


def end_of(index):
    return BEGAN + (index * HOP + WINDOW) / RATE


class Room:
    """A keeper and what it hears: noise, of which each window is a part."""

    def __init__(self, directory, limit=1 << 20, seconds=60):
        self.audio = np.random.default_rng(0).uniform(-0.5, 0.5, seconds * RATE).astype(np.float32)
        self.directory, self.keeper = directory, ClipKeeper(directory, limit, RATE, WINDOW, HOP)

    def hear(self, *indices):
        for index in indices:
            samples = self.audio[index * HOP :][:WINDOW].copy()
            self.keeper.hear(CapturedWindow(index, int(end_of(index) * 1e9), samples, 0.0))

    def label(self, event, first, last, label="rain"):
        self.keeper.changed(Change(event, label, 0.9, end_of(first), end_of(last)))

    def clips(self):
        return sorted(path.relative_to(self.directory).as_posix() for path in self.directory.rglob("*.flac"))

    def heard(self, name):
        samples, rate = soundfile.read(self.directory / name, dtype="float32")
        assert rate == RATE
        return samples


def kept(directory, work, **options):
    """The room in which `work` has been done, once all is written."""

    async def run():
        room = Room(directory, **options)
        work(room)
        await room.keeper.written()
        return room

    return asyncio.run(run())


def rain(room, first=10, last=13, label="rain"):
    room.hear(*range(first - 4, first + 1))
    room.label("on", first, first, label)
    room.hear(*range(first + 1, last + 5))
    room.label("off", first, last, label)


def test_a_clip_holds_the_sound_and_a_little_around_it(tmp_path):
    room = kept(tmp_path / "clips", rain)
    (name,) = room.clips()
    assert name.startswith("rain/2026-11-")
    samples = room.heard(name)
    # From half a second before the window in which it was first detected, in whole pieces of what windows added.
    begin, end = 10 * HOP - int(AROUND_S * RATE), 13 * HOP + WINDOW + int(AROUND_S * RATE)
    expected = room.audio[begin:end]
    assert len(samples) - len(expected) <= 2 * HOP
    found = np.correlate(samples, expected[:200], "valid").argmax()
    np.testing.assert_allclose(samples[found:][: len(expected)], expected, atol=1 / 32000)
    with soundfile.SoundFile(tmp_path / "clips" / name) as file:
        assert file.title == "rain"
    assert (tmp_path / "clips" / name).stat().st_mode & 0o777 == 0o600


def test_of_a_sound_that_lasts_the_beginning_is_kept_at_once(tmp_path):
    def work(room):
        room.hear(*range(6))
        room.label("on", 5, 5)
        room.hear(*range(6, 60))

    room = kept(tmp_path, work)
    (name,) = room.clips()
    samples = room.heard(name)
    assert MAX_CLIP_S <= len(samples) / RATE <= MAX_CLIP_S + 2
    assert np.isclose(room.audio, samples[4000], atol=1 / 32000).argmax() < 8 * HOP


def test_windows_that_are_missing_are_silence(tmp_path):
    def work(room):
        room.hear(0, 1, 2)
        room.label("on", 2, 2)
        room.hear(5, 6)
        room.label("off", 2, 6)

    room = kept(tmp_path, work)
    (name,) = room.clips()
    samples = room.heard(name)
    gap = samples[len(samples) - 2 * HOP - WINDOW : len(samples) - HOP - WINDOW + 1]
    assert (gap == 0).sum() >= HOP
    np.testing.assert_allclose(samples[-WINDOW:], room.audio[6 * HOP :][:WINDOW], atol=1 / 32000)


def test_the_oldest_make_room_and_other_files_stay(tmp_path):
    (tmp_path / "rain").mkdir()
    for name in ("mine.flac", "notes.txt"):
        (tmp_path / "rain" / name).write_bytes(bytes(100_000))

    def work(room):
        for turn in range(4):
            rain(room, 10 + 20 * turn, 13 + 20 * turn, label=("rain", "dog")[turn % 2])

    whole = kept(tmp_path / "all", work)
    sizes = {name: (tmp_path / "all" / name).stat().st_size for name in whole.clips()}
    assert len(sizes) == 4
    asyncio.run(one_after_the_other(tmp_path, 2.5 * max(sizes.values())))
    left = {path.name for path in tmp_path.glob("*/*.flac") if path.parent.name != "all"}
    newest = {name.partition("/")[2] for name in sorted(sizes, key=lambda name: name.partition("/")[2])[-2:]}
    assert left - {path.name for path in (tmp_path / "all").rglob("*")} == {"mine.flac"}
    assert newest <= left
    assert len(left) == 3
    assert (tmp_path / "rain" / "notes.txt").exists()


async def one_after_the_other(directory, limit):
    room = Room(directory, int(limit))
    for turn in range(4):
        rain(room, 10 + 20 * turn, 13 + 20 * turn, label=("rain", "dog")[turn % 2])
        await room.keeper.written()


def test_clips_that_are_written_at_once_fit_together(tmp_path):
    labels = [f"label {number}" for number in range(6)]

    def work(room):
        room.hear(*range(6, 11))
        for label in labels:
            room.label("on", 10, 10, label)
        room.hear(*range(11, 18))
        for label in labels:
            room.label("off", 10, 13, label)

    whole = kept(tmp_path / "all", work)
    limit = 2.5 * max(path.stat().st_size for path in whole.directory.rglob("*.flac"))
    for turn in range(10):
        found = kept(tmp_path / str(turn), work, limit=int(limit)).directory.rglob("*.flac")
        assert 0 < sum(path.stat().st_size for path in found) <= limit


def test_samples_are_those_that_are_sent(tmp_path):
    def work(room):
        room.audio[::5] = np.resize([2.0, -2.0, np.nan, -1.0, 1.0], room.audio[::5].shape)
        rain(room)

    room = kept(tmp_path, work)
    samples, _ = soundfile.read(tmp_path / room.clips()[0], dtype="int16")
    whole = to_pcm(room.audio).tobytes()
    assert samples.tobytes() in whole


def test_what_cannot_be_written_is_said_and_stops_nobody(tmp_path, caplog):
    def work(room):
        (tmp_path / "clips" / "rain").write_text("no folder")
        rain(room)

    room = kept(tmp_path / "clips", work)
    assert room.clips() == []
    (said,) = [record.message for record in caplog.records]
    assert said.startswith("a clip of rain is not kept: ")


def test_a_clip_larger_than_the_bound_is_not_kept(tmp_path, caplog):
    assert kept(tmp_path, rain, limit=1000).clips() == []
    assert "larger than keep_clips_mb allows" in caplog.records[0].message


def test_a_floor_forbids_clips(tmp_path):
    with pytest.raises(UsageError, match="keep_clips: keeps audio, which the privacy floor"):
        clip_keeper(DeviceConfig(keep_clips=tmp_path, min_cut="local"), RATE, WINDOW, HOP)
    assert clip_keeper(DeviceConfig(), RATE, WINDOW, HOP) is None


def test_a_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"keep_clips .*/file/clips: cannot be made \(Not a directory\)"):
        ClipKeeper(tmp_path / "file" / "clips", 1 << 20, RATE, WINDOW, HOP)


@pytest.mark.parametrize("label", ["rain", "Dog (big)", "wächter", "雨、強い", "100% #1", "C++", "x" * 200])
def test_a_label_names_its_folder(label):
    assert folder_of(label) == label


FORBIDDEN = [
    "..", ".", "../../etc", "/", "", "a/b", "a\\b", "a:b", "a*b", "a?b", 'a"b', "a<b", "a>b", "a|b", "a\nb", "a-b ",
    "a.", ".a", "~a", "a.part", "x" * 201, "x" * 202, "ä" * 150, "ä" * 149 + "é", "a\x7fb", "a\x85b", "lost+found",
]  # fmt: skip


def test_a_label_that_can_name_no_folder_has_one_of_its_own_below_the_directory(tmp_path):
    assert folder_of("AC/DC") == "AC-DC-5a5abe39", "docs/operation.md says so"
    names = [folder_of(label) for label in FORBIDDEN]
    names += [folder_of(name) for name in names]  # labels that are called as the folder of another one is
    assert len(set(names)) == 2 * len(FORBIDDEN)
    for name in names:
        (tmp_path / name).mkdir()
        assert (tmp_path / name).resolve().parent == tmp_path.resolve()
        assert len(name.encode()) <= 200
        assert not is_hidden(name), "the folder would be left out when a head is trained"
