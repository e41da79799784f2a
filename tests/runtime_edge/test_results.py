import json
import subprocess
import sys

import msgspec
import pytest

from runtime_edge.errors import UsageError
from runtime_edge.results import CallbackSink, JsonLines, WindowResult

RESULT = WindowResult(
    window=7,
    time=1.5,
    embedding=[0.6, 0.8],
    uncertainty=0.25,
    cut="layer1",
    encoding="int8",
    probe=False,
    generation=3,
    finished="server",
    latency_ms=12.5,
    device_ms=3.0,
    network_ms=8.5,
    server_ms=1.0,
    frame_bytes=321,
    bandwidth_mbps=5.0,
    rtt_ms=8.0,
    cpu=0.5,
)


def test_each_result_is_one_line_and_there_at_once(tmp_path):
    path = tmp_path / "results.jsonl"
    sink = JsonLines(str(path))
    sink.put(RESULT)
    (line,) = path.read_text().splitlines()
    assert msgspec.json.decode(line, type=WindowResult) == RESULT
    assert json.loads(line)["embedding"] == [0.6, 0.8]
    sink.put(RESULT)
    sink.close()
    assert len(path.read_text().splitlines()) == 2


def test_results_are_appended_to_those_of_the_run_before(tmp_path):
    path = tmp_path / "results.jsonl"
    for _ in range(2):
        sink = JsonLines(str(path))
        sink.put(RESULT)
        sink.close()
    assert len(path.read_text().splitlines()) == 2


def test_a_dash_is_standard_output_and_stays_open():
    code = (
        "from runtime_edge.results import JsonLines; import sys\n"
        "sink = JsonLines('-'); sink.close(); print('still open')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "still open\n"


def test_a_file_that_cannot_be_written_is_refused_by_name(tmp_path):
    for path in (tmp_path, tmp_path / "missing" / "file"):
        with pytest.raises(UsageError, match=f"results {path}: cannot be written"):
            JsonLines(str(path))


def test_a_callback_gets_the_result_itself():
    seen = []
    sink = CallbackSink(seen.append)
    sink.put(RESULT)
    sink.close()
    assert seen == [RESULT]
