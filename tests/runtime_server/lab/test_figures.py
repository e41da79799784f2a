import msgspec
import pytest

from runtime_edge.errors import FormatError
from runtime_edge.formats.results import WindowResult
from runtime_server.lab.figures import answered_by, reactions
from runtime_server.lab.scenarios import ScenarioStep
from runtime_server.lab.session import TimedResult
from runtime_server.lab.window_energy import metered_mj


def heard(at_s, cut, **changes):
    result = WindowResult(
        window=int(at_s * 2), time=100.0 + at_s, embedding=[1.0], uncertainty=0.5, cut=cut, encoding="int8",
        probe=False, generation=1, finished="server", latency_ms=1.0, device_ms=1.0, network_ms=0.0, server_ms=0.0,
        frame_bytes=1, bandwidth_mbps=1.0, rtt_ms=1.0, cpu=0.0,
    )  # fmt: skip
    return TimedResult(100.0 + at_s, msgspec.structs.replace(result, **changes))


def step(at_s):
    return ScenarioStep(at_s, 1.0, 50.0, 0.0, 0.0)


def test_reaction_is_from_a_step_to_the_first_window_at_the_cut_that_stays():
    cuts = {0: "a", 10.5: "b", 11: "a", 11.5: "b", 20: "b"}
    windows, cut = [], "a"
    for half in range(60):
        cut = cuts.get(half / 2, cut)
        windows.append(heard(half / 2, cut))
    found = reactions(100.0, windows, [step(0), step(10), step(20)])
    assert found == [0.5]  # the step at 20 s changed nothing


def test_a_width_is_another_answer_to_a_step():
    windows = [heard(half / 2, "a", width=8 if half < 21 else 32) for half in range(40)]
    assert reactions(100.0, windows, [step(0), step(10)]) == [0.5]


@pytest.mark.parametrize(
    ("changes", "by"),
    [
        ({"finished": "server"}, "a"),
        ({"finished": "server", "width": 16}, "a/16"),
        ({"finished": "exit", "width": 16}, "a+exit"),
        ({"finished": "fallback", "width": 16}, "local"),
        ({"finished": "device"}, "local"),
    ],
)
def test_an_embedding_is_known_by_what_made_it(changes, by):
    assert answered_by(heard(0, "a", **changes).result) == by


def test_a_meter_is_averaged_over_the_run(tmp_path):
    log = tmp_path / "meter.csv"
    log.write_text("time_s,watts\n" + "".join(f"{second},{3.0 if second < 10 else 5.0}\n" for second in range(20)))
    assert metered_mj(log, 2.0, 6.0, windows=12) == pytest.approx(3.0 * 6.0 / 12 * 1e3)
    with pytest.raises(FormatError, match="no readings"):
        metered_mj(log, 15.0, 10.0, windows=20)
    log.write_text("a,b\n1,2\n")
    with pytest.raises(FormatError, match="no column 'time_s'"):
        metered_mj(log, 0.0, 1.0, windows=2)
