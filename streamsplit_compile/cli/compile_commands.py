"""`ssc encoder` and `ssc compile`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from runtime_edge.base.files import write_atomic
from runtime_edge.click_options import ManyOptions
from runtime_edge.errors import UsageError
from runtime_edge.formats import minisign
from runtime_edge.formats.bundle import Bundle, open_bundle
from runtime_edge.formats.encoder.load_options import LoadOptions
from runtime_edge.formats.strict import decode
from streamsplit_compile.advice.advice import advise
from streamsplit_compile.bundle.bundle_summary import bundle_summary
from streamsplit_compile.bundle.calibrate import calibration_set_for
from streamsplit_compile.bundle.compiler import CompileOptions, compile_encoder, recompile, report_path
from streamsplit_compile.bundle.cut_assets.bottlenecks import TRAINING_STEPS
from streamsplit_compile.bundle.measure import Reference
from streamsplit_compile.bundle.parity import shortfalls
from streamsplit_compile.cli.hide_options import hidden_labels, hide_options, labelled_windows
from streamsplit_compile.cli.options import (
    PathParam,
    encoder_options,
    json_option,
    key_option,
    link_option,
    measured_profile,
    parse_targets,
    profile_option,
    read_key,
    renamed,
    together,
)
from streamsplit_compile.cli.printing import Steps, print_json, print_table, print_warning
from streamsplit_compile.cli.tables.bundle_tables import print_cuts
from streamsplit_compile.encoder.encoders import (
    LoadedEncoder,
    is_untrained,
    list_encoders,
    load_encoder,
    new_encoder,
    read_tensors,
    save_checkpoint,
)
from streamsplit_compile.encoder.published.importers import IMPORTERS
from streamsplit_compile.encoder.published.trained import find_trained, trained_names
from streamsplit_compile.encoder.segment import split
from streamsplit_compile.encoder.selection import cuts_of
from streamsplit_compile.lowering.artifact_formats import FORMATS, PRECISIONS


@click.group()
def encoder() -> None:
    """Make or list encoders.

    Example: ssc encoder new resnet18 -o encoder.pt
    """


@encoder.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the registered encoders.

    Example: ssc encoder list
    """
    found = list_encoders()
    if as_json:
        print_json(found)
    else:
        rows = [[name, where, ", ".join(trained_names(name))] for name, where in found.items()]
        print_table("Encoders", ["name", "factory", "trained weights"], rows)


@encoder.command()
@click.argument("name")
@click.option("-o", "--out", type=PathParam(), required=True, help="Checkpoint to write.")
@renamed(
    "--encoder-config", "--config", "config_json", default="{}",
    help="JSON object of arguments for the encoder's factory.",
)  # fmt: skip
@click.option("--weights", help="Trained weights: a name that the encoder knows, or a file.")
@json_option
def new(name: str, out: Path, config_json: str, weights: str | None, as_json: bool) -> None:
    """Write a checkpoint to start from. With --weights, write a trained one, with its head beside it.

    Example: ssc encoder new resnet18 -o encoder.pt
    """
    head, labels = None, 0
    if weights is None:
        module, config = new_encoder(name, parse_config(config_json))
        save_checkpoint(name, config, module, out, is_untrained(name, config))
    else:
        trained = find_trained(name, weights)
        module, config = trained.build(parse_config(config_json))
        save_checkpoint(name, config, module, out)
        if trained.head is not None:
            head, labels = head_beside(out), len(trained.head.labels)
            write_atomic(head, trained.head.to_json())
    parameters = sum(parameter.numel() for parameter in module.parameters())
    if as_json:
        beside = {} if head is None else {"head": str(head)}
        print_json({"encoder": name, "config": config, "parameters": parameters, "file": str(out), **beside})
        return
    made = "random unless --encoder-config loads trained ones" if weights is None else f"trained: {weights}"
    click.echo(f"{out}: {name}, {parameters:,} parameters, {made}")
    if head is not None:
        click.echo(f"{head}: a head of {labels} labels for its embeddings")


