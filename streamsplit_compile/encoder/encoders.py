"""Encoders by name, and encoder.pt files, which are read and written without ever unpickling code.

    load_encoder(Path("encoder.pt"))   a checkpoint of a registered encoder, or a torch.export archive
    new_encoder("resnet18")            a fresh one
    save_checkpoint(encoder, path)

A checkpoint is `{"format": "streamsplit.encoder/1", "encoder": name, "config": {...}, "state_dict": {...}}`, with
`"untrained": True` if the weights are random.
"""

from __future__ import annotations

import dataclasses
import importlib
import io
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch

from runtime_edge.base.files import write_atomic
from runtime_edge.base.text import printable
from runtime_edge.errors import FormatError, MissingExtra, UsageError
from runtime_edge.formats.encoder.load_options import FrontEndOption, LoadOptions
from runtime_edge.formats.encoder.log_mel_info import LogMelInfo
from streamsplit_compile.encoder import archives
from streamsplit_compile.encoder.front_ends import build_front_end, described_log_mel, read_front_end
from streamsplit_compile.encoder.graph import Candidate, EncoderGraph, export_encoder, graph_of_program, input_shape
from streamsplit_compile.encoder.plain_graph import HALF
from streamsplit_compile.encoder.prepend import PREPENDED, PrependedFrontEnd
from streamsplit_compile.encoder.weights import (
    is_legacy,
    is_safetensors,
    is_zip,
    mistaken,
    mistaken_folder,
    more_than_tensors,
    read_safetensors,
    unwrapped,
    wrapper,
)

CHECKPOINT_FORMAT = "streamsplit.encoder/1"
ENTRY_POINT_GROUP = "streamsplit.encoders"
_OWN_ENCODERS = "streamsplit_models"
_MAX_ENCODER_BYTES = 4 << 30
_DEFAULT_SAMPLE_RATE = 16_000
_FIELDS_SHOWN = 8


@dataclass(frozen=True)
class LoadedEncoder:
    """An encoder that can be compiled: its graph and the input that a device must give it."""

    id: str
    config: dict[str, Any]
    graph: EncoderGraph
    sample_rate: int
    window_samples: int
    front_end: dict[str, Any] = field(default_factory=dict)
    load: LoadOptions | None = None
    """The options that its file was read with, if any."""
    log_mel: tuple[str, LogMelInfo] | None = None
    """The name of the cut after its log-mel image, and how the image is made; None if that is not known."""
    untrained: bool = False
    """Whether its file says that the weights are random, as `ssc encoder new` makes them."""

    @property
    def tensors(self) -> dict[str, npt.NDArray[Any]]:
        """Parameters and buffers under the names of the user's module; views, not copies."""
        return {name: value.detach().cpu().numpy() for name, value in self.graph.module.state_dict().items()}

    @property
    def embedding_dim(self) -> int:
        """Number of values d of the embedding."""
        return self.graph.candidates[-1].shape[-1]

    def ends_log_mel(self, candidate: Candidate) -> bool:
        """Whether a cut is where the log-mel image ends, if that is made from the unchanged window."""
        if self.log_mel is None or candidate.name != self.log_mel[0]:
            return False
        try:
            self.log_mel[1].check(self.sample_rate, self.window_samples, candidate.shape)
        except ValueError:
            return False
        return True


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint of a registered encoder holds."""

    name: str
    config: dict[str, Any]
    module: torch.nn.Module
    untrained: bool


def list_encoders() -> dict[str, str]:
    """Where the factory of each registered encoder is, by name."""
    return {point.name: point.value for point in sorted(entry_points(group=ENTRY_POINT_GROUP))}


def new_encoder(name: str, config: Mapping[str, Any] | None = None) -> tuple[torch.nn.Module, dict[str, Any]]:
    """A new module of a registered encoder, and its config. Raises UsageError or MissingExtra."""
    points = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    if name not in points:
        raise UsageError(f"unknown encoder {name!r}; registered: {', '.join(sorted(points))}")
    return _build(points[name].load(), name, dict(config or {})), dict(config or {})


def is_untrained(name: str, config: Mapping[str, Any]) -> bool:
    """Whether `new_encoder` gives random weights: this project's encoders do, unless the config names a directory."""
    (point,) = (point for point in entry_points(group=ENTRY_POINT_GROUP) if point.name == name)
    return point.module.partition(".")[0] == _OWN_ENCODERS and config.get("directory") is None


