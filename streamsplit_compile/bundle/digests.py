"""Digests that identify weights: one for every tensor, and one for any set of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

Tensors = Mapping[str, npt.NDArray[Any]]
Digests = Mapping[str, bytes]
"""The digest of each tensor, by name."""


def tensor_digests(tensors: Tensors) -> Digests:
    """SHA-256 of each tensor's dtype, shape and values, computed on all processors."""
    with ThreadPoolExecutor() as pool:
        return dict(zip(tensors, pool.map(_digest, tensors.values()), strict=True))


def combined_digest(digests: Digests, names: Iterable[str]) -> str:
    """`sha256:<hex>` over names and digests, in name order. Raises KeyError for a name without a digest."""
    combined = hashlib.sha256()
    for name in sorted(names):
        combined.update(name.encode() + b"|" + digests[name])
    return f"sha256:{combined.hexdigest()}"


def weights_digest(tensors: Tensors) -> str:
    """`sha256:<hex>` over names, dtypes, shapes and values."""
    return combined_digest(tensor_digests(tensors), tensors)


def _digest(tensor: npt.NDArray[Any]) -> bytes:
    array = np.ascontiguousarray(tensor)
    digest = hashlib.sha256(f"{array.dtype.str}|{array.shape}|".encode())
    digest.update(array.data)
    return digest.digest()