@encoder.command("import")
@click.argument("kind", type=click.Choice(sorted(IMPORTERS)))
@click.argument("file", type=PathParam())
@click.option("-o", "--out", type=PathParam(), required=True, help="Checkpoint to write.")
@renamed(
    "--encoder-config",
    "--config",
    "config_json",
    default="{}",
    help="JSON object of additional arguments for the factory.",
)
@click.option(
    "--labels",
    type=PathParam(),
    help="Keep the classifier as a head, with the labels in this file: AudioSet's class_labels_indices.csv.",
)
@json_option
def import_(kind: str, file: Path, out: Path, config_json: str, labels: Path | None, as_json: bool) -> None:
    """Convert a published checkpoint. With --labels, also write its classifier as a head beside it.

    Example: ssc encoder import efficientat mn04_as_mAP_432.pt --labels class_labels_indices.csv -o encoder.pt
    """
    name, read = IMPORTERS[kind]
    config, head = read(file, out, parse_config(config_json), labels)
    if head is not None:
        write_atomic(head_beside(out), head.to_json())
    if as_json:
        beside = {} if head is None else {"head": str(head_beside(out))}
        print_json({"encoder": name, "config": config, "file": str(out), **beside})
        return
    click.echo(f"{out}: {kind} checkpoint {file.name}, {config}")
    if head is not None:
        click.echo(f"{head_beside(out)}: a head of {len(head.labels)} labels for its embeddings")


def head_beside(encoder_file: Path) -> Path:
    """The path of the head that comes with an encoder."""
    return encoder_file.with_suffix(".head.json")


_first_compile_options = together(
    click.option(
        "--targets", default="rpi4,m2", show_default=True, help="Target names or TOML files, comma-separated."
    ),
    click.option("--cuts", default="auto", show_default=True, help="auto, all, a number of blocks, or names."),
    click.option("--formats", default="onnx", show_default=True, help="onnx, tflite, or both, comma-separated."),
    click.option(
        "--precision",
        default="fp32",
        show_default=True,
        help="fp32, fp16, int8, auto (int8 except for blocks that lose too much), comma-separated; fp32 is always "
        "included.",
    ),
    link_option,
    profile_option,
    click.option("--windows", default=16, show_default=True, type=click.IntRange(1, 4096), help="Calibration windows."),
    click.option(
        "--bottlenecks", is_flag=True, help="Train the bottlenecks that --calibrate makes; takes minutes for each cut."
    ),
    hide_options,
    click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of everything random."),
    click.option("--keep-norms", is_flag=True, help="Leave normalisation layers unfolded."),
    click.option("--adaptable", is_flag=True, help="Let the server adapt normalisation layers on devices (ONNX)."),
)
"""Options of a first compile, which hold for all generations made from its bundle."""


@click.command(
    "compile",
    cls=ManyOptions,
    common=["out", "targets", "cuts", "formats", "precision", "calibrate", "bottlenecks", "base", "key", "as_json"],
)
@click.argument("encoder_file", metavar="ENCODER.PT", type=PathParam())
@click.option("-o", "--out", type=PathParam(), required=True, help="Bundle directory to write.")
@_first_compile_options
@click.option("--calibrate", type=PathParam(), help="Directory of recordings to measure int8 ranges and parity on.")
@click.option("--generation", type=click.IntRange(1), help="Generation number [default: 1, or the base's plus one].")
@click.option(
    "--base", type=PathParam(), help="Write new weights into the graphs that this bundle keeps, without tracing."
)
@click.option("--no-parity", "parity", flag_value=False, default=True, help="With --base: do not check the cuts.")
@encoder_options
@key_option
@json_option
def compile_(
    encoder_file: Path,
    out: Path,
    calibrate: Path | None,
    generation: int | None,
    base: Path | None,
    parity: bool,
    factory: str | None,
    sample_rate: int | None,
    unsafe_load: bool,
    front_end: str | None,
    key: Path | None,
    as_json: bool,
    **first: Any,
) -> None:
    """Compile an encoder into a bundle: lower, check and price every cut, and sign the result.

    Example: ssc compile encoder.pt --targets rpi4,m2 -o bundle/
    """
    load = functools.partial(load_encoder, encoder_file, factory, sample_rate, unsafe_load, front_end=front_end)
    if base is not None:
        _refuse_what_the_base_decides(click.get_current_context())
        with Steps(quiet=as_json) as steps:
            bundle = _recompile(base, encoder_file, load, out, generation, calibrate, parity, read_key(key), steps)
        print_json(bundle_summary(bundle)) if as_json else print_cuts(bundle)
        _warn(bundle)
        if calibrate is None or not parity:
            print_warning(_UNHEARD if parity else "nothing was measured of these weights: leave out --no-parity")
        return
    if not parity:
        raise UsageError("--no-parity: only with --base; a first compile checks its cuts to make splitter tables")
    recordings = first.pop("recordings")
    hidden = hidden_labels(first.pop("hide"), recordings, first["bottlenecks"])
    options = _first_options(**first, calibrate=calibrate, generation=generation or 1, key=read_key(key))
    with Steps(quiet=as_json) as steps:
        steps("exporting", 0, 1)
        loaded = load(None)
        if recordings is not None:
            heard = labelled_windows(hidden, recordings, loaded.sample_rate, loaded.window_samples)
            options = replace(options, hidden=heard)
        bundle = compile_encoder(loaded, options, out, steps, print_warning)
    _show(bundle, options, out, as_json)


