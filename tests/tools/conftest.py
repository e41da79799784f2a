"""Recordings that the studies learn from, in small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from tools.bench_objectives import DATA


@pytest.fixture(scope="session")
def two_words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with two kinds of tones in place of Speech Commands, eight in each fold."""
    root = tmp_path_factory.mktemp("recordings")
    folder, rng = root / DATA, np.random.default_rng(0)
    lines = ["filename,class,fold"]
    for label, hertz in (("go", 200.0), ("stop", 2000.0)):
        (folder / label).mkdir(parents=True)
        for fold in range(1, 6):
            for take in range(8):
                name = f"{label}/{fold}-{take}.flac"
                tone = np.sin(2 * np.pi * hertz * (1 + 0.05 * take) * np.arange(12_000) / 16_000)
                soundfile.write(folder / name, 0.3 * tone + 0.02 * rng.standard_normal(12_000), 16_000)
                lines.append(f"{name},{label},{fold}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return root
