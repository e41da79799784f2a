"""Radios: the energy that a link costs a device, as a TOML file of published figures that each name their source.

The files are in `streamsplit_compile/cost/radios/`; a user's own file has the same fields.

    radio = load_radio("lte")           # or load_radio("my-modem.toml")
    radio.uplink(hop_s=0.5)             # as a splitter table charges it

A radio sleeps (`idle_w`), wakes (`wake_w` for `wake_ms`), transfers (`send_w` or `receive_w`, plus energy for each
byte), and stays awake (`tail_w`) until nothing has been transferred for `tail_ms`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from runtime_edge.base.files import read_bounded
from runtime_edge.errors import UsageError
from runtime_edge.formats.records.actions import LinkRadio, Uplink
from runtime_edge.formats.strict import Strict, decode
from streamsplit_compile.cost.figure_files import figure_file, names_in
from streamsplit_compile.cost.targets import MAX_TARGET_BYTES, Figure, Target

RADIOS = Path(__file__).with_name("radios")
DEFAULT_LINK = "wifi"
SURROUND_UP_BYTES, SURROUND_DOWN_BYTES = 322, 211
"""Bytes beside the payload of a window in a message of its own: headers of all layers, acknowledgements, and the reply
without its embedding (`python -m tools.bench_wire --only prompt`; docs/method.md, section 12)."""


class Radio(Strict, frozen=True):
    """Power and energy of one radio, in addition to a board without one."""

    name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    description: Annotated[str, Meta(max_length=400)]
    send_mj_per_kb: Figure
    """Energy for 1000 bytes sent, in addition to `send_w`, mJ."""
    receive_mj_per_kb: Figure
    send_w: Figure
    """Power while it sends, whatever the rate, W."""
    receive_w: Figure
    idle_w: Figure
    """Mean power after a long time without transfers, including periodic listening, W."""
    wake_w: Figure
    wake_ms: Figure
    """Time from sleep to sending."""
    tail_w: Figure
    """Power while awake with nothing to transfer, W."""
    tail_ms: Figure
    """How long it stays awake after the last byte."""

    def uplink(self, hop_s: float) -> Uplink:
        """The cost above idle of shipping a window, if one is shipped every `hop_s` s, each in a message of its own.

        If the tail lasts until the next window, the radio never sleeps: it need not wake, and time spent sending is not
        spent in the tail.
        """
        awake = self.tail_ms.value >= hop_s * 1e3
        rests_at = self.tail_w.value if awake else self.idle_w.value
        tail_ms = min(self.tail_ms.value, hop_s * 1e3)
        message_mj = (
            (self.tail_w.value - self.idle_w.value) * tail_ms
            + (0.0 if awake else (self.wake_w.value - self.idle_w.value) * self.wake_ms.value)
            + (self.send_mj_per_kb.value * SURROUND_UP_BYTES + self.receive_mj_per_kb.value * SURROUND_DOWN_BYTES)
            / 1000
        )
        return Uplink(
            mj_per_kb=self.send_mj_per_kb.value,
            transmit_w=round(max(0.0, self.send_w.value - rests_at), 6),
            radio=LinkRadio(link=self.name, message_mj=round(message_mj, 4)),
        )


def list_radios() -> list[str]:
    """Names of the radios that come with the package, sorted."""
    return names_in(RADIOS)


def load_radio(name_or_path: str | Path) -> Radio:
    """Load a radio by name, or from the user's own TOML file.

    Raises UsageError listing the known names, or naming the file and the field that is wrong; FormatError
    when the file cannot be read or is larger than 64 KiB.
    """
    path = figure_file(RADIOS, name_or_path, "link")
    return parse_radio(read_bounded(path, MAX_TARGET_BYTES), str(path))


def parse_radio(data: bytes, source: str) -> Radio:
    """Read and check a radio file. Raises UsageError naming `source` and the field."""
    radio = decode(data, Radio, source, MAX_TARGET_BYTES, UsageError, "TOML")
    for name in ("wake_w", "tail_w", "send_w", "receive_w"):
        figure = getattr(radio, name)
        if figure.value < radio.idle_w.value and not (name == "wake_w" and radio.wake_ms.value == 0):
            raise UsageError(f"{source}: {name} is less than idle_w")
    return radio


def radio_on(target: Target, link: str | Path = DEFAULT_LINK) -> Radio:
    """The radio of a link on a target. Figures in the target's file for the board's own Wi-Fi take precedence."""
    radio = load_radio(link)
    own = target.radio
    if own is None or radio.name != DEFAULT_LINK:
        return radio
    return msgspec.structs.replace(radio, send_mj_per_kb=own.mj_per_kb, send_w=own.transmit_w)
