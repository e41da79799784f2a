"""Finds the weights in a file, also inside a training program's wrappers, or says what the file is instead."""

from __future__ import annotations

import codecs
import contextlib
import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch

from runtime_edge.audio.files.recognise import recognised
from runtime_edge.errors import FormatError, MissingExtra

_FIRST_BYTES = 1 << 10
_WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Fields in which training programs keep the weights, beside the optimizer's state."""
_COMPRESSED = (b"\x1f\x8b\x08", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf", b"Rar!\x1a\7")
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The first pickle of a checkpoint from PyTorch before 1.6: a magic number."""
_LEGACY_PICKLES = 5
"""Magic number, version, machine, the content without its tensors, and the order of the tensors."""
_LEGACY_CONTENT = 3
_PICKLES = (b"\x80\2", b"\x80\3", b"\x80\4", b"\x80\5", b"(d", b"(l", b"c__", b"ccopy_reg\n")
_LENGTH = rb"[\x80-\xff]{0,4}[\0-\x7f]"
_OTHERS = (
    (rb"\x08[\x01-\x20]\x12" + _LENGTH + rb"(\n" + _LENGTH + rb"\n|\xa2\x06)", "a Core ML model"),
    (rb"\x08\x01\x12" + _LENGTH + rb"\n" + _LENGTH + rb"[\x12\x1a\x22]", "a TensorFlow SavedModel"),
    (rb"\n" + _LENGTH + rb"\n" + _LENGTH + rb"[\w./-]+\x12" + _LENGTH + rb"[A-Z]\w+", "a TensorFlow graph"),
    (rb"\x08[\x01-\x20][\x12\x1a\x22\x28\x32\x3a\x42]", "an ONNX model"),
)
"""Protobuf models by the bytes of their first fields: the format's version and the model's next field, or its nodes."""
_MSGPACK = re.compile(rb"([\x81-\x8f]|\xde..|\xdf....)([\xa1-\xbf]|\xd9.)[\w./:-]", re.DOTALL)
"""The start of a msgpack map whose first key is text."""
_TORCH = "encoders are torch modules"
_FOLDERS = (
    ("Data/com.apple.CoreML", "a Core ML package"),
    ("coremldata.bin", "a compiled Core ML model"),
    ("saved_model.pb", "a TensorFlow SavedModel"),
    ("keras_metadata.pb", "a Keras model"),
)
"""Models of other runtimes that are folders, by a file in the folder."""
_SAFETENSORS_HEADER = 100_000_000
"""The longest header, in bytes, that safetensors readers admit."""
_HDF5 = b"\x89HDF\r\n\x1a\n"
_TAR_MARK, _ANNEX = 257, 64
_MODELS = (
    (0, b"GGUF", "a GGUF model"),
    (0, b"GGML", "a GGML model"),
    (0, b"lmgg", "a GGML model"),
    (0, b"tjgg", "a GGML model"),
    (0, b"fmgg", "a GGML model"),
    (0, b"algg", "a GGML model"),
    (4, b"TFL3", "a TFLite model"),
    (4, b"ET12", "an ExecuTorch program"),
    (0, b"RKNN", "an RKNN model"),
    (0, b"ftrt", "a TensorRT engine"),
    (0, b"7767517", "an ncnn model"),
)
"""Models of other runtimes, by the offset and value of their identifying bytes."""
_EXPORT = "export its torch module with torch.export.save(torch.export.export(module, (waveform,)), 'encoder.pt')"
_KEEP = "keep its state_dict alone with torch.save where you trust it"
_OPCODES_BEFORE = ("PROTO", "FRAME", "MARK", "BINPUT", "MEMOIZE", "PUT")
_PREFIXES = ("module.", "_orig_mod.")
"""Prefixes that DataParallel and torch.compile add to the names of tensors."""


def mistaken(path: Path) -> str:
    """What a file is if it is no checkpoint, and what to do; empty if it may be a checkpoint. Raises OSError."""
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(_FIRST_BYTES)
    if not first:
        return "an empty file; get it again"
    if not first.strip(b"\0"):
        return f"begins with {len(first)} zeros, as a download does that was broken off; get it again"
    if first.startswith((b"version https://git-lfs", b"version https://hawser")):
        return "a Git LFS pointer, not the file it stands for; fetch that with `git lfs pull`"
    if b"/annex/objects/" in first[:_ANNEX]:
        return "a pointer of git-annex, not the file it stands for; fetch that with `git annex get`"
    text = first.removeprefix(codecs.BOM_UTF8).lstrip().lower()
    if b"<net " in text:
        return f"an OpenVINO model, whose layers cannot be taken apart; {_EXPORT}"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, not the file it leads to; download that"
    if text.startswith((b"{", b"[")):
        return "JSON, perhaps what a server answered instead of the file; get it again"
    if first.startswith(_COMPRESSED) or first[_TAR_MARK:].startswith(b"ustar"):
        return "compressed or a collection of files; unpack it first"
    for place, mark, name in _MODELS:
        if first.startswith(mark, place):
            return f"{name}, whose layers cannot be taken apart; {_EXPORT}"
    for fields, name in _OTHERS:
        if re.match(fields, first, re.DOTALL):
            return f"{name}, whose layers cannot be taken apart; {_EXPORT}"
    if first.startswith(_HDF5):
        return f"HDF5, as Keras writes its models; {_TORCH}"
    if _MSGPACK.match(first):
        return f"MessagePack, as Flax writes its weights; {_TORCH}"
    if (first.startswith(b"PK") and not is_zip(path)) or (is_legacy(path) and _ends_in_a_pickle(path)):
        return f"cut short after {size} bytes; get it again"
    if is_zip(path):
        return _zipped(path)
    if first.startswith(_PICKLES) and not is_legacy(path):
        return f"a pickle that torch.save did not write, which is never unpickled here; {_KEEP}"
    kind = recognised(first) or ("text" if size < _FIRST_BYTES and first.isascii() and b"\0" not in first else None)
    return "" if kind is None else f"{kind}, and neither a checkpoint nor a torch.export archive"


def mistaken_folder(path: Path) -> str:
    """What a folder given as a checkpoint is, and what to do."""
    name = next((name for mark, name in _FOLDERS if (path / mark).exists()), "")
    if name:
        return f"{name}, whose layers cannot be taken apart; {_EXPORT}"
    return "a directory, expected a file; for one of `transformers` see `ssc encoder new --help`"


def _zipped(path: Path) -> str:
    """What a zip archive is if torch.save did not write it; empty if it may have."""
    try:
        names = entry_names(path)
    except ValueError as exc:
        return f"damaged ({exc}); get it again"
    inner = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inner:
        return f"a TorchScript archive, which only runs as a whole; {_EXPORT}"
    if "data.pkl" in inner:
        return ""
    if names and all(name.endswith(".npy") for name in names):
        return "arrays of NumPy (.npz); keep them as tensors in a dictionary with torch.save"
    if "model.weights.h5" in names:
        return f"a Keras model; {_TORCH}"
    for mark, name in _FOLDERS:
        if any(f"/{member}".endswith(f"/{mark}") or f"/{mark}/" in f"/{member}" for member in names):
            return f"{name} in a zip archive, whose layers cannot be taken apart; {_EXPORT}"
    return "a zip archive without a checkpoint; unpack it first"


def is_safetensors(path: Path) -> bool:
    """Whether a file begins like safetensors: a length, then a JSON header of that length. Raises OSError."""
    with path.open("rb") as file:
        head = file.read(10)
    return head[8:] == b'{"' and int.from_bytes(head[:8], "little") <= _SAFETENSORS_HEADER


def read_safetensors(path: Path) -> dict[str, Any]:
    """The tensors of a safetensors file, by name. Raises MissingExtra or FormatError."""
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise MissingExtra("safetensors", "transformers") from None
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as exc:
        reason = " ".join(str(exc).split())
        raise FormatError(f"{path}: safetensors that cannot be read ({reason}); get it again") from None


def more_than_tensors(path: Path) -> str:
    """The message for a pickle with classes other than those of tensors: a module, or a checkpoint with settings.

    Nothing is loaded; only the pickle's operations are read.
    """
    if _begins_with_a_dictionary(path):
        return f"holds more than tensors, such as a training program's settings, and is not unpickled; {_KEEP}"
    return "a pickled module is refused because loading it runs its code (--unsafe-load)"


def _begins_with_a_dictionary(path: Path) -> bool:
    """Whether a checkpoint's content is a dictionary; False if it is damaged or encrypted."""
    try:
        first = next((name for name in _operations(path) if name not in _OPCODES_BEFORE), "")
    except (OSError, ValueError, LookupError, RuntimeError, zipfile.BadZipFile):
        return False
    return first in ("EMPTY_DICT", "DICT")


def _operations(path: Path) -> Iterator[str]:
    """Names of the operations in the pickle that describes a checkpoint's content."""
    with contextlib.ExitStack() as closing:
        if is_legacy(path):
            file: IO[bytes] = closing.enter_context(path.open("rb"))
            for _ in range(_LEGACY_CONTENT):
                for _ in pickletools.genops(file):
                    pass
        else:
            archive = closing.enter_context(zipfile.ZipFile(path))
            (name,) = (name for name in archive.namelist() if name.partition("/")[2] == "data.pkl")
            file = closing.enter_context(archive.open(name))
        for opcode, _, _ in pickletools.genops(file):
            yield opcode.name


def is_legacy(path: Path) -> bool:
    """Whether a file begins like a checkpoint from PyTorch before 1.6, not a zip archive. Raises OSError."""
    with path.open("rb") as file:
        return file.read(len(_LEGACY)) == _LEGACY


def _ends_in_a_pickle(path: Path) -> bool:
    """Whether a checkpoint from before 1.6 is cut short before its tensors. Only the pickles' operations are read."""
    with path.open("rb") as file:
        try:
            for _ in range(_LEGACY_PICKLES):
                for _ in pickletools.genops(file):
                    pass
        except (ValueError, IndexError):
            return True
    return False


def is_zip(path: Path) -> bool:
    """Whether a file ends like a zip archive that is not one of several parts. Raises OSError."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        return False


def entry_names(path: Path) -> list[str]:
    """The names in a zip archive. Raises ValueError if it is damaged or cannot be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, OSError, NotImplementedError) as exc:
        raise ValueError(str(exc)) from None


def unwrapped(content: dict[str, Any]) -> Any:
    """The state_dict in a checkpoint, without the wrappers of training programs, DataParallel and torch.compile."""
    state: Any = content
    while isinstance(state, dict) and (field := wrapper(state)) is not None:
        state = state[field]
    while prefix := next((prefix for prefix in _PREFIXES if _all_begin(state, prefix)), ""):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _all_begin(state: Any, prefix: str) -> bool:
    return bool(state) and all(isinstance(name, str) and name.startswith(prefix) for name in state)


def wrapper(content: dict[str, Any]) -> str | None:
    """The field of a checkpoint that holds its weights; None if they are at the top, or if several fields qualify."""
    if known := next((field for field in _WRAPPERS if isinstance(content.get(field), dict)), None):
        return known
    if any(isinstance(value, torch.Tensor) for value in content.values()):
        return None
    filled = [field for field, value in content.items() if isinstance(value, dict) and _is_state(value)]
    return filled[0] if len(filled) == 1 else None


def _is_state(content: dict[Any, Any]) -> bool:
    """Whether this is a dictionary of a module's tensors by name."""
    return (
        bool(content)
        and all(isinstance(name, str) for name in content)
        and any(isinstance(value, torch.Tensor) for value in content.values())
    )
