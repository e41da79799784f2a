"""The bench of cascades: what is shipped passes the codec, what stays does not, and clips are judged by mean scores."""

import numpy as np

from runtime_edge.formats.manifest import FrontEndInfo
from runtime_edge.policy.ship_gate import MostUncertain
from tools.bench_cascade import Heard, ship

RATE, WINDOW = 16_000, 16_000
FRONT_END = FrontEndInfo(sample_rate=RATE, window_samples=WINDOW, hop_samples=WINDOW // 2, details={})


def heard(clips=3, windows=4):
    """Overlapping windows of tones."""
    time = np.arange(WINDOW + (windows - 1) * WINDOW // 2) / RATE
    audio = [0.3 * np.sin(2 * np.pi * 440 * (clip + 1) * time).astype(np.float32) for clip in range(clips)]
    cut = [one[start:][:WINDOW] for one in audio for start in range(0, windows * WINDOW // 2, WINDOW // 2)]
    owners = np.repeat(np.arange(clips), windows)
    return Heard(np.stack(cut), owners, np.arange(clips) % 2, np.array(["esc10"] * clips), np.zeros((len(cut), 4)))


def test_what_is_shipped_is_decoded_and_what_stays_is_as_it_was():
    one = heard()
    chosen = np.arange(12) % 3 > 0
    sent = ship(one, chosen, np.zeros(12, np.float32), FRONT_END, order=1)
    assert (sent.chosen == chosen).all()
    assert (sent.received[~chosen] == one.windows[~chosen]).all()
    assert (sent.received[chosen] != one.windows[chosen]).any(axis=1).all()
    late = round(0.0065 * RATE)
    for plain, coded in zip(one.windows[chosen], sent.received[chosen], strict=True):
        assert np.corrcoef(plain[2000:-late], coded[2000 + late :])[0, 1] > 0.9
    everything = ship(one, np.ones(12, bool), np.zeros(12, np.float32), FRONT_END, order=1)
    assert 0 < sent.payload < everything.payload < 12 * 2000 * 1.5


def test_a_gate_ships_what_is_uncertain():
    one = heard()
    entropies = (np.arange(12) % 4 == 0).astype(np.float32)
    sent = ship(one, MostUncertain(0.25), entropies, FRONT_END, order=0)
    assert (sent.chosen == (entropies > 0)).all()
