"""The microphone through the real sounddevice, PortAudio and ALSA: ALSA plays a file as if a card recorded it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from microphones import RATE, microphone, portaudio_is_missing

from runtime_edge.audio.audio_block import SYSTEM_CLOCK, Counters
from runtime_edge.audio.microphone import Microphone
from runtime_edge.errors import SourceError

TONE_HZ = 440

LISTEN = """
import itertools, json, sys
import numpy as np
from runtime_edge.audio import Counters, Windower, open_source
counters = Counters()
blocks = open_source(sys.argv[1], 16_000, counters=counters)
windows = Windower(16_000, 8_000, counters=counters).windows(blocks)
found = []
for window in itertools.islice(windows, 4):
    spectrum = np.abs(np.fft.rfft(window.samples))
    found.append((window.index, window.capture_time_ns, int(spectrum.argmax()), float(np.abs(window.samples).max())))
blocks.close()
print(json.dumps({"windows": found, "overruns": counters.overruns, "bad": counters.bad_samples}))
"""


missing = portaudio_is_missing()
pytestmark = pytest.mark.skipif(bool(missing), reason=f"sounddevice and PortAudio are needed: {missing}")


@pytest.fixture
def listen(tmp_path: Path):
    """`listen(spec)`: what a process hears from a card that plays a tone at 48 kHz in stereo."""
    tone = 0.5 * np.sin(2 * np.pi * TONE_HZ * np.arange(60 * RATE) / RATE)
    env = {**os.environ, **microphone(tmp_path, tone)}

    def run(spec: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", LISTEN, spec]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, env=env, check=False)

    return run


@pytest.mark.parametrize("spec", ["mic", "mic:default"])
def test_windows_hold_what_the_card_records_at_the_encoder_s_rate(listen, spec):
    done = listen(spec)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    indices, times, peaks, levels = zip(*found["windows"], strict=True)
    assert list(indices) == sorted(set(indices))
    assert list(times) == sorted(set(times))
    assert peaks[-1] == TONE_HZ, "one second of a window: a bin is a hertz"
    assert levels[-1] == pytest.approx(0.5, abs=0.05)
    assert found["bad"] == 0


def test_an_input_that_is_not_there_is_named_in_one_line(listen):
    done = listen("mic:no such card")
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert "SourceError: microphone 'no such card'" in last
    assert "python -m sounddevice" in last


def test_a_machine_without_a_microphone_is_told_so(monkeypatch):
    import sounddevice

    def missing(device, kind):
        raise sounddevice.PortAudioError("Error querying device -1")

    monkeypatch.setattr(sounddevice, "query_devices", missing)
    with pytest.raises(SourceError, match="microphone 'default': there is no input device: list inputs"):
        Microphone("", 1.0, Counters(), SYSTEM_CLOCK)
