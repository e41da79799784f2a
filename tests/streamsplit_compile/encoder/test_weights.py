"""What stands in a file of weights is named, and nothing of it is unpickled."""

import argparse
import gzip
import io
import tarfile
import warnings
import zipfile

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file
from toys import Tiny

from runtime_edge.errors import FormatError, SscError
from streamsplit_compile.encoder.encoders import load_encoder, read_tensors

PICKLE_0 = b"(dp0\nVa\np1\n(lp2\nI0\nas."
PICKLE_4 = b"\x80\x04\x95\r\x00\x00\x00\x00\x00\x00\x00}\x94\x8c\x01a\x94]\x94K\x00as."
"""Of {"a": [0]}, as Python's own library writes it."""
SETTINGS = argparse.Namespace(lr=1e-3)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "a Git LFS pointer.*git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (b"\xef\xbb\xbf<!doctype HTML>", "a web page"),
        (b'{"message": "Not Found"}', "JSON, perhaps what a server answered"),
        (gzip.compress(b"weights", mtime=0), "compressed or .* unpack it first"),
        (b"_\x00rest of a file whose beginning is missing", "n(either|ot) a checkpoint"),
        (b'\x10\0\0\0\0\0\0\0{"a":{}}', "safetensors that cannot be read .* get it again"),
        (bytes(5000), "begins with 1024 zeros, .* get it again"),
        (PICKLE_4, "a pickle that torch.save did not write.* keep its state_dict alone"),
        (PICKLE_0, "a pickle that torch.save did not write"),
        (b"\x08\x08\x12\x07pytorch" + bytes(50), "an ONNX model, .*torch.export.save"),
        (onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [])).SerializeToString(), "an ONNX model, "),
        (b"\x08\x08\x12\xb0\x02\n\x1e\n\x05audio\x1a\x15\x2a\x13" + bytes(50), "a Core ML model, .*torch.export.save"),
        (b"\x08\x01\x12\x09\n\x07\n\x01x\x1a\x02\x1a\0", "a Core ML model, "),
        (b"\x08\x05\x12\x06\xa2\x06\x03\n\x01x", "a Core ML model, "),
        (
            b"\x08\x01\x12\xff\xff\x03\n\xd2\x05\x12\xcc\x05\n" + bytes(50),
            "a TensorFlow SavedModel, .*torch.export.save",
        ),
        (b"\n\x29\n\x05input\x12\x0bPlaceholder*\x0b" + bytes(50), "a TensorFlow graph, .*torch.export.save"),
        (b"\x83\xa6params\x81\xa5Dense" + bytes(50), "MessagePack, as Flax writes its weights"),
        (b"\xde\x00\x20\xd9\x28text_model/encoder" + bytes(50), "MessagePack, as Flax writes its weights"),
        (b"\x1c\0\0\0TFL3" + bytes(50), "a TFLite model.*torch.export.save"),
        (b"GGUF\3\0\0\0" + bytes(50), "a GGUF model, .*torch.export.save"),
        (b"lmgg" + bytes(range(200)), "a GGML model, .*torch.export.save"),
        (b"\x1c\0\0\0ET12" + bytes(50), "an ExecuTorch program, .*torch.export.save"),
        (b"RKNN" + bytes(range(200)), "an RKNN model, .*torch.export.save"),
        (b"ftrt" + bytes(range(200)), "a TensorRT engine, .*torch.export.save"),
        (b"7767517\n83 94\nInput data 0 1 data\n", "an ncnn model, .*torch.export.save"),
        (b'<?xml version="1.0"?>\n<net name="torch" version="11">', "an OpenVINO model, .*torch.export.save"),
        (b"404: Not Found\n", "text, and neither a checkpoint nor"),
        (b"/annex/objects/SHA256E-s100--00.pt\n", "a pointer of git-annex, .*git annex get"),
        (b"\x89HDF\r\n\x1a\n" + bytes(50), "HDF5, as Keras writes its models"),
    ],
)
def test_what_is_no_checkpoint_at_all_is_named_and_no_unsafe_switch_is(tmp_path, data, what):
    path = tmp_path / "encoder.pt"
    path.write_bytes(data)
    for read in (load_encoder, read_tensors):
        with pytest.raises(FormatError, match=f"encoder.pt: {what}") as caught:
            read(path)
        assert "unsafe" not in str(caught.value)


@pytest.mark.parametrize(
    ("mark", "what"),
    [
        ("Data/com.apple.CoreML/model.mlmodel", "a Core ML package"),
        ("coremldata.bin", "a compiled Core ML model"),
        ("saved_model.pb", "a TensorFlow SavedModel"),
    ],
)
@pytest.mark.parametrize("root", ["", "encoder/"])
def test_a_folder_of_another_runtime_is_named_and_so_is_one_in_a_zip_archive(tmp_path, mark, what, root):
    file = tmp_path / "encoder" / mark
    file.parent.mkdir(parents=True)
    file.write_bytes(b"\x08\x05")
    archive = tmp_path / "encoder.pt"
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.write(file, root + mark)
    for path in (tmp_path / "encoder", archive):
        with pytest.raises(SscError, match=f"{what}.*torch.export.save"):
            load_encoder(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_checkpoint_of_a_training_program_with_its_settings_is_no_module_to_be_unpickled(tmp_path, legacy):
    path = tmp_path / "last.ckpt"
    content = {"epoch": 3, "state_dict": Tiny().state_dict(), "hyper_parameters": SETTINGS}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    for read in (load_encoder, read_tensors):
        with pytest.raises(FormatError, match=r"holds more than tensors.* keep its state_dict alone") as caught:
            read(path)
        assert "unsafe" not in str(caught.value)


def test_safetensors_are_read_with_their_code(tmp_path):
    state = Tiny(seed=2).state_dict()
    path = tmp_path / "model.safetensors"
    save_file({name: each.contiguous() for name, each in state.items()}, path)

    assert np.array_equal(load_encoder(path, "toys:Tiny").tensors["head.bias"], state["head.bias"].numpy())
    assert read_tensors(path).keys() == state.keys()
    with pytest.raises(FormatError, match="name its code with --factory"):
        load_encoder(path)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_safetensors_that_are_cut_are_refused_in_one_line(tmp_path, share):
    path = tmp_path / "model.safetensors"
    save_file({"fc.weight": torch.zeros(100, 100)}, path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(FormatError, match=r"model\.safetensors: safetensors that cannot be read .*get it again$"):
        load_encoder(path, "toys:Tiny")


def test_a_torchscript_archive_is_named(tmp_path):
    path = tmp_path / "scripted.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is said to be of the past
        torch.jit.trace(torch.nn.ReLU(), torch.zeros(1, 4)).save(path)
    with pytest.raises(FormatError, match=r"scripted\.pt: a TorchScript archive.*torch\.export\.save"):
        load_encoder(path)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("fc.weight.npy", r"arrays of NumPy \(\.npz\)"),
        ("model.weights.h5", "a Keras model"),
        ("pytorch_model.bin", "a zip archive without a checkpoint; unpack it first"),
    ],
)
def test_a_zip_archive_of_something_else_is_named(tmp_path, name, what):
    path = tmp_path / "weights.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, bytes(100))
    for read in (load_encoder, read_tensors):
        with pytest.raises(FormatError, match=rf"weights\.zip: {what}"):
            read(path)


def test_a_tar_archive_is_to_be_unpacked(tmp_path):
    path = tmp_path / "weights.tar"
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("pytorch_model.bin"), io.BytesIO())
    with pytest.raises(FormatError, match=r"weights\.tar: .* unpack it first"):
        load_encoder(path)
