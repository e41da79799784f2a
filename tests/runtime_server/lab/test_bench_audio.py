"""What is heard in a bench and what is fitted to: all recordings, or divided by a fold."""

import numpy as np
import pytest
import soundfile

from runtime_edge.errors import UsageError
from runtime_server.lab.bench_audio import BenchAudio


@pytest.fixture
def recordings(tmp_path):
    """Two data sets of constant recordings: fold 5 is at 0.5, all others at 0.25."""
    root = tmp_path / "data"
    for name in ("esc10", "words"):
        (root / name).mkdir(parents=True)
        lines = ["filename,class,fold"]
        for fold in (1, 2, 5):
            level = 0.5 if fold == 5 else 0.25
            soundfile.write(root / name / f"{fold}.wav", np.full(8000, level, np.float32), 8000)
            lines.append(f"{fold}.wav,{name},{fold}")
        (root / name / "labels.csv").write_text("\n".join(lines) + "\n")
    soundfile.write(root / "room.wav", np.full(8000, 0.25, np.float32), 8000)
    return root


def test_a_fold_is_heard_and_everything_else_is_fitted_to(recordings, tmp_path):
    audio = BenchAudio(recordings, 5)
    links = audio.calibration(tmp_path)
    levels = [float(soundfile.read(path)[0].mean()) for path in links.iterdir()]
    assert np.allclose(levels, 0.25, atol=1e-3)
    assert len(levels) == 5
    assert np.allclose(audio.waveform(3.0, 8000, 0), 0.5, atol=1e-3)


def test_tables_in_other_words_divide_as_well(recordings, tmp_path):
    for table in recordings.glob("*/labels.csv"):
        table.write_text(table.read_text().replace("filename,class", "file,label"))
    assert np.allclose(BenchAudio(recordings, 5).waveform(3.0, 8000, 0), 0.5, atol=1e-3)


def test_without_a_fold_everything_is_heard_and_fitted_to(recordings, tmp_path):
    audio = BenchAudio(recordings)
    assert audio.calibration(tmp_path) == recordings
    assert set(np.round(audio.waveform(7.0, 8000, 0), 2)) == {np.float32(0.25), np.float32(0.5)}


def test_a_soundscape_is_fitted_to_nothing(tmp_path):
    audio = BenchAudio()
    assert audio.calibration(tmp_path) is None
    heard = audio.waveform(2.0, 8000, 0)
    assert heard.size == 16_000
    assert heard.std() > 0


def test_a_fold_that_no_table_names_is_refused(recordings, tmp_path):
    with pytest.raises(UsageError, match=r"--fold 3: no labels\.csv below .* puts recordings into it"):
        BenchAudio(recordings, 3).calibration(tmp_path)


def test_there_is_no_fold_of_a_soundscape():
    with pytest.raises(UsageError, match="--fold divides recordings; give some with --audio"):
        BenchAudio(fold=5)
