"""A manifest's description of the exit at a cut: a small map from the activation to the embedding."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Literal

from runtime_edge.formats.encoder.parts import Agreement, Count, Part, Positive, StoredFile, VariantInfo
from runtime_edge.formats.strict import Name

MAX_WEIGHTS_BYTES = 64 << 20


class ExitInfo(Part, frozen=True, kw_only=True):
    """The exit of one cut."""

    cut: Name
    files: dict[Literal["onnx", "tflite"], VariantInfo]
    """The exit from activation to embedding, in float32, for prefixes of any precision."""
    weights: StoredFile
    """The exit's weights for the compiler (`streamsplit_compile.exits.exit_map`); devices do not fetch it."""
    agreement: dict[Name, Agreement]
    """Agreement of the exit's embedding with the whole encoder's, by the prefix's variant, on windows not fitted to."""
    self_test: dict[Name, bytes]
    """The embedding of the self-test's waveform, by the prefix's variant, float32."""
    macs: Count
    windows: Positive
    """How many windows it was fitted to."""

    def assets(self) -> list[tuple[str, int]]:
        """Reference and size in bytes of every file."""
        compiled = [(file.file, file.bytes) for file in self.files.values()]
        return [*compiled, (self.weights.file, self.weights.bytes)]

    def problems(self, cuts: Sequence[str], variants: Collection[str], embedding_dim: int) -> Iterator[str]:
        """What does not fit the bundle's cuts and variants, or its embedding."""
        if self.cut not in cuts[1:-1]:
            yield "cut: there is no such cut between the waveform and the embedding"
        if self.weights.bytes > MAX_WEIGHTS_BYTES:
            yield f"weights.bytes: at most {MAX_WEIGHTS_BYTES}"
        if {name.partition("-")[0] for name in variants} != set(self.files):
            yield "files: not one for each format of the blocks"
        for name in variants:
            if len(self.self_test.get(name, b"")) != 4 * embedding_dim:
                yield f"self_test.{name}: {embedding_dim} float32 values are needed"
            if name not in self.agreement:
                yield f"agreement.{name}: is missing"


def exit_problems(
    found: Sequence[ExitInfo], cuts: Sequence[str], variants: Collection[str], embedding_dim: int
) -> Iterator[str]:
    """What does not fit the bundle."""
    if len({info.cut for info in found}) != len(found):
        yield "a cut has two"
    for info in found:
        for problem in info.problems(cuts, variants, embedding_dim):
            yield f"{info.cut}: {problem}"
