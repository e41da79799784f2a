"""The application itself, asked without a server before it, which might refuse what a client sends."""

from __future__ import annotations

import asyncio

import pytest

from runtime_server.web.page_app import Listeners, make_app

TOKEN = "a token that somebody has"


class Source:
    """Has one view, and a change at each look."""

    async def get(self, view):
        return b"{}"

    async def place(self):
        return 0, 0

    async def changes(self, revision, number):
        return b"{}", revision + 1, number


def ask(path, *headers):
    """The status of the answer."""
    source, told = Source(), []
    scope = {
        "type": "http", "method": "GET", "scheme": "http", "path": path, "raw_path": path.encode(), "root_path": "",
        "query_string": b"", "headers": list(headers), "server": ("127.0.0.1", 8081), "http_version": "1.1",
    }  # fmt: skip

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        told.append(message)

    asyncio.run(make_app(source, Listeners(source), TOKEN, None)(scope, receive, send))
    return told[0]["status"]


@pytest.mark.parametrize("host", [b"pi", b"pi?", b"pi#", b"pi/x?", b"pi/x#", b"", b"[", b"a@b?"])
def test_no_host_name_leads_around_the_token(host):
    """What a part of the code takes for the path must be what decides which view is given."""
    assert ask("/api/v1/devices", (b"host", host)) == 401
    assert ask("/api/v1/devices", (b"host", host), (b"authorization", b"Bearer " + TOKEN.encode())) == 200
