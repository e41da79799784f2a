"""Published checkpoints become ours, or are refused by name."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from runtime_edge.errors import FormatError
from streamsplit_compile.encoder.encoders import load_encoder, new_encoder, save_checkpoint
from streamsplit_compile.encoder.published.importers import import_efficientat

pytestmark = pytest.mark.integration


def test_a_state_dict_of_that_layout_is_read_and_its_width_recognised(tmp_path):
    module, _ = new_encoder("mn", {"width_mult": 0.4, "seed": 7})
    torch.save(module.state_dict(), tmp_path / "mn04.pt")

    config = import_efficientat(tmp_path / "mn04.pt", tmp_path / "encoder.pt", {})

    assert config == {"width_mult": 0.4}
    loaded = load_encoder(tmp_path / "encoder.pt")
    for name, tensor in module.state_dict().items():
        assert np.array_equal(loaded.tensors[name], tensor.numpy())


def test_another_network_is_refused_and_nothing_written(tmp_path):
    save_checkpoint("resnet18", {}, new_encoder("resnet18")[0], tmp_path / "resnet.pt")

    with pytest.raises(FormatError, match=r"resnet\.pt: no 'features\.16\.0\.weight'"):
        import_efficientat(tmp_path / "resnet.pt", tmp_path / "encoder.pt", {})
    assert not (tmp_path / "encoder.pt").exists()


def test_a_damaged_layout_is_refused(tmp_path):
    state = new_encoder("mn", {"width_mult": 0.4})[0].state_dict()
    state["features.3.block.0.0.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "mn.pt")

    with pytest.raises(FormatError, match=r"does not fit mn of width 0\.4"):
        import_efficientat(tmp_path / "mn.pt", tmp_path / "encoder.pt", {})


@pytest.mark.slow
def test_the_published_weights_reach_0_97_on_esc10_through_the_compiled_blocks(tmp_path):
    weights, audio = os.environ.get("SSC_TEST_WEIGHTS"), os.environ.get("SSC_TEST_AUDIO")
    if not weights or not audio or not list(Path(weights).glob("mn04_as*.pt")):
        pytest.skip("SSC_TEST_WEIGHTS and SSC_TEST_AUDIO name no mn04 checkpoint and ESC-10 recordings")
    import csv

    import soundfile
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from runtime_edge.inference.prefix import Prefix
    from streamsplit_compile.bundle.compiler import CompileOptions, compile_encoder
    from streamsplit_compile.cost.targets import load_target

    (checkpoint,) = Path(weights).glob("mn04_as*.pt")
    import_efficientat(checkpoint, tmp_path / "encoder.pt", {"window_seconds": 5})
    options = CompileOptions([load_target("rpi4")], calibrate=Path(audio), calibration_windows=4)
    prefix = Prefix(compile_encoder(load_encoder(tmp_path / "encoder.pt"), options, tmp_path / "bundle"))
    rows = list(csv.DictReader((Path(audio) / "esc10" / "labels.csv").read_text().splitlines()))
    embeddings = []
    for row in rows:
        samples, rate = soundfile.read(Path(audio) / "esc10" / row["filename"], dtype="float32")
        assert rate == 16_000
        embeddings.append(prefix.embed(np.resize(samples, 80_000)))
    features, labels = np.stack(embeddings), np.array([row["class"] for row in rows])
    folds = np.array([int(row["fold"]) for row in rows])

    correct = 0
    for fold in range(1, 6):
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        model.fit(features[folds != fold], labels[folds != fold])
        correct += int((model.predict(features[folds == fold]) == labels[folds == fold]).sum())

    assert correct / len(rows) >= 0.97
