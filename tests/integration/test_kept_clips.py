"""`ssc edge run --keep-clips`: a real device keeps what it has heard, and nothing under a privacy floor."""

import io
import signal
import urllib.request

import harness
import numpy as np
import pytest
import soundfile
import sounds
from harness import get
from test_corrections import correct, switched
from test_events import ssc

from runtime_edge.formats.wire import decode_frame


def tone_share(samples):
    """Of the energy, between 500 and 1000 Hz."""
    spectrum = np.abs(np.fft.rfft(samples)) ** 2
    bands = np.fft.rfftfreq(len(samples), 1 / harness.SAMPLE_RATE)
    return spectrum[(bands > 500) & (bands < 1000)].sum() / spectrum.sum()


def test_a_device_keeps_clips_of_what_it_heard_and_sends_none(start, tmp_path):
    server = start.server("--no-training")
    clips = sounds.write_clips(tmp_path / "clips")
    ssc("server", "label", clips, "--state", server.state, "--push", "-o", tmp_path / "h.json")
    server.put_table(harness.always(harness.open_bundle(server.state / "generations" / "00001"), "rpi4", "one"))
    source = sounds.write_turns(tmp_path / "turns.wav", 6)
    kept = tmp_path / "kept"
    device = start.device(server, "pi-1", source, "--keep-clips", kept, "--events", "off", "--event-hold-s", "0.5")
    device.finish()

    found = sorted(kept.rglob("*.flac"))
    assert {path.parent.name for path in found} == set(sounds.LABELS)
    assert len(found) >= 5
    shares = {label: [] for label in sounds.LABELS}
    for path in found:
        samples, rate = soundfile.read(path)
        assert rate == harness.SAMPLE_RATE
        assert 1.0 < len(samples) / rate < 5.0
        shares[path.parent.name].append(tone_share(samples))
    assert max(shares["hiss"]) < min(shares["tone"])
    cuts = {header.cut for frame in server.frames_of("pi-1") for header, _ in decode_frame(frame)}
    assert 0 not in cuts, "no audio was sent"

    # What was kept is what a head is fitted to.
    said = ssc("server", "label", kept, "--state", server.state, "-o", tmp_path / "again.json")
    assert "hiss" in said
    assert "tone" in said


def test_the_page_plays_what_only_its_device_has_and_the_next_head_learns_from_it(start, tmp_path):
    """The device sends activations, and no audio until somebody looks."""
    server = start.server("--no-training", "--web", "0")
    url = server.page
    bundle = harness.open_bundle(server.state / "generations" / "00001")
    server.put_table(harness.always(bundle, "rpi4", "one"))
    clips = sounds.write_clips(tmp_path / "clips")
    ssc("server", "label", clips, "--state", server.state, "--push", "-o", tmp_path / "h.json")
    source = sounds.write_turns(tmp_path / "turns.wav", 40)
    options = ("--keep-clips", tmp_path / "kept", "--lend-clips", "--event-hold-s", "0.5", "--realtime")
    device = start.device(server, "pi-1", source, *options)

    def two_tones():
        found = [event for event in switched(url, "pi-1") if event["label"] == "tone"]
        return found[:2] if len(found) >= 2 else None

    tones = harness.until(two_tones, "two tones")
    assert {header.cut for frame in server.frames_of("pi-1") for header, _ in decode_frame(frame)} == {2}
    for event in tones:
        picture = get(url, f"events/{event['number']}/picture")
        assert 1.5 < picture["seconds"] < 5, picture
        with urllib.request.urlopen(f"{url}api/v1/events/{event['number']}/audio.wav") as answer:
            samples, rate = soundfile.read(io.BytesIO(answer.read()))
        assert rate == harness.SAMPLE_RATE
        assert tone_share(samples) > 0.5
        assert correct(url, event["number"], "whistle")["windows"] > 3
    said = ssc("server", "label", clips, "--state", server.state, "-o", tmp_path / "next.json")
    assert "2 sounds were corrected on the page" in said
    device.process.signal(signal.SIGTERM)
    device.finish()

    def is_gone():
        (last, *_) = switched(url, "pi-1")
        return "lends no clip" in get(url, f"events/{last['number']}/picture").get("why", "")

    harness.until(is_gone, "the page to say that the device lends none now")


def test_a_device_without_a_broker_keeps_clips_too(start, tmp_path):
    server = start.server("--no-training")
    clips = sounds.write_clips(tmp_path / "clips")
    ssc("server", "label", clips, "--state", server.state, "--push", "-o", tmp_path / "h.json")
    bundle = server.state / "generations" / "00001"
    source = sounds.write_turns(tmp_path / "turns.wav", 4)
    kept = tmp_path / "kept"
    ssc(
        "edge", "run", "--bundle", bundle, "--head", tmp_path / "h.json", "--source", source, "--no-realtime",
        "--state", tmp_path / "alone", "--keep-clips", kept, "--event-hold-s", "0.5", "--quiet",
    )  # fmt: skip
    assert {path.parent.name for path in kept.rglob("*.flac")} == set(sounds.LABELS)


def test_a_floor_and_clips_are_one_line(tmp_path, toy_bundle):
    source = harness.write_wav(tmp_path / "audio.wav", 1.0, seed=3)
    log = tmp_path / "device.log"
    process = harness.Process(
        log, "edge", "run", "--bundle", toy_bundle.path, "--source", source, "--keep-clips", tmp_path / "kept",
        "--min-cut", "one", "--state", tmp_path / "state",
    )  # fmt: skip
    with pytest.raises(AssertionError, match="exit code 2"):
        process.finish()
    assert (
        "keep_clips: keeps audio, which the privacy floor (min_cut) forbids; leave one of them out" in log.read_text()
    )
    assert "Traceback" not in log.read_text()
    assert not list((tmp_path / "kept").rglob("*.flac"))
