import importlib
import random
import sys
import zipfile
from importlib.metadata import entry_points
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch import nn
from toys import Tiny

from runtime_edge.errors import FormatError, MissingExtra, UsageError
from runtime_edge.formats.encoder.load_options import LoadOptions
from streamsplit_compile.cli.main import main
from streamsplit_compile.encoder import encoders
from streamsplit_compile.encoder.encoders import (
    is_untrained,
    list_encoders,
    load_encoder,
    new_encoder,
    read_tensors,
    save_checkpoint,
)

pytestmark = pytest.mark.integration


class Pickled(nn.Module):
    """Unpickling it writes a file."""

    def __init__(self, path):
        super().__init__()
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "mobile.pt"
    config = {"embedding_dim": 16, "seed": 5}
    save_checkpoint("mobilenet_v3_small", config, new_encoder("mobilenet_v3_small", config)[0], path)
    return path


def write(path, content):
    torch.save(content, path)
    return path


def test_every_registered_encoder_is_listed_and_has_a_factory():
    listed = list_encoders()
    assert {"resnet18", "mobilenet_v3_small", "mn", "efficientnet_b0"} <= listed.keys()
    for point in entry_points(group="streamsplit.encoders"):
        assert listed[point.name] == point.value
        assert callable(point.load())


def test_a_checkpoint_gives_the_same_encoder_back(checkpoint):
    encoder = load_encoder(checkpoint)
    module, config = new_encoder("mobilenet_v3_small", {"embedding_dim": 16, "seed": 5})
    waveform = torch.rand(2, 16000)
    with torch.inference_mode():
        assert torch.equal(encoder.graph.module(waveform), module(waveform))
    assert (encoder.id, encoder.config, encoder.embedding_dim) == ("mobilenet_v3_small", config, 16)
    assert (encoder.sample_rate, encoder.window_samples) == (16000, 16000)
    assert encoder.front_end["n_mels"] == 128


def test_saving_twice_gives_the_same_bytes(checkpoint, tmp_path):
    config = {"embedding_dim": 16, "seed": 5}
    again = tmp_path / "mobile.pt"
    save_checkpoint("mobilenet_v3_small", config, new_encoder("mobilenet_v3_small", config)[0], again)
    assert again.read_bytes() == checkpoint.read_bytes()


def test_weights_are_those_of_the_file_not_of_a_fresh_encoder(tmp_path):
    module, _ = new_encoder("mobilenet_v3_small", {"embedding_dim": 16})
    with torch.no_grad():
        module.projection.bias += 1
    save_checkpoint("mobilenet_v3_small", {"embedding_dim": 16}, module, tmp_path / "encoder.pt")
    encoder = load_encoder(tmp_path / "encoder.pt")
    assert np.array_equal(encoder.tensors["projection.bias"], module.projection.bias.detach().numpy())
    assert encoder.tensors.keys() == module.state_dict().keys()


def test_a_state_dict_needs_its_factory(tiny_file, tiny_encoder):
    assert tiny_encoder.id == "toys:Tiny"
    assert (tiny_encoder.sample_rate, tiny_encoder.window_samples) == (4000, 1024)
    with pytest.raises(FormatError, match=r'field "format" is None, expected .* name its code with --factory'):
        load_encoder(tiny_file)


def test_a_state_dict_may_lie_inside_a_training_checkpoint(tmp_path, tiny_encoder):
    path = write(tmp_path / "last.pt", {"epoch": 3, "state_dict": Tiny(seed=2).state_dict()})
    found = load_encoder(path, "toys:Tiny")
    assert np.array_equal(found.tensors["head.bias"], Tiny(seed=2).head.bias.detach().numpy())


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("toys", "expected package.module:callable"),
        ("toys:", "expected package.module:callable"),
        (":Tiny", "expected package.module:callable"),
        ("", "expected package.module:callable"),
        ("no_such_module:Tiny", "No module named 'no_such_module'"),
        ("toys:NoSuch", "no attribute 'NoSuch'"),
        ("toys:not_a_module", "its factory returned str, not a torch module"),
        ("toys:broken", "no such size"),
        ("toys:unit", "does not accept config"),
        ("toys:__doc__", "does not accept config"),
    ],
)
def test_a_factory_that_gives_no_module_is_refused(tiny_file, factory, message):
    with pytest.raises(UsageError, match=message) as caught:
        load_encoder(tiny_file, factory)
    assert "\n" not in str(caught.value)


