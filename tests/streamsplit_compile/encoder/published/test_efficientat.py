"""Published checkpoints become ours, or are refused by name; their classifiers become heads."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

import runtime_edge
import streamsplit_compile
from runtime_edge.errors import FormatError
from runtime_edge.formats.records.head import read_head
from streamsplit_compile.cli.main import main
from streamsplit_compile.encoder.encoders import load_encoder, new_encoder, save_checkpoint
from streamsplit_compile.encoder.published.efficientat import import_efficientat, read_labels

pytestmark = pytest.mark.integration


def test_a_state_dict_of_that_layout_is_read_and_its_width_recognised(tmp_path):
    module, _ = new_encoder("mn", {"width_mult": 0.4, "seed": 7})
    torch.save(module.state_dict(), tmp_path / "mn04.pt")

    assert import_efficientat(tmp_path / "mn04.pt", tmp_path / "encoder.pt", {}) == ({"width_mult": 0.4}, None)
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


CLASSES = 9


@pytest.fixture
def published(tmp_path):
    """A checkpoint with a classifier, as EfficientAT writes them, of random weights."""
    module, _ = new_encoder("mn", {"width_mult": 0.1, "seed": 7})
    state = dict(module.state_dict())
    generator = torch.Generator().manual_seed(0)
    shapes = {"2.weight": (32, 96), "2.bias": (32,), "5.weight": (CLASSES, 32), "5.bias": (CLASSES,)}
    state |= {f"classifier.{name}": torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    torch.save(state, tmp_path / "mn01_as.pt")
    return tmp_path / "mn01_as.pt", module, state


def write_labels(path, rows):
    path.write_text("index,mid,display_name\n" + "".join(f'{index},/m/0,"{name}"\n' for index, name in rows))
    return path


def scores_in_torch(module, state, windows):
    """The checkpoint's own classifier on the same windows."""
    pooled = module.before_lift(windows)
    hidden = functional.linear(pooled, state["classifier.2.weight"], state["classifier.2.bias"])
    return torch.sigmoid(
        functional.linear(functional.hardswish(hidden), state["classifier.5.weight"], state["classifier.5.bias"])
    )


def test_with_labels_the_classifier_becomes_a_head_of_the_same_scores(published, tmp_path):
    path, module, state = published
    labels = write_labels(tmp_path / "labels.csv", [(3, "Dog, bark"), (0, "Speech"), (8, "Rain")])
    config, head = import_efficientat(path, tmp_path / "encoder.pt", {}, labels)
    assert (config["width_mult"], config["hidden"]) == (0.1, 32)
    assert (head.labels, head.embedding_dim, head.scores_by) == (("Dog, bark", "Speech", "Rain"), 33, "sigmoid")

    loaded = load_encoder(tmp_path / "encoder.pt")
    time = torch.arange(16_000) / 16_000
    windows = torch.stack(
        [torch.zeros(16_000), *(0.1 * torch.sin(2 * torch.pi * hz * time) for hz in (220, 900, 3000))]
    )
    with torch.inference_mode():
        embeddings = loaded.graph.module(windows).numpy()
        expected = scores_in_torch(module, state, windows).numpy()
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(head.scores(embeddings), expected[:, [3, 0, 8]], atol=1e-4, rtol=0)


def test_a_checkpoint_without_that_classifier_is_refused_with_labels_alone(published, tmp_path):
    path, _, state = published
    labels = write_labels(tmp_path / "labels.csv", [(0, "Speech")])
    torch.save({name: value for name, value in state.items() if name != "classifier.5.bias"}, path)
    with pytest.raises(FormatError, match=r"mn01_as\.pt: no 'classifier\.5\.bias'; .*leave out --labels"):
        import_efficientat(path, tmp_path / "encoder.pt", {}, labels)
    assert not (tmp_path / "encoder.pt").exists()
    import_efficientat(path, tmp_path / "encoder.pt", {})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"no column display_name; give AudioSet's class_labels_indices\.csv"),
        ("index,name\n0,Speech\n", "no column display_name"),
        ("index,display_name\n", "names no label"),
        ("index,display_name\n0,Speech\n9,Dog\n", "line 3: index '9': the classifier has outputs 0 to 8"),
        ("index,display_name\n-1,Speech\n", "line 2: index '-1'"),
        ("index,display_name\n\u0663,Speech\n", "line 2: index"),
        ("index,display_name\n0,Speech\n0,Dog\n", "line 3: 0, 'Dog': an index or a name appears twice"),
        ("index,display_name\n0,Speech\n1,Speech\n", "line 3: 1, 'Speech': an index or a name appears twice"),
        ("index,display_name\n0,  \n", "line 2: display_name is empty"),
        ("index,display_name\n0\n", "line 2: display_name is empty"),
    ],
)
def test_labels_that_fit_no_classifier_are_named_with_their_line(tmp_path, text, words):
    path = tmp_path / "labels.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(FormatError, match=words) as caught:
        read_labels(path, CLASSES)
    assert str(caught.value).startswith(f"{path}: ")


