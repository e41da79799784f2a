"""What stands in a file of weights: those of a training run inside their wrappers, or no weights at all."""

from __future__ import annotations

import codecs
import pickletools
import zipfile
from pathlib import Path
from typing import Any

_FIRST_BYTES = 64
_WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Fields under which training programs keep the weights, beside the optimizer's state."""
_COMPRESSED = (b"\x1f\x8b\x08", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The first pickle of a checkpoint of PyTorch before 1.6: a number."""
_LEGACY_PICKLES = 5
"""The number, a version, the machine, the content without its tensors, and the tensors' order."""
_PARALLEL = "module."
"""What DataParallel puts before the name of each tensor."""


def mistaken(path: Path) -> str:
    """What a file is that was taken for a checkpoint, and what to do; empty for what may be one. Raises OSError."""
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(_FIRST_BYTES)
    if not first:
        return "an empty file; get it again"
    if first.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file it stands for; fetch that with `git lfs pull`"
    text = first.removeprefix(codecs.BOM_UTF8).lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, not the file it leads to; download that"
    if text.startswith((b"{", b"[")):
        return "JSON, perhaps what a server answered instead of the file; get it again"
    if first.startswith(_COMPRESSED):
        return "compressed; unpack it first"
    if first[8:10] == b'{"':
        return "a safetensors file; load it with safetensors.torch.load_file and keep it with torch.save"
    if (first.startswith(b"PK") and not is_zip(path)) or (is_legacy(path) and _ends_in_a_pickle(path)):
        return f"cut short after {size} bytes; get it again"
    return ""


def is_legacy(path: Path) -> bool:
    """Whether a file begins as the checkpoints of PyTorch before 1.6, which were no zip archives. Raises OSError."""
    with path.open("rb") as file:
        return file.read(len(_LEGACY)) == _LEGACY


def _ends_in_a_pickle(path: Path) -> bool:
    """Whether a checkpoint of before 1.6 is cut before its tensors. Nothing is loaded, its pickles are only walked."""
    with path.open("rb") as file:
        try:
            for _ in range(_LEGACY_PICKLES):
                for _ in pickletools.genops(file):
                    pass
        except (ValueError, IndexError):
            return True
    return False


def is_zip(path: Path) -> bool:
    """Whether a file ends as a zip archive does; one that says it is a part of several is none. Raises OSError."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        return False


def unwrapped(content: dict[str, Any]) -> Any:
    """The state_dict in a checkpoint: the wrappers of training programs and of DataParallel are taken off."""
    field = wrapper(content)
    state: Any = content if field is None else content[field]
    if state and all(isinstance(name, str) and name.startswith(_PARALLEL) for name in state):
        return {name.removeprefix(_PARALLEL): value for name, value in state.items()}
    return state


def wrapper(content: dict[str, Any]) -> str | None:
    """In which field of a checkpoint its weights stand; None when they stand at the top."""
    return next((field for field in _WRAPPERS if isinstance(content.get(field), dict)), None)