def test_a_state_dict_that_does_not_fit_is_refused_in_one_line(tmp_path):
    for state, said in (
        (nn.Linear(3, 3).state_dict(), "its weights are called 'weight' and so on, the encoder's 'stem"),
        ({}, "holds no tensors"),
        ({"stem.0.weight": 3}, r"holds no tensors \(fields: stem.0.weight\)"),
        ({1: torch.zeros(1)}, "its weights are called '1' and so on"),
        ({"head.bias": None}, r"holds no tensors \(fields: head.bias\)"),
        ({"head.bias": torch.zeros(1)}, 'field "state_dict" does not fit the encoder: '),
    ):
        path = write(tmp_path / "other.pt", state)
        with pytest.raises(FormatError, match=rf"other\.pt: {said}") as caught:
            load_encoder(path, "toys:Tiny")
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "streamsplit.encoder/2"}, 'field "format" is .streamsplit.encoder/2'),
        ({"format": None}, 'field "format" is None'),
        ({"encoder": 5}, 'field "encoder" is missing or not a str'),
        ({"encoder": "vgg"}, "field \"encoder\": unknown encoder 'vgg'; registered: "),
        ({"config": [1]}, 'field "config" is missing or not a dict'),
        ({"config": {"depth": 9}}, "does not accept config"),
        ({"config": {"embedding_dim": -1}}, "embedding_dim is -1"),
        ({"config": {1: 2}}, "does not accept config"),
        ({"config": {"embedding_dim": torch.tensor(16)}}, 'field "config": .* only what JSON can hold'),
        ({"config": {"seed": torch.tensor(1)}}, 'field "config": .* only what JSON can hold'),
        ({"state_dict": None}, 'field "state_dict" is missing or not a dict'),
        ({"state_dict": {}}, 'field "state_dict" does not fit'),
        ({"state_dict": {"projection.bias": "text"}}, 'field "state_dict" does not fit'),
    ],
)
def test_a_checkpoint_with_a_wrong_field_is_refused_by_field(tmp_path, checkpoint, change, message):
    content = torch.load(checkpoint, weights_only=True)
    path = write(tmp_path / "wrong.pt", {**content, **change})
    with pytest.raises(FormatError, match=message) as caught:
        load_encoder(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), "text", None, 5])
def test_a_file_that_holds_something_else_is_refused(tmp_path, content):
    with pytest.raises(FormatError, match="expected a checkpoint"):
        load_encoder(write(tmp_path / "other.pt", content))


def test_a_pickled_module_is_refused_without_executing_it(tmp_path):
    mark = tmp_path / "executed"
    for content, said in (
        (Pickled(mark), r"a pickled module is refused because .* \(--unsafe-load\)"),
        ({"state_dict": Pickled(mark)}, "holds more than tensors.* keep its state_dict alone"),
        ({"format": encoders.CHECKPOINT_FORMAT, "x": Pickled(mark)}, "holds more than tensors"),
    ):
        path = write(tmp_path / "pickled.pt", content)
        for factory in (None, "toys:Tiny"):
            with pytest.raises(FormatError, match=said):
                load_encoder(path, factory)
        with pytest.raises(FormatError):
            read_tensors(path)
        assert not mark.exists()


def test_a_pickled_module_is_read_when_the_user_insists(tmp_path):
    module = Tiny(seed=3)
    path = write(tmp_path / "module.pt", module)
    with pytest.raises(FormatError, match="--unsafe-load"):
        load_encoder(path)
    encoder = load_encoder(path, unsafe=True)
    assert (encoder.id, encoder.window_samples) == ("module", 1024)
    assert np.array_equal(encoder.tensors["head.bias"], module.head.bias.detach().numpy())


def test_what_is_no_zip_file_is_refused(tmp_path):
    path = tmp_path / "encoder.pt"
    for data in (b"text", b"\x81\x02.", b"\1" * 5000):
        path.write_bytes(data)
        with pytest.raises(FormatError, match=r"encoder\.pt: .*neither a checkpoint nor a torch\.export archive"):
            load_encoder(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "<xml/>")
    with pytest.raises(FormatError, match=r"encoder\.pt: a zip archive without a checkpoint"):
        load_encoder(path)


def test_a_checkpoint_with_its_weights_in_an_unknown_field_names_the_fields(tmp_path):
    weights = {"fc.weight": torch.zeros(2)}
    torch.save({"epoch": 3, "net": weights, "ema": weights}, tmp_path / "net.pt")
    with pytest.raises(FormatError, match=r"net\.pt: holds no tensors \(fields: epoch, net, ema\)"):
        read_tensors(tmp_path / "net.pt")