def test_the_command_writes_the_head_beside_the_encoder(published, tmp_path, capsys):
    path, _, _ = published
    labels = write_labels(tmp_path / "labels.csv", [(0, "Speech"), (1, "Dog")])
    command = ["encoder", "import", "efficientat", str(path), "--labels", str(labels), "-o", str(tmp_path / "e.pt")]
    main([*command, "--json"])
    assert json.loads(capsys.readouterr().out)["head"] == str(tmp_path / "e.head.json")
    assert read_head(tmp_path / "e.head.json").labels == ("Speech", "Dog")
    main(command)
    assert "e.head.json: a head of 2 labels" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["encoder", "import", "clap", str(path), "--labels", str(labels), "-o", str(tmp_path / "c.pt")])
    assert "a CLAP checkpoint has no classifier" in capsys.readouterr().err


@pytest.mark.slow
def test_the_head_of_527_labels_scores_recordings_as_the_checkpoint_does(tmp_path):
    """ESC-10: the classes' labels among AudioSet's, by the mean score of a clip's windows."""
    weights, audio = os.environ.get("SSC_TEST_WEIGHTS"), os.environ.get("SSC_TEST_AUDIO")
    if not weights or not audio or not list(Path(weights).glob("mn04_as*.pt")):
        pytest.skip("SSC_TEST_WEIGHTS and SSC_TEST_AUDIO name no mn04 checkpoint and ESC-10 recordings")
    import csv

    import soundfile
    from sklearn.metrics import average_precision_score

    (checkpoint,) = Path(weights).glob("mn04_as*.pt")
    labels = write_labels(tmp_path / "labels.csv", [(index, f"label {index}") for index in range(527)])
    _, head = import_efficientat(checkpoint, tmp_path / "encoder.pt", {}, labels)
    (tmp_path / "head.json").write_bytes(head.to_json())
    streamsplit_compile.compile(tmp_path / "encoder.pt", tmp_path / "bundle", targets=["rpi4"])
    encoder = runtime_edge.open(str(tmp_path / "bundle"), head=str(tmp_path / "head.json"))
    state = torch.load(checkpoint, weights_only=True)
    module, _ = new_encoder("mn")
    module.load_state_dict(state)
    rows = list(csv.DictReader((Path(audio) / "esc10" / "labels.csv").read_text().splitlines()))
    theirs, ours = [], []
    for row in rows:
        path = Path(audio) / "esc10" / row["filename"]
        windows = torch.from_numpy(soundfile.read(path, dtype="float32")[0]).unfold(0, 16_000, 8_000)
        with torch.inference_mode():
            theirs.append(scores_in_torch(module, state, windows).numpy())
        ours.append([[window[f"label {index}"] for index in range(527)] for window in encoder.classify(path)])
    every, own = np.concatenate(theirs), np.concatenate(ours)
    np.testing.assert_allclose(own, every, atol=1e-3, rtol=0)
    assert (own.argmax(axis=1) == every.argmax(axis=1)).mean() >= 0.999
    precisions = []
    for scores in (theirs, ours):
        clips = np.stack([np.mean(one, axis=0) for one in scores])
        truth = np.array([row["class"] for row in rows])
        precisions.append([average_precision_score(truth == name, clips[:, index]) for name, index in AUDIOSET.items()])
    assert np.mean(precisions[1]) == pytest.approx(np.mean(precisions[0]), abs=1e-3)
    assert np.mean(precisions[1]) > 0.9


AUDIOSET = {
    "baby_cry": 23, "chainsaw": 347, "clock_tick": 408, "dog_bark": 75, "fire_crackling": 299, "helicopter": 339,
    "person_sneeze": 49, "rain": 289, "rooster": 101, "sea_waves": 295,
}  # fmt: skip


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