def save_checkpoint(
    name: str, config: Mapping[str, Any], module: torch.nn.Module, path: Path, untrained: bool = False
) -> None:
    """Write a checkpoint that `load_encoder` reads; a server trains it by default only if it is `untrained`."""
    buffer = io.BytesIO()
    state = {key: value.detach().cpu() for key, value in module.state_dict().items()}
    content = {"format": CHECKPOINT_FORMAT, "encoder": name, "config": dict(config), "state_dict": state}
    torch.save(content | ({"untrained": True} if untrained else {}), buffer)
    write_atomic(path, buffer.getvalue())


def load_encoder(
    path: Path,
    factory: str | None = None,
    sample_rate: int | None = None,
    unsafe: bool = False,
    recorded: LoadOptions | None = None,
    front_end: str | None = None,
) -> LoadedEncoder:
    """Read encoder.pt and export it.

    `factory` ("package.module:callable") builds a module for a plain state_dict; `sample_rate` is for archives, which
    do not state theirs; `unsafe` admits a pickled module. The code of a factory or pickled module is imported from the
    working directory or from `sys.path`. `front_end` (a preset or a file) is for encoders that take features instead of
    the waveform. `recorded` has the options that a bundle was compiled with: the same must be given here, since they
    are never applied on the bundle's word alone. Raises FormatError, UsageError or MissingExtra.
    """
    option = None if front_end is None else read_front_end(front_end)
    given = LoadOptions(factory=factory, sample_rate=sample_rate, unsafe_load=unsafe, front_end=option)
    if recorded is not None and recorded != given:
        raise UsageError(
            f"{path}: the bundle was compiled with {printable(str(recorded))}; give the same here if they are yours"
        )
    loaded = _read_encoder(path, given)
    return loaded if given == LoadOptions() else dataclasses.replace(loaded, load=given)


def _read_encoder(path: Path, given: LoadOptions) -> LoadedEncoder:
    if path.is_dir():
        raise UsageError(f"{path}: {mistaken_folder(path)}")
    if not path.is_file():
        raise UsageError(f"{path}: no such file; start with `ssc encoder new resnet18 -o {path}`")
    if path.stat().st_size > _MAX_ENCODER_BYTES:
        raise FormatError(f"{path}: larger than {_MAX_ENCODER_BYTES} bytes")
    legacy = is_legacy(path)
    if not legacy and not is_zip(path) and not is_safetensors(path):
        if what := mistaken(path):
            raise FormatError(f"{path}: {what}")
        raise FormatError(f"{path}: neither a checkpoint nor a torch.export archive")
    if not legacy and is_zip(path) and archives.is_archive(path):
        return _from_archive(path, given)
    if given.factory is None and not given.unsafe_load:
        content = _read_checkpoint(path, unsafe=False)
    else:
        with _working_directory_on_path():
            content = _read_checkpoint(path, given.unsafe_load)
            if isinstance(content, torch.nn.Module):
                return from_module(path.stem, {}, content, given.sample_rate, given.front_end)
            if given.factory is not None:
                return _from_state_dict(path, given.factory, content, given)
    if content.get("format") != CHECKPOINT_FORMAT:
        field = wrapper(content)
        where = "" if field is None else f" (here in field {field!r})"
        raise FormatError(
            f'{path}: field "format" is {content.get("format")!r}, expected {CHECKPOINT_FORMAT!r}; '
            f"for a plain state_dict{where} name its code with --factory package.module:callable"
        )
    if given.front_end is not None:
        raise UsageError(f"{path}: a registered encoder, which has its own front end; leave out --front-end")
    return _from_checkpoint(path, content)