def _show(bundle: Bundle, options: CompileOptions, out: Path, as_json: bool) -> None:
    if as_json:
        print_json(bundle_summary(bundle))
    else:
        print_cuts(bundle)
        for advice in advise(bundle, options.targets, options.link, options.measured):
            click.echo(advice.sentence())
        click.echo(f"Other ways to run it: ssc advise {out}\nPictures: {report_path(out)}")
    _warn(bundle)


_UNHEARD = "nothing was measured on recordings, but on a synthesised soundscape; give --calibrate"


def _warn(bundle: Bundle) -> None:
    info = bundle.manifest.info
    for line in shortfalls(info.blocks, info.parity):
        print_warning(line)


def _first_options(
    *,
    targets: str,
    formats: str,
    precision: str,
    windows: int,
    profile_file: Path | None,
    bottlenecks: bool,
    **as_given: Any,
) -> CompileOptions:
    """Parse the options of a first compile. Raises UsageError."""
    if bottlenecks and as_given["calibrate"] is None:
        raise UsageError("--bottlenecks: they are trained on recordings; give --calibrate DIR")
    if as_given["latent_noise"] and as_given["calibrate"] is None:
        raise UsageError("--latent-noise: it is added to the values of bottlenecks; give --calibrate DIR")
    return CompileOptions(
        targets=parse_targets(targets),
        formats=_choices(formats, FORMATS, "--formats"),
        precisions=_choices(precision, PRECISIONS, "--precision"),
        calibration_windows=windows,
        measured=measured_profile(profile_file),
        bottleneck_steps=TRAINING_STEPS if bottlenecks else 0,
        **as_given,
    )


def _refuse_what_the_base_decides(context: click.Context) -> None:
    decided = (
        "targets",
        "cuts",
        "formats",
        "precision",
        "windows",
        "bottlenecks",
        "hide",
        "recordings",
        "latent_noise",
        "seed",
        "keep_norms",
        "adaptable",
        "link",
        "profile_file",
    )
    given = [name for name in decided if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    if given:
        raise UsageError(
            f"--{given[0].removesuffix('_file').replace('_', '-')}: with --base it is as in the base; leave it out"
        )


def _recompile(
    base_path: Path,
    encoder_file: Path,
    load: Callable[[LoadOptions | None], LoadedEncoder],
    out: Path,
    generation: int | None,
    calibrate: Path | None,
    parity: bool,
    key: minisign.SecretKey | None,
    steps: Steps,
) -> Bundle:
    """Compile new weights into a base bundle; with `parity` the encoder is also traced, to check the cuts."""
    base = open_bundle(base_path)
    info = base.manifest.info
    reference, calibration = None, calibration_set_for(info, calibrate)
    if parity:
        steps("exporting", 0, 1)
        loaded = load(info.encoder.load)
        tensors, graph = loaded.tensors, loaded.graph
        segments = split(graph, cuts_of(graph.candidates, base.manifest, str(base_path)))
        reference = Reference(segments, calibration.unseen, recordings=calibration.recordings)
    else:
        tensors = read_tensors(encoder_file)
    steps("writing weights", 0, 1)
    return recompile(
        base,
        tensors,
        out,
        generation=generation or info.generation + 1,
        windows=calibration.windows,
        reference=reference,
        calibration=calibration.said,
        key=key,
    )


_MAX_CONFIG_BYTES = 1 << 20
_Choice = TypeVar("_Choice", bound=str)


def _choices(text: str, known: Sequence[_Choice], option: str) -> list[_Choice]:
    """Parse comma-separated names, each of which must be in `known`; repetitions are dropped. Raises UsageError."""
    names = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    wrong = [name for name in names if name not in known]
    if wrong or not names:
        raise UsageError(f"{option} {text}: expected some of {', '.join(known)}")
    return [choice for name in names for choice in known if choice == name]


def parse_config(text: str) -> dict[str, Any]:
    """Parse an encoder's settings from `--encoder-config`. Raises UsageError."""
    # Python keeps the bytes of an argument that is not UTF-8 as surrogates.
    return decode(
        text.encode("utf-8", "surrogateescape"), dict[str, Any], "--encoder-config", _MAX_CONFIG_BYTES, UsageError
    )
