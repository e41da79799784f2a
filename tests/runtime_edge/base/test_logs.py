import datetime as dt
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from runtime_edge.base.logs import JsonFormatter, LastTroubles


def record(message, *arguments, level=logging.WARNING, **fields):
    made = logging.LogRecord("runtime_edge.transport.connection", level, __file__, 1, message, arguments, None)
    vars(made).update(fields)
    return made


def test_a_line_is_one_json_object_with_the_fields_that_were_passed():
    line = JsonFormatter().format(record("lost %d\n of %s", 3, "ü", cut="one", path=Path("a/b"), count=2))
    assert "\n" not in line
    found = json.loads(line)
    moment = dt.datetime.fromisoformat(found.pop("time"))
    assert abs((dt.datetime.now(dt.timezone.utc) - moment).total_seconds()) < 60
    assert found == {
        "level": "warning", "logger": "runtime_edge.transport.connection", "message": "lost 3\n of ü",
        "cut": "one", "path": "a/b", "count": 2,
    }  # fmt: skip


def test_an_exception_comes_with_its_traceback_on_the_same_line():
    try:
        raise ValueError("broken")
    except ValueError:
        made = record("failed", level=logging.ERROR, exc_info=sys.exc_info())
    line = JsonFormatter().format(made)
    assert "\n" not in line
    assert "ValueError: broken" in json.loads(line)["exception"]


@pytest.mark.parametrize(("style", "is_json"), [("json", True), ("text", False)])
def test_a_process_logs_to_standard_error_in_the_style_asked_for(style, is_json):
    script = (
        f"from runtime_edge.base.logs import configure; import logging; configure('info', '{style}');"
        "logging.getLogger('x').debug('no'); logging.getLogger('x').info('yes', extra={'cut': 'one'})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    if is_json:
        assert {key: json.loads(line)[key] for key in ("level", "message", "cut")} == {
            "level": "info", "message": "yes", "cut": "one",
        }  # fmt: skip
    else:
        assert line.endswith("INFO x: yes")


@pytest.mark.integration
def test_a_standard_error_that_nobody_reads_costs_lines_and_holds_up_nothing():
    script = (
        "from runtime_edge.base.logs import configure; import logging; configure('info', 'text')\n"
        "for number in range(2000): logging.info('%d %s', number, 'x' * 1000)\n"
        "print('done', flush=True)"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"done\n"
        assert process.wait(timeout=60) == 0
        first, *_ = process.stderr.read().splitlines()
    assert first.endswith(b"INFO root: 0 " + b"x" * 1000)


def test_names_that_are_not_utf_8_stand_in_logs_and_troubles():
    name = Path(os.fsdecode(b"M\xfcnchen.wav"))
    assert "M\\xfcnchen.wav" in json.loads(JsonFormatter().format(record("%s: bad", name)))["message"]
    with LastTroubles() as troubles:
        logging.getLogger("runtime_edge.test").warning("%s: bad", name)
    assert troubles.newest_first()[0].message == "M\\xfcnchen.wav: bad"


def test_the_last_troubles_of_this_package_are_kept_newest_first_and_those_of_others_are_not():
    logger = logging.getLogger("runtime_edge.test")
    with LastTroubles(keep=2) as troubles:
        for number in range(3):
            logger.warning("trouble %d", number)
        logger.info("fine")
        logging.getLogger("other").error("not ours")
    logger.error("after")
    assert [trouble.message for trouble in troubles.newest_first()] == ["trouble 2", "trouble 1"]
