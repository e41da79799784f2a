"""Makes the adaptation that a device is sent: the layers by block, and what each of its compiled variants must give.

The device's own code runs each variant with the new layers: its answer to the self-test's waveform becomes part of the
adaptation. A variant that follows the layers less well than it follows the compiled weights is left out, so that
devices which run it refuse the adaptation: int8 files keep the activation scales that were measured at compile time.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from runtime_edge.formats.bundle import Bundle
from runtime_edge.formats.encoder.parts import Expected
from runtime_edge.formats.model_id import model_digest
from runtime_edge.formats.records.adaptation import Adaptation, AdaptedLayer
from runtime_edge.inference.contract import RuntimeOptions
from runtime_edge.inference.prefix import Prefix
from runtime_edge.inference.self_test import self_test_waveform
from runtime_server.adaptation.adaptation_judge import embedded
from runtime_server.suffix.generations import CutModel, Generation

_LOG = logging.getLogger(__name__)
MOST_COSINE_LOST = 0.01
"""By how much the median cosine between a variant and the float encoder may be lower than with compiled weights."""
CREATED_BY = "ssc server run"
_RUNTIME = RuntimeOptions(providers=("cpu",))


def make_adaptation(
    generation: Generation, adapted: CutModel, layers: Sequence[AdaptedLayer], windows: Tensor, start: int = 0
) -> Adaptation | None:
    """An adaptation of a generation, or None if no variant follows it.

    Args:
        generation: the compiled weights and their bundle.
        adapted: the same encoder with the layers in place.
        layers: what changes; with none, the adaptation takes an earlier one back.
        windows: (n, ...) float32 of the device at the cut `start`, for comparing variants with the float encoder.
        start: a cut of the bundle; 0 for audio.

    Raises what loading blocks raises.
    """
    draft = draft_adaptation(generation.bundle, layers, CREATED_BY)
    if not layers:
        return draft
    found = dict(_self_tests(generation, adapted, draft, windows, start))
    return msgspec.structs.replace(draft, self_tests=found) if found else None


def draft_adaptation(bundle: Bundle, layers: Sequence[AdaptedLayer], created_by: str) -> Adaptation:
    """An adaptation whose self-tests, one for each variant that can be adapted, are not known yet."""
    info = bundle.manifest.info
    unknown = Expected(embedding=np.zeros(info.encoder.embedding_dim, "<f4").tobytes(), tolerance=0.0)
    variants = [name for name in bundle.manifest.variants if layers and name.startswith("onnx-")]
    return Adaptation(
        encoder=info.encoder.id,
        generation=info.generation,
        model=model_digest(bundle.manifest),
        created_by=created_by,
        self_tests=dict.fromkeys(variants, unknown),
        layers=tuple(layers),
    )


def expected_of(prefix: Prefix) -> Expected:
    """What an adapted prefix gives for the self-test's waveform, with the tolerance of its variant."""
    info = prefix.bundle.manifest.info
    chirp = self_test_waveform(info.front_end.window_samples, info.front_end.sample_rate)
    test = info.self_test.variants.get(prefix.variant, info.self_test)
    return Expected(embedding=prefix.embed(chirp).astype("<f4").tobytes(), tolerance=test.tolerance)


def _self_tests(
    generation: Generation, adapted: CutModel, draft: Adaptation, windows: Tensor, start: int
) -> Iterator[tuple[str, Expected]]:
    """The self-test of each variant that follows the layers."""
    bundle, samples = generation.bundle, windows.numpy()
    wanted = [embedded(model, windows, start) for model in (generation.model, adapted)]
    for variant in draft.self_tests:
        plain, changed = (Prefix(bundle, variant, _RUNTIME, adaptation=one) for one in (None, draft))
        before, after = (
            _median_cosine(prefix, start, samples, expected)
            for prefix, expected in zip((plain, changed), wanted, strict=True)
        )
        if not after >= before - MOST_COSINE_LOST:
            _LOG.warning("%s does not follow an adaptation: cosine %.3f, compiled %.3f", variant, after, before)
            continue
        yield variant, expected_of(changed)


def _median_cosine(prefix: Prefix, start: int, windows: npt.NDArray[np.float32], expected: Tensor) -> float:
    """Between what a device computes of activations (n, ...) at a cut, and embeddings (n, d)."""

    def embed(window: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        prefix.resume(start, window[None])
        embedding: npt.NDArray[np.float32] = prefix.advance(prefix.last_cut)[0].copy()
        return embedding

    found = torch.from_numpy(np.stack([embed(window) for window in windows]))
    return float(functional.cosine_similarity(found, expected, dim=1).median())
