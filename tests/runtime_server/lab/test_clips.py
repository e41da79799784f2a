import re

import numpy as np
import pytest
import soundfile

from runtime_edge.errors import FormatError
from runtime_server.lab.clips import CLIP_SAMPLES, SAMPLE_RATE, Clips, load_clips


@pytest.fixture
def root(tmp_path):
    """Two recordings that can be used, and two that cannot."""
    folder = tmp_path / "esc10"
    folder.mkdir()
    soundfile.write(folder / "long.wav", np.full(CLIP_SAMPLES + 5, 0.5, np.float32), SAMPLE_RATE)
    soundfile.write(folder / "short.wav", np.full(100, 0.25, np.float32), SAMPLE_RATE)
    soundfile.write(folder / "fast.wav", np.zeros(100, np.float32), 44_100)
    soundfile.write(folder / "stereo.wav", np.zeros((100, 2), np.float32), SAMPLE_RATE)
    (folder / "noise.wav").write_bytes(b"no recording")
    return tmp_path


def test_clips_are_five_seconds_with_their_class_and_fold(root):
    (root / "esc10" / "labels.csv").write_text("filename,class,fold,note\nlong.wav,rain,2,\nshort.wav,dog,1,\n")
    clips = load_clips(root)
    assert clips.waveforms.shape == (2, CLIP_SAMPLES)
    assert clips.waveforms.dtype == np.float32
    np.testing.assert_allclose(clips.waveforms[1, 98:102], [0.25, 0.25, 0, 0], atol=1e-4)
    assert clips.labels.tolist() == [1, 0]
    assert clips.folds.tolist() == [2, 1]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "labels.csv: no recordings; the first line names the columns: filename,class,fold"),
        (["short.wav,dog,1", "", "gone.wav,dog,1"], "labels.csv: line 4: "),
        (["short.wav,dog,1", "noise.wav,dog,1"], "noise.wav: cannot be read"),
        (["fast.wav,dog,1"], "fast.wav: 44100 Hz in 1 channels, not 16000 in one"),
        (["stereo.wav,dog,1"], "stereo.wav: 16000 Hz in 2 channels, not 16000 in one"),
        (["short.wav,,1"], "labels.csv: line 2: class is empty"),
        (["short.wav,dog,6"], "labels.csv: line 2: fold: '6' is not a number from 1 to 5"),
        (["short.wav,dog"], "labels.csv: line 2: fold is empty"),
    ],
)
def test_what_is_wrong_is_named_by_file_and_line(root, lines, message):
    (root / "esc10" / "labels.csv").write_text("\n".join(["filename,class,fold", *lines, ""]))
    with pytest.raises(FormatError, match=re.escape(message)):
        load_clips(root)


def test_a_column_that_is_missing_is_named(root):
    (root / "esc10" / "labels.csv").write_text("file,class,fold\nshort.wav,dog,1\n")
    with pytest.raises(FormatError, match="line 2: no column 'filename'; the columns are filename,class,fold"):
        load_clips(root)


def test_at_most_so_many_of_each_class_and_fold_the_first_ones():
    labels, folds = np.repeat([0, 1], 6), np.tile([1, 2], 6)
    clips = Clips(np.arange(12, dtype=np.float32)[:, None], labels, folds)
    assert clips.at_most(2).waveforms[:, 0].tolist() == [0, 1, 2, 3, 6, 7, 8, 9]
    assert len(clips.at_most(100).labels) == 12