def test_a_part_of_a_zip_archive_of_several_is_refused_by_name(checkpoint, tmp_path):
    path, whole = tmp_path / "encoder.pt", checkpoint.read_bytes()
    end = whole.rindex(b"PK\x05\x06")
    before_the_end = b"PK\x06\x07" + bytes(12) + (2).to_bytes(4, "little")  # a locator that speaks of two disks
    path.write_bytes(whole[:end] + before_the_end + whole[end:])
    with pytest.raises(FormatError, match=r"encoder\.pt: cut short after \d+ bytes; get it again"):
        load_encoder(path)


def test_a_download_that_was_cut_short_is_named_with_its_length(checkpoint, tmp_path):
    path = tmp_path / "encoder.pt"
    path.write_bytes(checkpoint.read_bytes()[:5000])
    for read in (load_encoder, read_tensors):
        with pytest.raises(FormatError, match=r"encoder\.pt: cut short after 5000 bytes; get it again"):
            read(path)


def legacy(path, content):
    """A checkpoint as PyTorch wrote them before 1.6."""
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path.read_bytes()


def test_a_checkpoint_of_before_1_6_is_read_and_named_when_it_is_cut(tmp_path):
    path, state = tmp_path / "old.pt", Tiny(seed=2).state_dict()
    data = legacy(path, {"state_dict": state})
    assert np.array_equal(load_encoder(path, "toys:Tiny").tensors["head.bias"], state["head.bias"].numpy())
    assert read_tensors(path).keys() == state.keys()
    for size in (20, 60, 300, 900, len(data) // 2, len(data) - 4):
        path.write_bytes(data[:size])
        for read in (lambda path: load_encoder(path, "toys:Tiny"), read_tensors):
            with pytest.raises(FormatError, match=rf"old\.pt: cut short after {size} bytes; get it again"):
                read(path)


def test_a_pickled_module_of_before_1_6_is_refused_or_named_when_it_is_cut_within_its_pickle(tmp_path):
    path = tmp_path / "old.pt"
    data = legacy(path, Tiny())
    with pytest.raises(FormatError, match=r"a pickled module is refused because .* \(--unsafe-load\)"):
        load_encoder(path)
    path.write_bytes(data[:400])
    with pytest.raises(FormatError, match=r"old\.pt: cut short after 400 bytes; get it again"):
        load_encoder(path)


@pytest.mark.parametrize("field", ["model", "state_dict", "ema", "net"])
def test_weights_of_a_training_run_are_taken_out_of_their_wrappers(tmp_path, tiny_encoder, field):
    state = Tiny(seed=2).state_dict()
    path = write(tmp_path / "last.pt", {"epoch": 3, field: {f"module.{name}": each for name, each in state.items()}})
    assert np.array_equal(load_encoder(path, "toys:Tiny").tensors["head.bias"], state["head.bias"].numpy())
    assert read_tensors(path).keys() == state.keys()
    with pytest.raises(FormatError, match=f"here in field '{field}'. name its code with --factory"):
        load_encoder(path)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_wrappers_within_wrappers_are_taken_off_and_of_two_sets_of_weights_none_is_chosen(tmp_path, prefix):
    state = Tiny(seed=2).state_dict()
    named = {prefix + name: each for name, each in state.items()}
    path = write(tmp_path / "last.pt", {"model": {"state_dict": named}, "optimizer": {"state": {}}})
    assert np.array_equal(load_encoder(path, "toys:Tiny").tensors["head.bias"], state["head.bias"].numpy())
    path = write(tmp_path / "last.pt", {"teacher": named, "student": named})
    with pytest.raises(FormatError, match=r"holds no tensors \(fields: teacher, student\)"):
        load_encoder(path, "toys:Tiny")
    path = write(tmp_path / "last.pt", {f"encoder.{name}": each for name, each in state.items()})
    with pytest.raises(FormatError, match=r"its weights are called 'encoder\.\S+' and so on, the encoder's 'stem"):
        load_encoder(path, "toys:Tiny")


def test_what_is_no_file_is_refused(tmp_path):
    for path, said in (
        (tmp_path, "a directory, expected a file"),
        (tmp_path / "missing.pt", "no such file; start with `ssc encoder new"),
    ):
        with pytest.raises(UsageError, match=f"{path}: {said}"):
            load_encoder(path)
        with pytest.raises(UsageError, match="no such file"):
            read_tensors(path)


def test_truncated_checkpoints_are_refused(checkpoint, tmp_path):
    data, path = checkpoint.read_bytes(), tmp_path / "short.pt"
    for length in (1, 1000, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(FormatError, match=r"short\.pt: "):
            load_encoder(path)


def test_damaged_checkpoints_are_refused_or_hold_tensors(tiny_file, tmp_path):
    rng, data, path = random.Random(0), tiny_file.read_bytes(), tmp_path / "damaged.pt"
    refused = 0
    for _ in range(300):
        changed = bytearray(data)
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        try:
            read_tensors(path)
        except FormatError as error:
            refused += 1
            message = str(error)
            assert "\n" not in message, message
    assert refused > 20


def test_weights_are_read_without_an_encoder(checkpoint, tiny_file):
    assert read_tensors(checkpoint).keys() == load_encoder(checkpoint).tensors.keys()
    assert read_tensors(tiny_file).keys() == Tiny().state_dict().keys()


@pytest.mark.parametrize("content", [{}, {"state_dict": {}}, {"state_dict": 5}, {"a": 1}, [1]])
def test_a_file_without_weights_is_refused(tmp_path, content):
    with pytest.raises(FormatError, match=r"empty\.pt: "):
        read_tensors(write(tmp_path / "empty.pt", content))


@pytest.mark.skipif(find_spec("transformers") is not None, reason="transformers is installed")
def test_an_encoder_that_needs_a_missing_library_is_refused_in_one_line():
    with pytest.raises(MissingExtra, match=r"transformers is not installed: pip install .*\[transformers\]"):
        new_encoder("ast")


def test_an_unknown_encoder_is_refused_with_those_there_are():
    with pytest.raises(UsageError, match=r"unknown encoder 'vgg'; registered: .*resnet18"):
        new_encoder("vgg")


@pytest.mark.parametrize("pickled", [False, True])
def test_code_is_found_in_the_working_directory_and_the_path_is_left_as_it_was(tmp_path, monkeypatch, pickled):
    name = f"found_only_here_{pickled}"
    (tmp_path / f"{name}.py").write_text("import toys\nclass Net(toys.Tiny):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    network = importlib.import_module(name).Net()
    torch.save(network if pickled else network.state_dict(), tmp_path / "net.pt")
    monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(tmp_path)])
    before = list(sys.path)

    monkeypatch.chdir(tmp_path)
    found = load_encoder(tmp_path / "net.pt", None if pickled else f"{name}:Net", unsafe=pickled)

    assert found.tensors.keys() == Tiny().state_dict().keys()
    assert sys.path == before
    sys.modules.pop(name)


@pytest.mark.parametrize(
    ("recorded", "given", "asked"),
    [
        (LoadOptions(factory="toys:Tiny"), {}, "--factory toys:Tiny"),
        (LoadOptions(factory="toys:Tiny", sample_rate=8000), {"factory": "toys:Tiny"}, "--factory toys:Tiny --sample"),
        (LoadOptions(unsafe_load=True), {}, "--unsafe-load"),
    ],
)
def test_options_that_a_bundle_was_compiled_with_are_asked_for_again(tiny_file, recorded, given, asked):
    with pytest.raises(UsageError, match=f"the bundle was compiled with {asked}.*give the same here"):
        load_encoder(tiny_file, **given, recorded=recorded)


def test_nothing_is_imported_or_unpickled_on_a_bundles_word(tmp_path):
    marker = tmp_path / "marker"
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w')")
    path = write(tmp_path / "net.pt", Pickled(marker))
    for recorded in (LoadOptions(factory="evil:Net"), LoadOptions(unsafe_load=True)):
        with pytest.raises(UsageError, match="the bundle was compiled with"):
            load_encoder(path, recorded=recorded)
    assert "evil" not in sys.modules
    assert not marker.exists()


def test_an_encoder_says_which_options_it_was_read_with(tiny_file, checkpoint):
    assert load_encoder(tiny_file, "toys:Tiny").load == LoadOptions(factory="toys:Tiny")
    assert load_encoder(tiny_file, "toys:Tiny", recorded=LoadOptions(factory="toys:Tiny")).id == "toys:Tiny"
    assert load_encoder(checkpoint).load is None


def test_only_what_encoder_new_makes_of_nothing_is_marked_as_untrained(checkpoint, tiny_encoder, tmp_path):
    main(["encoder", "new", "mobilenet_v3_small", "-o", str(tmp_path / "new.pt"), "--config", '{"embedding_dim": 16}'])
    assert load_encoder(tmp_path / "new.pt").untrained
    assert not load_encoder(checkpoint).untrained
    assert not tiny_encoder.untrained
    assert not is_untrained("ast", {"directory": "ast/"})
    assert is_untrained("ast", {})
