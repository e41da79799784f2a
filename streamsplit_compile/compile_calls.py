"""The library calls behind `streamsplit_compile.compile` and `streamsplit_compile.advise`."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import torch

from runtime_edge.errors import UsageError
from runtime_edge.formats import minisign
from runtime_edge.formats.bundle import Bundle, open_bundle
from runtime_edge.inference.profile import Profile, read_profile
from streamsplit_compile.advice.advice import Advice
from streamsplit_compile.advice.advice import advise as advise_on
from streamsplit_compile.bundle.compiler import CompileOptions, Progress, compile_encoder
from streamsplit_compile.bundle.cut_assets.bottlenecks import TRAINING_STEPS
from streamsplit_compile.cost.targets import load_target
from streamsplit_compile.encoder.encoders import LoadedEncoder, from_module, load_encoder
from streamsplit_compile.lowering.artifact_formats import FORMATS, PRECISIONS

Path_ = str | os.PathLike[str]
Encoder = Path_ | torch.nn.Module
_Choice = TypeVar("_Choice", bound=str)
_LOG = logging.getLogger(__name__)


def read_encoder(
    encoder: Encoder, factory: str | None, sample_rate: int | None, front_end: str | None, unsafe_load: bool
) -> LoadedEncoder:
    """Load an encoder from a file or a module. Raises UsageError or FormatError."""
    if not isinstance(encoder, torch.nn.Module):
        return load_encoder(Path(encoder), factory, sample_rate, unsafe_load, front_end=front_end)
    if factory is not None or front_end is not None or unsafe_load:
        raise UsageError("factory, front_end and unsafe_load are for an encoder's file; leave them out for a module")
    modes = [(part, part.training) for part in encoder.modules()]
    try:
        return from_module(type(encoder).__name__, {}, encoder, sample_rate)
    finally:
        for part, mode in modes:  # the caller may go on training it
            part.training = mode


def compile_bundle(
    encoder: Encoder,
    out: Path_,
    targets: Sequence[str],
    formats: Sequence[str],
    precisions: Sequence[str],
    calibrate: Path_ | None,
    bottlenecks: bool,
    profile: Path_ | None,
    key: Path_ | None,
    progress: Progress | None,
    *,
    loading: tuple[str | None, int | None, str | None, bool],
    cuts: str,
    windows: int,
    link: str,
    seed: int,
    generation: int,
    keep_norms: bool,
    adaptable: bool,
) -> Bundle:
    """See `streamsplit_compile.compile`."""
    if bottlenecks and calibrate is None:
        raise UsageError("bottlenecks: they are trained on recordings; give calibrate, a directory of recordings")
    for name, given, least in (("windows", windows, 1), ("seed", seed, 0), ("generation", generation, 1)):
        if given < least:
            raise UsageError(f"{name} {given}: must be at least {least}")
    options = CompileOptions(
        targets=[load_target(name) for name in _several(targets, "targets")],
        cuts=cuts,
        calibrate=None if calibrate is None else Path(calibrate),
        calibration_windows=windows,
        seed=seed,
        generation=generation,
        formats=_choices(formats, FORMATS, "formats"),
        precisions=_choices(precisions, PRECISIONS, "precisions"),
        keep_norms=keep_norms,
        adaptable=adaptable,
        bottleneck_steps=TRAINING_STEPS if bottlenecks else 0,
        link=link,
        measured=_profile(profile),
        key=None if key is None else minisign.read_secret_key(Path(key)),
    )
    steps: Progress = progress or (lambda what, done, total: None)
    return compile_encoder(read_encoder(encoder, *loading), options, Path(out), steps, _LOG.warning)


def advise_bundle(
    bundle: Path_ | Bundle, targets: Sequence[str] | None, link: str, profile: Path_ | None
) -> list[Advice]:
    """See `streamsplit_compile.advise`."""
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(Path(bundle))
    names = sorted(opened.manifest.info.targets) if targets is None else _several(targets, "targets")
    return advise_on(opened, [load_target(name) for name in names], link, _profile(profile))


def _profile(path: Path_ | None) -> Profile | None:
    return None if path is None else read_profile(Path(path))


def _several(names: Sequence[str], what: str) -> list[str]:
    """The names as a list. Raises UsageError for a single string, which would be read as a list of letters."""
    if isinstance(names, str):
        raise UsageError(f"{what} {names!r}: give a list, such as {names.split(',')}")
    return list(names)


def _choices(names: Sequence[str], known: Sequence[_Choice], what: str) -> list[_Choice]:
    wrong = [name for name in _several(names, what) if name not in known]
    if wrong or not names:
        raise UsageError(f"{what} {list(names)}: expected some of {', '.join(known)}")
    return [choice for name in dict.fromkeys(names) for choice in known if choice == name]
