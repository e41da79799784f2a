"""How an encoder's file was read: the part of a manifest that says which options to ask for again."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from runtime_edge.formats.strict import Strict

MAX_SAMPLE_RATE = 1_000_000


class LoadOptions(Strict, frozen=True, kw_only=True, omit_defaults=True):
    """Options that the encoder's file was read with. They say what to ask for again; nothing is done on their word."""

    factory: Annotated[str, Meta(min_length=1, max_length=1024)] | None = None
    """package.module:callable of `--factory`."""
    sample_rate: Annotated[int, Meta(ge=1, le=MAX_SAMPLE_RATE)] | None = None
    """Hz of `--sample-rate`."""
    unsafe_load: bool = False

    def __str__(self) -> str:
        """The options as they are typed."""
        given = [] if self.factory is None else [f"--factory {self.factory}"]
        given += [] if self.sample_rate is None else [f"--sample-rate {self.sample_rate}"]
        return " ".join([*given, *(["--unsafe-load"] if self.unsafe_load else [])])