def load_module(path: Path) -> Checkpoint:
    """The torch module of a checkpoint of a registered encoder, untraced. Raises FormatError, UsageError."""
    if not path.is_file():
        raise UsageError(f"{path}: no such file; start with `ssc encoder new resnet18 -o {path}`")
    content = _read_checkpoint(path, unsafe=False)
    if not isinstance(content, dict) or content.get("format") != CHECKPOINT_FORMAT:
        raise FormatError(f"{path}: not a checkpoint of a registered encoder, as `ssc encoder new` writes them")
    return _built(path, content)


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Read only the weights of a checkpoint or a plain state_dict, half precision widened to float32.

    Nothing is built or traced. Raises FormatError.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    content = _read_checkpoint(path, unsafe=False)
    state = unwrapped(content) if isinstance(content, dict) else None
    items = state.items() if isinstance(state, dict) else ()
    tensors = {
        name: value.float() if value.dtype in HALF else value
        for name, value in items
        if isinstance(value, torch.Tensor)
    }
    if not tensors:
        raise _without_tensors(path, content)
    return tensors


def _without_tensors(path: Path, content: Mapping[Any, Any]) -> FormatError:
    fields = ", ".join(printable(str(name)) for name in itertools.islice(content, _FIELDS_SHOWN))
    return FormatError(f"{path}: holds no tensors (fields: {fields}); keep the state_dict alone with torch.save")


def read_tensors(path: Path) -> dict[str, npt.NDArray[Any]]:
    """`read_state` as NumPy arrays."""
    return {name: value.numpy() for name, value in read_state(path).items()}


def _from_checkpoint(path: Path, content: dict[str, Any]) -> LoadedEncoder:
    found = _built(path, content)
    loaded = from_module(found.name, found.config, found.module, None)
    return dataclasses.replace(loaded, untrained=found.untrained)


def _built(path: Path, content: dict[str, Any]) -> Checkpoint:
    for name, kind in (("encoder", str), ("config", dict), ("state_dict", dict)):
        if not isinstance(content.get(name), kind):
            raise FormatError(f'{path}: field "{name}" is missing or not a {kind.__name__}')
    try:
        json.dumps(content["config"])
    except (TypeError, ValueError) as exc:
        raise FormatError(f'{path}: field "config": {exc}; only what JSON can hold') from None
    try:
        module, config = new_encoder(content["encoder"], content["config"])
    except UsageError as exc:
        raise FormatError(f'{path}: field "encoder": {exc}') from None
    _load_state(module, content["state_dict"], path)
    return Checkpoint(content["encoder"], config, module, content.get("untrained") is True)


def _from_state_dict(path: Path, factory: str, content: dict[str, Any], given: LoadOptions) -> LoadedEncoder:
    module_name, _, attribute = factory.partition(":")
    try:
        build = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as exc:
        raise UsageError(f"--factory {factory}: {exc}; expected package.module:callable") from None
    module = _build(build, factory, {})
    state = unwrapped(content)
    _check_names(module, state, path)
    _load_state(module, state, path)
    return from_module(factory, {}, module, given.sample_rate, given.front_end)


