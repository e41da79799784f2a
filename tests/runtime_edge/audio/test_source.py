"""What open_source accepts and refuses, and what it imports."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from runtime_edge.audio import Clock, Counters, Windower, open_source
from runtime_edge.audio.source import is_live
from runtime_edge.errors import MissingExtra, SourceError, UsageError


@pytest.mark.parametrize(
    ("spec", "options", "word"),
    [
        ("", {}, "empty"),
        ("mic", {"loop": True}, "loop"),
        ("-", {"loop": True}, "loop"),
        ("-", {"realtime": True, "speed": 2.0}, "speed"),
        ("a.wav", {"speed": 2.0}, "speed"),
        ("a.wav", {"realtime": True, "speed": 0.0}, "speed"),
        ("a.wav", {"realtime": True, "speed": float("nan")}, "speed"),
        ("a.wav", {"sample_rate": 0}, "sample rate"),
        ("-", {"stdin_rate": 5}, "stdin rate"),
        ("-", {"stdin_channels": 0}, "stdin channels"),
        ("-", {"stdin_channels": 2, "channel": "3"}, "channel 3: standard input has 2 channels"),
        ("a.wav", {"channel": "left"}, "channel 'left'"),
        ("-", {"queue_seconds": -1.0}, "queue"),
    ],
)
def test_options_that_make_no_sense_are_named(spec: str, options: dict[str, float], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        open_source(spec, **{"sample_rate": 16_000, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spec", "realtime", "live"),
    [("mic", True, True), ("mic:1", False, True), ("-", True, True), ("-", False, False), ("a.wav", True, False)],
)
def test_which_sources_are_at_fault_when_they_bring_nothing(spec: str, realtime: bool, live: bool) -> None:
    assert is_live(spec, realtime) == live


def test_a_device_node_is_neither_file_nor_directory() -> None:
    with pytest.raises(SourceError, match="give -"):
        open_source(os.devnull, 16_000)


def test_the_microphone_without_library_or_hardware_says_what_to_do() -> None:
    installed = importlib.util.find_spec("sounddevice") is not None
    expected = "^microphone.*: .*$" if installed else r'pip install "streamsplit_audio-.*\[audio\]"'
    if installed and has_microphone():
        pytest.skip("this machine has a microphone")

    with pytest.raises(SourceError if installed else MissingExtra, match=expected) as caught:
        open_source("mic", 16_000)

    assert "\n" not in str(caught.value)


def has_microphone() -> bool:
    try:
        return any(device["max_input_channels"] for device in importlib.import_module("sounddevice").query_devices())
    except OSError:
        return False


def test_importing_the_package_loads_no_audio_library() -> None:
    program = "import sys, runtime_edge.audio; print({'soundfile', 'soxr', 'sounddevice'} & set(sys.modules))"

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=True)

    assert done.stdout.strip() == b"set()"


def test_stereo_at_44_1_khz_becomes_windows_with_the_right_times(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    tones = [0.5 * np.sin(2 * np.pi * hz * np.arange(132_300) / 44_100) for hz in (440.0, 1_000.0)]
    soundfile.write(path, np.stack(tones, axis=1), 44_100, subtype="FLOAT")
    counters = Counters()
    anchor = 1_700_000_000_000_000_000
    clock = Clock(wall_ns=lambda: anchor, monotonic=lambda: 0.0)

    blocks = open_source(str(path), 16_000, counters=counters, clock=clock)
    found = [
        (w.index, w.capture_time_ns - anchor, w.samples.copy())
        for w in Windower(16_000, 8_000, counters=counters).windows(blocks)
    ]

    assert [(index, time_ns) for index, time_ns, _ in found] == [(i, 10**9 + i * 5 * 10**8) for i in range(5)]
    seconds = np.arange(8_000, 24_000) / 16_000
    mixed = 0.25 * (np.sin(2 * np.pi * 440 * seconds) + np.sin(2 * np.pi * 1_000 * seconds))
    np.testing.assert_allclose(found[1][2], mixed, atol=1e-3)
    assert (counters.windows, counters.samples, counters.clipped_samples) == (5, 48_000, 0)


def test_real_time_takes_as_long_as_the_audio_at_the_speed_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(16_000), 16_000)

    seconds = [0.0]

    def sleep(for_s: float) -> None:
        seconds[0] += for_s

    clock = Clock(lambda: round(seconds[0] * 1e9), lambda: seconds[0], sleep)
    blocks = open_source(str(path), 16_000, True, speed=4.0, clock=clock)
    late_ns = [seconds[0] * 1e9 - block.end_time_ns / 4.0 for block in blocks]

    assert seconds[0] == pytest.approx(0.25)
    assert min(late_ns) > -1e6, "a block never comes before it was captured"
