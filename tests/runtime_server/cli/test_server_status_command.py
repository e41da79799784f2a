"""What `ssc server status` makes of reports, whoever wrote them. The command itself runs in the integration tests."""

from hypothesis import given
from hypothesis import strategies as st

from runtime_server.cli.server_status_command import device_row, server_lines, unreadable_lines
from streamsplit_compile.cli.printing import print_table

REPORT = {
    "target": "rpi4", "generation_end": 3, "cuts": {"one": 3, "local": 40}, "windows_captured": 43,
    "windows_spooled": 2, "bytes_sent": 12_345, "seen_s": 130.0,
}  # fmt: skip


def test_a_device_in_a_row():
    expected = ["pi-1", "rpi4", "3", "local", "43", "41", "2", "12.3 kB", "2 min ago"]
    assert device_row("pi-1", REPORT, 41) == expected


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(sorted(set(REPORT) - {"seen_s"})), json_values))
def test_a_device_may_say_anything_of_itself(report):
    row = device_row("pi-1", {**report, "seen_s": 1.0}, 0)
    assert all(cell.isprintable() and len(cell) <= 64 for cell in row)
    print_table("Devices", ["column"] * len(row), [row])


def test_a_server_in_a_few_lines():
    release = {"generation": 2, "status": "stable", "devices": 3, "devices_proven": 2}
    own = {
        "encoder": "resnet18", "generation": 2, "uptime_s": 7300.0, "windows": {"pi-1": 10, "pi-2": 5},
        "counters": {"windows": 15, "over_rate": 7, "garbage": 0}, "training_steps": 9,
        "losses": [{"step": 9, "total": 1.23456}], "rollout": {"releases": [release]},
    }  # fmt: skip
    assert server_lines(own) == [
        "resnet18, generation 2, up 2 h",
        "15 windows arrived, 7 over rate",
        "9 training steps, loss 1.235",
        "release 2: stable, 3 devices, 2 of them proven",
    ]
    waiting = {"releases": [{**release, "devices_waiting": 1}], "paced": "generation 3 waits until tomorrow"}
    assert server_lines({**own, "rollout": waiting})[3:] == [
        "generation 3 waits until tomorrow",
        "release 2: stable, 3 devices, 2 of them proven, 1 wait for their budget",
    ]
    ranks = [{"rank": 0, "windows": 15, "uptime_s": 90.0}, {"rank": 1, "missing": True}]
    assert server_lines({**own, "ranks": ranks})[3:5] == ["rank 0: 15 windows, up 90 s", "rank 1: does not answer"]
    left_out = server_lines({**own, "out_of_range": {"pi-1": 2, "pi-2": 40}})[3]
    assert left_out == "42 windows of 2 devices are out of range and train nothing, 40 of pi-2"
    damaged = server_lines({**own, "ledger": {"damaged_lines": 3}})[3]
    assert damaged == "damaged lines of the ledger's journals: 3; as many windows may be counted twice"
    assert len(server_lines({**own, "ledger": {"damaged_lines": 0}})) == len(server_lines(own))
    energy = {"steps": 9, "joules_a_step": 1.2345, "above_idle_a_step": 0.5, "source": "RAPL of package-0"}
    assert server_lines({**own, "energy": energy})[3] == (
        "1.23 J a training step, 0.5 J above idle, by RAPL of package-0"
    )
    unknown_idle = server_lines({**own, "energy": {**energy, "above_idle_a_step": None}})[3]
    assert unknown_idle == "1.23 J a training step, by RAPL of package-0"
    assert server_lines({**own, "energy": {**energy, "steps": 0}}) == server_lines(own)
    adaptation = {
        "method": "cema", "scope": "alike", "together": [["pi-1", "pi-3"]], "sent": 3, "refused": 1,
        "withdrawn": 0, "bytes": 60_000,
        "windows": {"training": 224, "judging": 32, "dropped": 4, "unused": 5}, "waits": ["rpi4: has no head"],
    }  # fmt: skip
    assert server_lines({**own, "adaptation": adaptation})[3:6] == [
        "adaptation by cema: 3 sent (60.0 kB), 1 refused, 0 taken back; 224 windows trained, 32 judged, 4 dropped",
        "one adaptation for pi-1, pi-3, which hear alike",
        "no adaptation: rpi4: has no head",
    ]
    assert server_lines({**own, "adaptation": None}) == server_lines(own)
    bare = {**own, "losses": [], "counters": {}, "rollout": {"releases": []}, "windows": {}}
    assert server_lines(bare)[1:] == ["0 windows arrived", "9 training steps"]


def test_devices_without_a_report_that_can_be_read_are_named():
    assert unreadable_lines({}) == []
    unreadable = {f"pi-{number}": f"$KV.presence.pi-{number}: not JSON" for number in range(7)}
    lines = unreadable_lines(unreadable)
    assert lines[0] == "no report: $KV.presence.pi-0: not JSON"
    assert lines[-1] == "no report: 2 more that cannot be read"
