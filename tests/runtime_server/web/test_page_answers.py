"""A file that is answered whole or in parts, as RFC 9110 has it."""

import json

import pytest
from starlette.requests import Request

from runtime_server.web.page_answers import file_answer

WHOLE = bytes(range(200)) * 5
SIZE = len(WHOLE)


def ask(range_header=None, method="GET", **headers):
    if range_header is not None:
        headers["range"] = range_header
    raw = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    return file_answer(Request({"type": "http", "method": method, "headers": raw}), WHOLE, "audio/wav")


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-1", 0, 1), ("bytes=44-143", 44, 143), ("bytes=100-", 100, SIZE - 1), ("bytes=0-", 0, SIZE - 1),
        ("bytes=-20", SIZE - 20, SIZE - 1), (f"bytes=-{SIZE}", 0, SIZE - 1), (f"bytes=-{SIZE + 9}", 0, SIZE - 1),
        (f"bytes=7-{10**14}", 7, SIZE - 1), (f"bytes={SIZE - 1}-", SIZE - 1, SIZE - 1), ("Bytes=3-3", 3, 3),
    ],
)  # fmt: skip
def test_a_part_is_what_was_asked_for(asked, first, last):
    answer = ask(asked)
    assert (answer.status_code, answer.headers["Content-Type"]) == (206, "audio/wav")
    assert answer.headers["Content-Range"] == f"bytes {first}-{last}/{SIZE}"
    assert answer.headers["Content-Length"] == str(last - first + 1)
    assert answer.body == WHOLE[first : last + 1]


@pytest.mark.parametrize("asked", [f"bytes={SIZE}-", f"bytes={SIZE + 5}-{SIZE + 6}", "bytes=-0"])
def test_a_part_beyond_the_end_is_refused_with_the_size(asked):
    answer = ask(asked)
    assert (answer.status_code, answer.headers["Content-Range"]) == (416, f"bytes */{SIZE}")
    assert str(SIZE) in json.loads(answer.body)["error"]


NO_PART = [None, "", "bytes=9-3", "bytes=-", "bytes=0-1,5-6", "lines=0-1", "bytes=a-b", "bytes=" + "9" * 5000 + "-",
           "bytes=\xb2-", "bytes 0-1"]  # fmt: skip


@pytest.mark.parametrize("asked", NO_PART)
def test_what_names_no_single_part_is_answered_with_the_whole(asked):
    answer = ask(asked)
    assert (answer.status_code, answer.body) == (200, WHOLE)
    assert answer.headers["Accept-Ranges"] == "bytes"
    assert "Content-Range" not in answer.headers


def test_so_is_a_question_for_the_headers_and_one_about_an_earlier_version():
    assert ask("bytes=0-1", "HEAD").status_code == 200
    assert ask("bytes=0-1", if_range='"a tag"').body == WHOLE
