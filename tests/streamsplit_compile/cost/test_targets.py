"""Target files: the shipped ones are complete and honest, a user's bad one is refused with file and field."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from runtime_edge.errors import FormatError, SscError, UsageError
from streamsplit_compile.cost.targets import DIRECTORY, Figure, Target, list_targets, load_target, parse_target

RPI4 = (DIRECTORY / "rpi4.toml").read_text()


def figures(part: object) -> list[Figure]:
    if isinstance(part, Figure):
        return [part]
    if isinstance(part, msgspec.Struct):
        return [figure for field in part.__struct_fields__ for figure in figures(getattr(part, field))]
    return []


def test_the_promised_targets_are_there() -> None:
    assert list_targets() == ["jetson-orin-nano", "m2", "rpi-zero-2w", "rpi4", "rpi5", "x86-64"]


@pytest.mark.parametrize("name", list_targets())
def test_every_shipped_number_names_a_source_and_is_marked_an_estimate(name: str) -> None:
    target = load_target(name)
    assert target.name == name
    assert target.precisions == ("fp32", "fp16", "int8")
    numbers = figures(target)
    assert len(numbers) == 10
    assert all(figure.estimate and len(figure.source) > 10 for figure in numbers)


def test_faster_boards_have_higher_rates() -> None:
    rates = [load_target(name).gmacs_per_s("fp32") for name in ("rpi-zero-2w", "rpi4", "rpi5", "x86-64", "m2")]
    assert rates == sorted(rates)


def test_a_file_of_the_users(tmp_path: Path) -> None:
    path = tmp_path / "board.toml"
    path.write_text(RPI4.replace('name = "rpi4"', 'name = "board"'))
    assert load_target(path).name == "board"
    assert load_target(str(path)) == load_target(path)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"no target 'rpi3'.*jetson-orin-nano, m2, rpi-zero-2w, rpi4, rpi5, x86-64"):
        load_target("rpi3")


def test_a_precision_the_target_lacks() -> None:
    target = parse_target(re.sub(r"^int8 = .*$", "", RPI4, flags=re.M).encode(), "t.toml")
    with pytest.raises(UsageError, match="rpi4 has no precision 'int8', only fp32, fp16"):
        target.gmacs_per_s("int8")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("fp32 = { value = 12.0", "fp32 = { value = -1.0", r"t\.toml: .*compute\.fp32\.value"),
        ("fp32 = { value = 12.0", "fp32 = { value = 0.0", r"t\.toml: .*compute\.fp32\.value"),
        ("kernel_us = { value = 12", "kernel_us = { value = nan", r"t\.toml: .*launch\.kernel_us\.value"),
        ("kernel_us = { value = 12", "kernel_us = { value = inf", r"t\.toml: .*launch\.kernel_us\.value"),
        ("idle_w = { value = 2.7", "idle_w = { value = true", r"t\.toml: .*power\.idle_w\.value"),
        (
            "idle_w = { value = 2.7",
            "idle_w = { value = 9",
            r"t\.toml: power\.active_w is less than power\.idle_w",
        ),
        ("threads = 4", "threads = 0", r"t\.toml: .*threads"),
        ("threads = 4", "threads = 4\ncolour = 1", r"t\.toml: .*unknown field `colour`"),
        ("idle_w =", "idle_watts =", r"t\.toml: .*`idle_w(atts)?`.*power"),
        ('name = "rpi4"', 'name = "../x"', r"t\.toml: .*name"),
        ('["xnnpack", "cpu"]', '["gpu"]', r"t\.toml: .*providers"),
        ("threads = 4", "threads = = 4", r"t\.toml: not TOML"),
        ("estimate = true", "", r"t\.toml: "),
    ],
)
def test_a_bad_file_is_refused_in_one_line(old: str, new: str, message: str) -> None:
    assert old in RPI4
    with pytest.raises(UsageError, match=message) as caught:
        parse_target(RPI4.replace(old, new, 1).encode(), "t.toml")
    assert "\n" not in str(caught.value)


def test_a_missing_or_huge_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SscError, match="cannot be read"):
        load_target(tmp_path / "none.toml")
    huge = tmp_path / "huge.toml"
    huge.write_bytes(b"#" * 70_000)
    with pytest.raises(FormatError, match="more than"):
        load_target(huge)


def test_targets_are_frozen() -> None:
    target: Target = load_target("m2")
    with pytest.raises(AttributeError):
        target.threads = 1  # type: ignore[misc]
