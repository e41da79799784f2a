"""A device that watches a folder: each recording once, over restarts."""

import json
import os
import signal

import harness
import pytest

pytestmark = pytest.mark.integration


def test_recordings_that_come_are_processed_once_over_restarts(toy, tmp_path):
    incoming, results = tmp_path / "in", tmp_path / "results.jsonl"
    incoming.mkdir()
    command = ["edge", "run", "--watch", incoming, "--bundle", toy / "bundle", "--state", tmp_path / "state",
               "--no-realtime", "--results", results]  # fmt: skip

    def heard():
        lines = results.read_text().splitlines() if results.exists() else []
        found = [json.loads(line) for line in lines]
        return sorted({os.path.basename(result["file"]) for result in found}), len(found)

    windows = {}
    for run, names in enumerate((["a.wav", "b.wav"], ["c.wav"])):
        device = harness.Process(tmp_path / f"{run}.log", *command)
        for name in names:
            path = harness.write_wav(tmp_path / name, 1.0, seed=ord(name[0]))
            windows[name] = len(harness.windows_of(path))
            path.rename(incoming / name)
        harness.until(lambda: heard() == (sorted(windows), sum(windows.values())), "every window once")
        device.signal(signal.SIGTERM)
        device.finish()
        assert "waiting for the first window" not in device.text(), "a line for a terminal, where there is none"
    harness.assert_no_traceback(tmp_path)


def test_a_folder_that_is_not_there_and_a_second_source_are_one_line(toy, tmp_path):
    for options, words in (
        (["--watch", "gone"], "gone: no such directory: make it, or watch another one"),
        (["--watch", ".", "--loop"], "watch .: each recording is processed once; leave out loop"),
        (["--watch", ".", "--source", "mic"], "source mic and watch .: give one of them"),
    ):
        log = tmp_path / "edge.log"
        device = harness.Process(log, "edge", "run", *options, "--bundle", toy / "bundle", "--state", tmp_path / "s")
        harness.until(lambda: not device.running, "it ends")  # noqa: B023
        assert log.read_text().splitlines()[-1] == f"ssc: {words}"
