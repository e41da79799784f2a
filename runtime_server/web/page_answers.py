"""JSON answers, files of which a browser may ask a part, and reading the JSON that it sends."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from runtime_edge.errors import SscError, UsageError

MAX_BODY = 1024
_RANGE = re.compile(r"bytes=(\d{0,15})-(\d{0,15})", re.ASCII | re.IGNORECASE)
"""One range; as RFC 9110 allows, several are answered with the whole."""


def json_answer(body: bytes, status: int = 200) -> Response:
    """An answer whose body is JSON already."""
    return Response(body, status, media_type="application/json")


def problem(status: int, words: str) -> Response:
    """An answer that says what went wrong."""
    return json_answer(json.dumps({"error": words}).encode() + b"\n", status)


def file_answer(request: Request, body: bytes, media_type: str) -> Response:
    """An answer with a file, or with the part of it that the request's Range header asks for.

    Safari plays no sound without such parts. `starlette.responses.FileResponse` knows them, but only of files on the
    disk. The status of a part is 206, and 416 if the file has no such part.
    """
    headers = {"Accept-Ranges": "bytes"}
    asked = _RANGE.fullmatch(request.headers.get("range", "").strip())
    first, last = asked.groups() if asked is not None else ("", "")
    wrong = not (first or last) or bool(first and last and int(last) < int(first))
    if request.method != "GET" or "if-range" in request.headers or wrong:  # no answer has what If-Range compares
        return Response(body, headers=headers, media_type=media_type)
    size = len(body)
    start = int(first) if first else max(0, size - int(last))
    end = min(size, int(last) + 1) if first and last else size
    if start >= size:
        answer = problem(416, f"there are {size} bytes")
        answer.headers.update({**headers, "Content-Range": f"bytes */{size}"})
        return answer
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    return Response(body[start:end], 206, headers, media_type)


async def read_json(request: Request) -> Any:
    """The JSON of a request; None if it is not JSON. An answer if the request should not be read at all."""
    if request.headers.get("content-type") != "application/json":
        return problem(415, "send JSON")
    body = b""
    try:
        async for part in request.stream():
            body += part
            if len(body) > MAX_BODY:
                return problem(413, f"at most {MAX_BODY} bytes are read")
    except ClientDisconnect:
        return problem(400, "the request is not whole")
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


async def answered(work: Awaitable[Response], impossible: int) -> Response:
    """The answer that `work` gives, or why there is none; `impossible` is the status for a UsageError."""
    try:
        return await work
    except asyncio.TimeoutError:
        return problem(503, "the server does not answer in time")
    except UsageError as exc:
        return problem(impossible, str(exc))
    except SscError as exc:
        return problem(503, str(exc))
    except OSError as exc:
        return problem(503, f"cannot be written: {exc.strerror or exc}")
