import asyncio
import json
import os
import subprocess
import sys

import msgspec
import pytest
from labelled_results import LABELLED, RESULT

from runtime_edge.device.sinks import CallbackSink, JsonLines, dropped, written
from runtime_edge.errors import UsageError
from runtime_edge.formats.results import WindowResult


def test_each_result_is_one_line_and_there_soon(tmp_path):
    path = tmp_path / "results.jsonl"
    sink = JsonLines(str(path))
    sink.put(RESULT)
    asyncio.run(written([sink], None))
    (line,) = path.read_text().splitlines()
    assert msgspec.json.decode(line, type=WindowResult) == RESULT
    assert json.loads(line)["embedding"] == [0.6, 0.8]
    sink.put(RESULT)
    sink.close()
    assert len(path.read_text().splitlines()) == 2
    assert dropped([sink]) == 0


def test_results_are_appended_to_those_of_the_run_before(tmp_path):
    path = tmp_path / "results.jsonl"
    for _ in range(2):
        sink = JsonLines(str(path))
        sink.put(RESULT)
        sink.close()
    assert len(path.read_text().splitlines()) == 2


def test_a_dash_is_standard_output_and_stays_open():
    code = (
        "from runtime_edge.device.sinks import JsonLines; import sys\n"
        "sink = JsonLines('-'); sink.close(); print('still open')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "still open\n"


def test_a_file_that_cannot_be_written_is_refused_by_name(tmp_path):
    for path in (tmp_path, tmp_path / "missing" / "file"):
        with pytest.raises(UsageError, match=f"results {path}: cannot be written"):
            JsonLines(str(path))


def test_a_named_pipe_is_waited_for_in_the_background_and_written_once_somebody_reads(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    sink = JsonLines(str(path))
    sink.put(RESULT)
    with path.open("rb") as reader:
        assert msgspec.json.decode(reader.readline(), type=WindowResult) == RESULT
    sink.close()


SHOWN = """
import sys
from runtime_edge.device.sinks import JsonLines
from runtime_edge.formats.results import decode_result
sink = JsonLines("-")
sink.put(decode_result(sys.argv[1].encode()))
sink.close()
"""


def test_on_a_terminal_embeddings_are_left_out_and_in_a_pipe_they_are_not():
    command = [sys.executable, "-c", SHOWN, msgspec.json.encode(RESULT).decode()]
    ours, terminal = os.openpty()
    try:
        subprocess.run(command, stdout=terminal, check=True, timeout=60)
        shown = json.loads(os.read(ours, 1 << 16))
    finally:
        os.close(terminal)
        os.close(ours)
    piped = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
    assert piped == json.loads(msgspec.json.encode(RESULT))
    assert shown == {name: value for name, value in piped.items() if name != "embedding"}


def test_a_closed_standard_output_is_refused():
    code = "from runtime_edge.device.sinks import JsonLines; JsonLines('-')"
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$0" -c "$1" >&-', sys.executable, code], capture_output=True, text=True, timeout=60
    )
    assert "UsageError: results -: standard output is closed" in done.stderr


READER = """
import sys, time
from runtime_edge.device.sinks import JsonLines, all_gone, dropped, have_room
from runtime_edge.formats.results import decode_result
sink, result = JsonLines("-"), decode_result(sys.argv[1].encode())
for _ in range(2000):
    sink.put(result)
    while sys.argv[2] == "wait" and not have_room([sink]):
        time.sleep(0.001)
print("put", file=sys.stderr, flush=True)
sys.stdin.read()
sink.close()
print(dropped([sink]), all_gone([sink]), file=sys.stderr)
"""


@pytest.fixture
def writer():
    """A process that writes 2000 results of 12 kB to a pipe, each at once or when there is room."""
    long = msgspec.structs.replace(RESULT, embedding=[0.12345] * 1024)
    processes = []

    def start(mode):
        command = [sys.executable, "-c", READER, msgspec.json.encode(long).decode(), mode]
        processes.append(subprocess.Popen(command, **dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        with process:
            pass


@pytest.mark.integration
def test_a_reader_who_does_not_read_costs_results_and_holds_up_nothing(writer):
    process = writer("now")
    said = [process.stderr.readline(), process.stderr.readline()]
    assert b"put\n" in said
    assert any(b"results -: is not read, or cannot be written, as fast as lines come" in line for line in said)
    process.stdin.close()
    rest = process.stderr.read()
    assert int(rest.splitlines()[-1].split()[0]) > 1_500
    assert b"lines were dropped" in rest


def test_what_can_wait_loses_nothing_to_a_slow_reader(writer):
    process = writer("wait")
    process.stdin.close()
    assert sum(1 for _ in process.stdout) == 2_000
    assert process.stderr.read().splitlines()[-1] == b"0 False"


def test_a_reader_who_has_gone_is_mentioned_once(writer):
    process = writer("now")
    process.stdout.readline()
    process.stdout.close()
    process.stdin.close()
    said = process.stderr.read()
    assert said.count(b"its reader has gone") == 1
    assert said.splitlines()[-1].endswith(b" True")


def test_a_callback_gets_the_result_itself():
    seen = []
    sink = CallbackSink(seen.append)
    sink.put(RESULT)
    sink.close()
    assert seen == [RESULT]


def test_labels_stand_in_a_result_only_when_there_is_a_head(tmp_path):
    sink = JsonLines(str(tmp_path / "results.jsonl"))
    sink.put(RESULT)
    sink.put(LABELLED)
    sink.close()
    plain, labelled = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    assert labelled.keys() - plain.keys() == {"labels", "detected", "head_generation"}
    assert list(labelled["labels"]) == ["dog", "rain", "alarm"]