@contextmanager
def _working_directory_on_path() -> Iterator[None]:
    """Import modules from the working directory first, as `python -m` does and an installed command does not."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)


def from_module(
    name: str,
    config: dict[str, Any],
    module: torch.nn.Module,
    sample_rate: int | None,
    option: FrontEndOption | None = None,
) -> LoadedEncoder:
    """An encoder from a torch module that takes waveforms (batch, samples). A rate that the module states takes
    precedence over `sample_rate`, Hz. With `option` the module takes the features that this front end makes.
    """
    if option is not None:
        front_end = _front_end(option, None, sample_rate)
        try:
            graph = export_encoder(module, front_end.window_samples, front_end)
        except UsageError as exc:
            raise UsageError(f"{exc}; the front end makes (batch, {', '.join(map(str, front_end.shape))})") from None
        return _behind(front_end, name, config, graph)
    rate = int(getattr(module, "sample_rate", None) or sample_rate or _DEFAULT_SAMPLE_RATE)
    window = int(getattr(module, "window_samples", rate))
    own = getattr(module, "front_end", None)
    to_dict = getattr(own, "to_dict", None)
    details = to_dict() if callable(to_dict) else {}
    graph = export_encoder(module, window)
    return LoadedEncoder(name, config, graph, rate, window, details, log_mel=described_log_mel(module))


def _from_archive(path: Path, given: LoadOptions) -> LoadedEncoder:
    program = archives.load(path)
    if given.front_end is not None:
        front_end = _front_end(given.front_end, input_shape(program), given.sample_rate)
        return _behind(front_end, path.stem, {}, graph_of_program(program, front_end))
    graph = graph_of_program(program)
    return LoadedEncoder(path.stem, {}, graph, given.sample_rate or _DEFAULT_SAMPLE_RATE, graph.candidates[0].shape[1])


def _front_end(option: FrontEndOption, shape: tuple[int, ...] | None, sample_rate: int | None) -> PrependedFrontEnd:
    """The front end of an encoder that takes (batch, *shape). Raises UsageError if `sample_rate` is not its own."""
    front_end = build_front_end(option, shape)
    if sample_rate not in (None, front_end.sample_rate):
        raise UsageError(f"--sample-rate {sample_rate}: the front end is for {front_end.sample_rate} Hz; leave it out")
    return front_end


def _behind(front_end: PrependedFrontEnd, name: str, config: dict[str, Any], graph: EncoderGraph) -> LoadedEncoder:
    return LoadedEncoder(
        name, config, graph, front_end.sample_rate, front_end.window_samples, front_end.details,
        log_mel=described_log_mel(front_end.module, f"{PREPENDED}."),
    )  # fmt: skip


def _build(factory: Callable[..., Any], name: str, config: dict[str, Any]) -> torch.nn.Module:
    try:
        module = factory(**config)
    except ImportError as exc:
        if exc.name == "transformers":
            raise MissingExtra("transformers", "transformers") from None
        raise UsageError(f"encoder {name!r}: {exc}") from None
    except (TypeError, ValueError, KeyError) as exc:
        raise UsageError(f"encoder {name!r} does not accept config {config}: {exc}") from None
    if not isinstance(module, torch.nn.Module):
        raise UsageError(f"encoder {name!r}: its factory returned {type(module).__name__}, not a torch module")
    return module.eval()


def _check_names(module: torch.nn.Module, state: dict[str, Any], path: Path) -> None:
    """Raise FormatError for anything but a state_dict of this module."""
    if not any(isinstance(value, torch.Tensor) for value in state.values()):
        raise _without_tensors(path, state)
    if state.keys().isdisjoint(expected := module.state_dict()):
        given, named = printable(str(next(iter(state)))), next(iter(expected), "")
        raise FormatError(
            f"{path}: its weights are called {given!r} and so on, the encoder's {named!r}: they belong to another "
            f"encoder or a wrapper; save them under the encoder's names"
        )


def _load_state(module: torch.nn.Module, state: dict[str, Any], path: Path) -> None:
    try:
        module.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as exc:
        reason = " ".join(str(exc).split())[:300]
        raise FormatError(f'{path}: field "state_dict" does not fit the encoder: {reason}') from None


def _read_checkpoint(path: Path, unsafe: bool) -> Any:
    if is_safetensors(path):
        return read_safetensors(path)
    if is_zip(path) and (what := mistaken(path)):
        raise FormatError(f"{path}: {what}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=not unsafe)
    except Exception as exc:
        if what := mistaken(path):
            raise FormatError(f"{path}: {what}") from None
        if "unexpected EOF" in str(exc):
            raise FormatError(f"{path}: cut short after {path.stat().st_size} bytes; get it again") from None
        if "Unsupported global" in str(exc) and not unsafe:  # a file that is not a pickle at all would load nothing
            raise FormatError(f"{path}: {more_than_tensors(path)}") from None
        raise FormatError(f"{path}: not a checkpoint of tensors, or cut short ({type(exc).__name__})") from None
    if not isinstance(content, (dict, torch.nn.Module)):
        raise FormatError(f"{path}: holds a {type(content).__name__}, expected a checkpoint")
    return content
