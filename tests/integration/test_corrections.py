"""What somebody says on a real server's page about what a real device heard makes the next head another one."""

import json
import signal
import urllib.error
import urllib.request

import harness
import numpy as np
import pytest
import sounds
from harness import get
from test_events import ssc

from runtime_edge.formats.records.head import read_head
from runtime_server.labels.corrections import Corrections, corrections_path
from runtime_server.labels.head_clips import HeadClipsFolder
from runtime_server.state.server_state import head_clips_path


def correct(url, number, label):
    body = json.dumps({"number": number, "label": label}).encode()
    request = urllib.request.Request(f"{url}api/v1/corrections", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=harness.PATIENCE_S) as answer:
        return json.load(answer)


def switched(url, device, kind="off"):
    return [event for event in get(url, "events")["events"] if event["kind"] == kind and event["device"] == device]


def stream(start, server, name, source, *options):
    device = start.device(server, name, source, "--event-hold-s", "0.5", *options)
    device.finish()
    return device.results()


def best(results):
    """Of windows that hold one sound alone, how often each of both was given which label."""
    found = {label: {} for label in sounds.LABELS}
    for result in results:
        if result.get("labels") and (true := sounds.heard(result["window"])) is not None:
            label = next(iter(result["labels"]))
            found[true][label] = found[true].get(label, 0) + 1
    return {true: max(said, key=said.get) for true, said in found.items()}


CASES = [("waveform", "flac"), pytest.param("waveform", "pcm16", marks=pytest.mark.slow), ("one", "pcm16")]


@pytest.mark.parametrize(("cut", "audio"), CASES)
def test_corrections_make_the_next_head_another_one(start, tmp_path, cut, audio):
    server = start.server("--no-training", "--web", "0")
    url = server.page
    server.put_table(harness.always(harness.open_bundle(server.state / "generations" / "00001"), "rpi4", cut))
    clips = sounds.write_clips(tmp_path / "clips")
    ssc("server", "label", clips, "--state", server.state, "--push", "-o", tmp_path / "first.json")
    source = sounds.write_turns(tmp_path / "turns.wav", 6)
    before = stream(start, server, "pi-1", source, "--audio-format", audio)
    assert best(before) == {"hiss": "hiss", "tone": "tone"}

    events = harness.until(lambda: switched(url, "pi-1") if len(switched(url, "pi-1")) >= 6 else None, "the events")
    tones = [event for event in events if event["label"] == "tone"]
    for event in tones:
        picture = get(url, f"events/{event['number']}/picture")
        if cut == "waveform":
            assert 1.5 < picture["seconds"] < 5
            with urllib.request.urlopen(f"{url}api/v1/events/{event['number']}/audio.wav") as answer:
                assert answer.read(4) == b"RIFF"
        else:
            assert "activations" in picture["why"]
        assert correct(url, event["number"], "whistle")["windows"] > 3
    told = {event["number"]: event.get("corrected") for event in get(url, "events")["events"]}
    assert {told[event["number"]] for event in tones} == {"whistle"}
    assert len(get(url, "corrections")["corrections"]) == len(tones)

    # The recordings of tones are taken away: what it is now called is known from the page alone.
    for path in (clips / "tone").iterdir():
        path.unlink()
    (clips / "tone").rmdir()
    (clips / "hum").mkdir()
    import soundfile

    for seed in range(6):
        hum = 0.3 * np.sin(2 * np.pi * (60 + seed) * np.arange(harness.SAMPLE_RATE) / harness.SAMPLE_RATE)
        soundfile.write(clips / "hum" / f"{seed}.wav", hum, harness.SAMPLE_RATE, subtype="PCM_16")
    said = ssc("server", "label", clips, "--state", server.state, "--push", "-o", tmp_path / "next.json")
    assert f"{len(tones)} sounds were corrected on the page" in said
    first, later = (read_head(tmp_path / name, server.key.public) for name in ("first.json", "next.json"))
    assert (first.labels, later.labels) == (("hiss", "tone"), ("hiss", "hum", "whistle"))
    assert later.validation.accuracy > 0.9
    kept = HeadClipsFolder(head_clips_path(server.state)).read(later)
    of_page = [labels for labels in kept.clips if labels == ("whistle",)]
    assert len(of_page) == (len(tones) if cut == "waveform" else 0)
    later_source = sounds.write_turns(tmp_path / "later.wav", 3)
    after = stream(start, server, "pi-2", later_source, "--audio-format", audio)
    assert best(after) == {"hiss": "hiss", "tone": "whistle"}

    # Over a restart, and without what the broker has of it.
    server.process.signal(signal.SIGTERM)
    server.start()
    assert {one["label"] for one in get(server.page, "corrections")["corrections"]} == {"whistle"}
    plain = ssc(
        "server", "label", clips, "--state", server.state, "--no-corrections", "-o", tmp_path / "plain.json", "--json"
    )
    assert set(json.loads(plain[plain.index("{") :])["windows"]) == {"hiss", "hum"}
    harness.assert_no_traceback(tmp_path)


def test_a_head_that_follows_takes_a_correction_at_once(start, tmp_path):
    server = start.server("--no-training", "--web", "0")
    url, clips = server.page, sounds.write_clips(tmp_path / "clips")
    label = harness.Process(
        tmp_path / "label.log", "server", "label", clips, "--state", server.state, "--follow", "-o", "head.json"
    )
    try:
        label.wait_for_line("pushed to")
        stream(start, server, "pi-1", sounds.write_turns(tmp_path / "turns.wav", 4), "--audio-format", "pcm16")
        events = harness.until(lambda: switched(url, "pi-1") or None, "an event")
        correct(url, events[0]["number"], events[0]["label"])
        label.wait_for_line("1 sound was corrected on the page")
        harness.until(lambda: label.text().count("pushed to") >= 2, "the head that knows of it")
        (said,) = Corrections(corrections_path(server.state)).read()
        assert said.label == events[0]["label"]
    finally:
        label.signal(signal.SIGTERM)


def test_what_a_device_kept_to_itself_cannot_be_corrected(start, tmp_path):
    server = start.server("--no-training", "--web", "0")
    url, clips = server.page, sounds.write_clips(tmp_path / "clips")
    ssc("server", "label", clips, "--state", server.state, "--push", "-o", tmp_path / "h.json")
    stream(start, server, "pi-1", sounds.write_turns(tmp_path / "turns.wav", 3), "--min-cut", "local")
    (event, *_) = harness.until(lambda: switched(url, "pi-1") or None, "an event")
    assert "kept it to itself" in get(url, f"events/{event['number']}/picture")["why"]
    with pytest.raises(urllib.error.HTTPError, match="409"):
        correct(url, event["number"], "dog")
    assert Corrections(corrections_path(server.state)).read() == []
