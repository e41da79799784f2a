"""How an encoder's file was read: the part of a manifest that says which options to ask for again."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from runtime_edge.formats.strict import Name, Strict

MAX_SAMPLE_RATE = 1_000_000


class FrontEndOption(Strict, frozen=True, kw_only=True, omit_defaults=True):
    """What was put in front of an encoder that takes features."""

    preset: Name
    """Of `--front-end`, or the one that its file is of."""
    settings: Annotated[dict[Name, bool | int | float], Meta(max_length=32)] = msgspec.field(default_factory=dict)
    """In which its file differs from the preset, under the file's keys."""

    def __str__(self) -> str:
        """The option as it is typed; of a file, what it says."""
        if not self.settings:
            return self.preset
        said = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        return f"preprocessor_config.json ({self.preset} with {said})"


class LoadOptions(Strict, frozen=True, kw_only=True, omit_defaults=True):
    """Options that the encoder's file was read with. They say what to ask for again; nothing is done on their word."""

    factory: Annotated[str, Meta(min_length=1, max_length=1024)] | None = None
    """package.module:callable of `--factory`."""
    sample_rate: Annotated[int, Meta(ge=1, le=MAX_SAMPLE_RATE)] | None = None
    """Hz of `--sample-rate`."""
    unsafe_load: bool = False
    front_end: FrontEndOption | None = None
    """Of `--front-end`."""

    def __str__(self) -> str:
        """The options as they are typed."""
        given = [] if self.factory is None else [f"--factory {self.factory}"]
        given += [] if self.sample_rate is None else [f"--sample-rate {self.sample_rate}"]
        given += ["--unsafe-load"] if self.unsafe_load else []
        return " ".join([*given, *([] if self.front_end is None else [f"--front-end {self.front_end}"])])
