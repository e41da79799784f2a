"""What is wrong with samples is said once, with place and share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from runtime_edge.audio import Counters, open_source

RATE = 16_000


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.3, 0.3, round(seconds * RATE)).astype(np.float32)


def heard(path: Path, samples: np.ndarray, **options: str) -> Counters:
    """The counters after a file with these samples."""
    path.parent.mkdir(exist_ok=True)
    soundfile.write(path, samples, RATE, subtype="FLOAT")
    counters = Counters()
    for _ in open_source(str(path), RATE, counters=counters, **options):  # type: ignore[arg-type]
        pass
    return counters


def test_samples_that_were_never_scaled_are_told_with_their_share_and_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    samples = noise(4)
    samples[2 * RATE :] *= 30_000

    counters = heard(tmp_path / "a.wav", samples)

    assert counters.clipped_samples == pytest.approx(2 * RATE, rel=0.01)
    (record,) = caplog.records
    assert record.message == (
        f"{tmp_path}/a.wav: 50 % of its samples are beyond full scale, and clipped: scale the recording to [-1, 1] "
        "(first at 2.0 s)"
    )


def test_samples_that_are_no_numbers_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    samples = noise(4)
    samples[RATE : RATE + 640] = np.nan

    assert heard(tmp_path / "a.wav", samples).bad_samples == 640
    assert (
        "a.wav: 1 % of its samples are not numbers, and silenced: look at what wrote it (first at 1.0 s)" in caplog.text
    )


def test_the_overshoot_of_a_decoder_is_counted_and_not_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    samples = noise(4)
    samples[:5] = 1.01

    assert heard(tmp_path / "a.wav", samples).clipped_samples == 5
    assert not caplog.records


@pytest.mark.parametrize("channel", ["mean", "1", "loudest"])
def test_channels_that_cancel_each_other_are_told_where_they_are_mixed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, channel: str
) -> None:
    samples = noise(4)

    counters = heard(tmp_path / "a.wav", np.stack([samples, -0.98 * samples], axis=1), channel=channel)

    assert counters.cancelled_samples == (4 * RATE if channel == "mean" else 0)
    assert ("100 % of it has channels that cancel each other" in caplog.text) == (channel == "mean")
    assert ("choose one with --channel" in caplog.text) == (channel == "mean")


@pytest.mark.parametrize("channels", [2, 3, 8])
def test_channels_that_only_differ_are_not_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, channels: int
) -> None:
    samples = np.stack([noise(4, seed) for seed in range(channels)], axis=1)
    samples[:, 0] = 0.0

    assert heard(tmp_path / "a.wav", samples).cancelled_samples == 0
    assert not caplog.records


@pytest.mark.parametrize("level", [1e-4, 0.3])
def test_a_constant_offset_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture, level: float) -> None:
    assert heard(tmp_path / "a.wav", noise(4) * np.float32(level) - 0.05).offset_samples == 4 * RATE
    assert "a.wav: 100 % of it has a constant offset beyond 1 % of full scale" in caplog.text


def test_low_tones_and_gusts_are_no_offset(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    seconds = np.arange(6 * RATE) / RATE
    gusts = np.where(seconds.astype(int) % 2 == 0, 0.05, -0.05)
    gusts[:RATE] = 0

    assert heard(tmp_path / "a.wav", (0.3 * np.sin(2 * np.pi * 20 * seconds)).astype(np.float32)).offset_samples == 0
    assert heard(tmp_path / "b.wav", gusts.astype(np.float32)).offset_samples == 0
    assert not caplog.records


def test_a_kind_is_told_once_and_counted_in_every_recording(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.wav", "b.wav", "c.wav"):
        soundfile.write(tmp_path / name, 30_000 * noise(1), RATE, subtype="FLOAT")
    counters = Counters()

    for _ in open_source(str(tmp_path), RATE, counters=counters):
        pass

    assert counters.clipped_samples == pytest.approx(3 * RATE, rel=0.01)
    assert [record.message.partition(": ")[0] for record in caplog.records] == [f"{tmp_path}/a.wav"]


def test_of_a_long_recording_it_is_told_before_its_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, 30_000 * noise(60), RATE, subtype="FLOAT")
    source = open_source(str(path), RATE)

    for _ in range(140):  # 14 s
        next(source)

    assert "a.wav: 100 % of its samples are beyond full scale" in caplog.text
    source.close()
    assert len(caplog.records) == 1
