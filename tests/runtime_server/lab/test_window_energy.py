"""Energy of a window: a meter's log, and a radio over a run, worked out by hand."""

import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_edge.errors import FormatError
from runtime_edge.formats.results import WindowResult
from runtime_server.lab.window_energy import Transfer, blocks_mj, metered_mj, radio_mj
from streamsplit_compile.cost.radios import load_radio
from streamsplit_compile.splitter.pricing import bundle_actions

LTE = load_radio("lte")
IDLE = 0.0201
SEND = 1.288 - IDLE
TAIL = 1.06 - IDLE
WAKE = (1.2107 - IDLE) * 260.1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "meter.csv: no readings; the first line names the columns: time_s,watts"),
        ("time_s,watts\n", "meter.csv: no readings"),
        ("a,b\n1,2\n", "meter.csv: line 2: no column 'time_s'; the columns are time_s,watts"),
        ("time_s,watts\n0,1\n\n1\n", "meter.csv: line 4: watts is empty"),
        ("time_s,watts\r\n0,1\r\n1,high\r\n", "meter.csv: line 3: watts: 'high' is not a number"),
        ("time_s,watts\n0,1\n1,nan\n", "meter.csv: line 3: watts: 'nan' is not a number"),
    ],
)
def test_what_is_wrong_in_a_meters_log_is_named_by_file_and_line(tmp_path, text, message):
    log = tmp_path / "meter.csv"
    log.write_text(text, newline="")
    with pytest.raises(FormatError, match=re.escape(message)):
        metered_mj(log, 0.0, 1.0, windows=2)


def test_a_message_wakes_the_radio_and_leaves_a_tail():
    found = radio_mj(LTE, [Transfer(20.0, 20.1, "up", 2000)], 0.0, 60.0)
    assert found == pytest.approx(WAKE + SEND * 100 + 3.507 * 2 + TAIL * 11_576)


def test_what_comes_while_it_is_awake_wakes_nothing_and_prolongs_the_tail():
    found = radio_mj(LTE, [Transfer(20.0, 20.1, "up", 1000), Transfer(25.1, 25.2, "down", 1000)], 0.0, 60.0)
    assert found == pytest.approx(WAKE + SEND * 200 + 3.507 + 0.4158 + TAIL * (5_000 + 11_576))


def test_only_what_lies_in_the_run_counts_but_a_tail_from_before_does():
    before = [Transfer(-1.0, -0.9, "up", 5000)]
    assert radio_mj(LTE, before, 0.0, 5.0) == pytest.approx(TAIL * 5_000)
    assert radio_mj(LTE, before, 20.0, 30.0) == 0.0
    assert radio_mj(LTE, [*before, Transfer(1.0, 1.1, "up", 1000)], 0.0, 2.0) == pytest.approx(
        TAIL * 1_900 + SEND * 100 + 3.507
    )


def test_nothing_passed_is_nothing_above_idle():
    assert radio_mj(LTE, [], 0.0, 60.0) == 0.0


def test_receiving_costs_as_the_radio_says():
    lora = load_radio("lora")
    assert radio_mj(lora, [Transfer(1.0, 2.0, "down", 6250)], 0.0, 10.0) == 0.0  # it listens anyway
    assert radio_mj(lora, [Transfer(1.0, 2.0, "up", 6250)], 0.0, 10.0) == pytest.approx((29 - 12) * 3.3)


_TIMES = st.floats(0, 100, allow_nan=False)


@given(
    st.lists(st.tuples(_TIMES, st.floats(0, 5), st.sampled_from(["up", "down"]), st.integers(0, 100_000)), max_size=20)
)
def test_it_is_never_less_than_nothing_nor_more_than_always_sending(parts):
    transfers = [Transfer(begins, begins + lasts, way, size) for begins, lasts, way, size in parts]
    found = radio_mj(LTE, transfers, 0.0, 60.0)
    most = SEND * 60_000 + sum(3.507 * one.bytes / 1000 for one in transfers) + WAKE * len(transfers)
    assert 0.0 <= found <= most + 1e-6
    costless = msgspec.structs.replace(LTE, tail_ms=LTE.idle_w)
    assert radio_mj(costless, transfers, 0.0, 60.0) <= found + len(transfers) * WAKE


def result(cut, finished, width=0):
    return WindowResult(
        window=0, time=0.0, embedding=[1.0], uncertainty=0.5, cut=cut, encoding="int8", width=width, probe=False,
        generation=1, finished=finished, latency_ms=1.0, device_ms=1.0, network_ms=0.0, server_ms=0.0, frame_bytes=1,
        bandwidth_mbps=1.0, rtt_ms=1.0, cpu=0.0,
    )  # fmt: skip


def test_a_window_costs_the_blocks_that_ran_for_it_and_what_ran_behind_them(calibrated_bundle):
    def mj(cut, finished, width=0, exit_answered=False):
        return blocks_mj(result(cut, finished, width), exit_answered, calibrated_bundle, "rpi4")

    blocks = calibrated_bundle.manifest.info.targets["rpi4"].block_mj
    priced = {action.name: action.device_mj for action in bundle_actions(calibrated_bundle.manifest, "rpi4")}
    assert mj("stem", "server") == pytest.approx(blocks[0])
    assert mj("stem", "fallback") == mj("local", "device") == pytest.approx(sum(blocks))
    exit_mj = mj("stem", "exit", exit_answered=True) - blocks[0]  # it stands: nothing else ran
    assert exit_mj > 0
    assert mj("stem", "server", exit_answered=True) == pytest.approx(blocks[0] + exit_mj)
    # The table's action has the coding of the latent too, which a run measures.
    assert blocks[0] < mj("stem", "server", width=8) < priced["stem/8"]
    assert mj("stem", "server", 8, exit_answered=True) == pytest.approx(mj("stem", "server", 8) + exit_mj)
