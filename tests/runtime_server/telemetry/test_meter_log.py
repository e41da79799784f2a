"""A meter's log that grows while it is read."""

import pytest

from runtime_edge.errors import FormatError
from runtime_server.telemetry.meter_log import MeterLog


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "meter.csv"
    path.write_text("volts,time_s,watts\n230,90,7\n230,99,5\n")
    return path


def append(path, text):
    with path.open("a") as file:
        file.write(text)


def test_each_reading_holds_until_the_next_one(log):
    now = [100.0]
    meter = MeterLog(log, 2.0, lambda: now[0])
    assert (meter.joules(), meter.idle_w, meter.name) == (0.0, 2.0, f"meter {log}")
    now[0] = 102.0
    assert meter.joules() == pytest.approx(2 * 5.0)
    append(log, "230,103,9\n230,104,4\n")
    now[0] = 106.0
    assert meter.joules() == pytest.approx(3 * 5.0 + 1 * 9.0 + 2 * 4.0)


def test_a_line_that_is_being_written_is_read_when_it_is_whole(log):
    now = [100.0]
    meter = MeterLog(log, clock=lambda: now[0])
    append(log, "230,101,1")
    now[0] = 102.0
    assert meter.joules() == pytest.approx(2 * 5.0)
    append(log, "00\n")
    now[0] = 104.0
    assert meter.joules() == pytest.approx(2 * 5.0 + 2 * 100.0)


def test_a_log_that_nobody_writes_any_more_is_no_source(log):
    now = [105.0]
    meter = MeterLog(log, clock=lambda: now[0])
    now[0] = 110.0
    with pytest.raises(FormatError, match=r"meter.csv: no reading of the last 10 s"):
        meter.joules()
    with pytest.raises(FormatError, match="no reading"):
        MeterLog(log, clock=lambda: now[0])


@pytest.mark.parametrize(
    "text",
    ["a,b\n1,2\n", "time_s,watts\n1,x\n", "time_s,watts\n1\n", "time_s,watts\n1,1e300\n", "time_s,watts\n1,nan\n"],
)
def test_another_file_is_named(log, text):
    log.write_text(text)
    with pytest.raises(FormatError, match=r"meter.csv: expected CSV with time_s and watts"):
        MeterLog(log, clock=lambda: 1.0)
