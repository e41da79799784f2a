"""Radio files: the shipped ones name their sources, and what a window costs over each is worked out by hand."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from runtime_edge.errors import UsageError
from streamsplit_compile.cost.radios import RADIOS, list_radios, load_radio, parse_radio, radio_on
from streamsplit_compile.cost.targets import Figure, load_target, parse_target

LTE = (RADIOS / "lte.toml").read_text()
RPI4 = (RADIOS.parent / "targets" / "rpi4.toml").read_text()
OWN = """
[radio]
mj_per_kb = { value = 3.0, estimate = false, source = "measured" }
transmit_w = { value = 0.4, estimate = false, source = "measured" }
"""


def test_the_promised_radios_are_there() -> None:
    assert list_radios() == ["lora", "lte", "wifi"]


@pytest.mark.parametrize("name", list_radios())
def test_every_shipped_number_names_a_source_and_is_marked_an_estimate(name: str) -> None:
    radio = load_radio(name)
    numbers = [value for value in msgspec.structs.astuple(radio) if isinstance(value, Figure)]
    assert radio.name == name
    assert len(numbers) == 9
    assert all(figure.estimate and len(figure.source) > 10 for figure in numbers)


def test_on_wifi_each_window_wakes_the_radio_and_lets_it_sleep_again() -> None:
    uplink = load_radio("wifi").uplink(0.5)
    tail, wake = (119.3 - 1.9) * 0.2381, (124.4 - 1.9) * 0.0791
    around = 2.27 * 0.322 + 1.096 * 0.211
    assert uplink.message_mj == pytest.approx(tail + wake + around, abs=0.01)
    assert uplink.transmit_w == pytest.approx(0.1329 - 0.0019)


def test_on_lte_the_radio_never_sleeps_between_windows_and_only_after_many_seconds() -> None:
    lte = load_radio("lte")
    around = 3.507 * 0.322 + 0.4158 * 0.211
    assert lte.uplink(0.5).message_mj == pytest.approx((1060 - 20.1) * 0.5 + around, abs=0.01)
    assert lte.uplink(0.5).transmit_w == pytest.approx(1.288 - 1.06)  # it would be awake anyway
    tail, wake = (1060 - 20.1) * 11.576, (1210.7 - 20.1) * 0.2601
    assert lte.uplink(60.0).message_mj == pytest.approx(tail + wake + around, abs=0.1)
    assert lte.uplink(60.0).transmit_w == pytest.approx(1.288 - 0.0201)


def test_on_lora_only_sending_costs_more_than_listening() -> None:
    uplink = load_radio("lora").uplink(0.5)
    assert (uplink.mj_per_kb, uplink.message_mj) == (0.0, 0.0)
    assert uplink.transmit_w == pytest.approx((29 - 12) * 3.3e-3)


def test_a_targets_own_wifi_takes_the_place_of_the_published_one_and_of_no_other_link() -> None:
    board = parse_target((RPI4 + OWN).encode(), "board.toml")  # what targets had before radios belonged to links
    assert radio_on(board, "wifi").uplink(0.5).mj_per_kb == 3.0
    assert radio_on(board, "wifi").send_w.value == 0.4
    assert radio_on(board, "lte") == load_radio("lte")
    assert radio_on(load_target("rpi4")) == load_radio("wifi")


def test_a_radio_of_the_users(tmp_path: Path) -> None:
    path = tmp_path / "modem.toml"
    path.write_text(LTE.replace('name = "lte"', 'name = "modem"'))
    assert load_radio(path).uplink(0.5).radio.link == "modem"
    assert load_radio(str(path)) == load_radio(path)


def test_an_unknown_link_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="no link '5g'; there are lora, lte, wifi, or give the path"):
        load_radio("5g")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("tail_ms = { value = 11576", "tail_ms = { value = nan", r"r\.toml: .*tail_ms\.value"),
        ("send_w = { value = 1.288", "send_w = { value = -1", r"r\.toml: .*send_w\.value"),
        ("tail_w = { value = 1.06", "tail_w = { value = 0.01", r"r\.toml: tail_w is less than idle_w"),
        ('name = "lte"', 'name = "../x"', r"r\.toml: .*name"),
        ('name = "lte"', 'name = "lte"\ncolour = 1', r"r\.toml: .*unknown field `colour`"),
        ("wake_ms =", "woken_ms =", r"r\.toml: .*wo?ke"),
    ],
)
def test_what_is_wrong_is_named_by_file_and_field(old: str, new: str, message: str) -> None:
    assert LTE.count(old) == 1
    with pytest.raises(UsageError, match=message):
        parse_radio(LTE.replace(old, new).encode(), "r.toml")
