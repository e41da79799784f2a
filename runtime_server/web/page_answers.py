"""JSON answers, and reading the JSON that a browser sends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from runtime_edge.errors import SscError, UsageError

MAX_BODY = 1024


def json_answer(body: bytes, status: int = 200) -> Response:
    """An answer whose body is JSON already."""
    return Response(body, status, media_type="application/json")


def problem(status: int, words: str) -> Response:
    """An answer that says what went wrong."""
    return json_answer(json.dumps({"error": words}).encode() + b"\n", status)


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
