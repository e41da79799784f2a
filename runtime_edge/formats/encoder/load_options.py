"""How an encoder's file was read: the part of a manifest that says which options to give again."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from runtime_edge.formats.strict import Name, Strict

MAX_SAMPLE_RATE = 1_000_000


class FrontEndOption(Strict, frozen=True, kw_only=True, omit_defaults=True):
    """The front end that was put before an encoder that takes features."""

    preset: Name
    """The preset given with `--front-end`, or the one that its file belongs to."""
    settings: Annotated[dict[Name, bool | int | float], Meta(max_length=32)] = msgspec.field(default_factory=dict)
    """Settings in which the file differs from the preset, under the file's own keys."""

    def __str__(self) -> str:
        """The option as typed; for a file, what the file says."""
        if not self.settings:
            return self.preset
        said = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        return f"preprocessor_config.json ({self.preset} with {said})"


class LoadOptions(Strict, frozen=True, kw_only=True, omit_defaults=True):
    """Options that the encoder's file was read with. They only say what to ask for again; nothing acts on them."""

    factory: Annotated[str, Meta(min_length=1, max_length=1024)] | None = None
    """package.module:callable of `--factory`."""
    sample_rate: Annotated[int, Meta(ge=1, le=MAX_SAMPLE_RATE)] | None = None
    """Hz, from `--sample-rate`."""
    unsafe_load: bool = False
    front_end: FrontEndOption | None = None
    """From `--front-end`."""

    def __str__(self) -> str:
        """The options as typed."""
        given = [] if self.factory is None else [f"--factory {self.factory}"]
        given += [] if self.sample_rate is None else [f"--sample-rate {self.sample_rate}"]
        given += ["--unsafe-load"] if self.unsafe_load else []
        return " ".join([*given, *([] if self.front_end is None else [f"--front-end {self.front_end}"])])
