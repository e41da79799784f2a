"""The application itself, asked without a server before it, which might refuse what a client sends."""

from __future__ import annotations

import asyncio

import pytest
from waiting import PATIENCE_S

from runtime_edge.errors import LinkError
from runtime_server.web.page_app import Listeners, make_app

TOKEN = "a token that somebody has"
CHANGE = b"event: changes\ndata: {}\n\n"


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


class LateSource(Source):
    """Does not answer the first questions."""

    def __init__(self, *troubles):
        self.troubles = list(troubles)

    async def place(self):
        if self.troubles:
            raise self.troubles.pop(0)
        return 0, 0


@pytest.mark.parametrize("trouble", [asyncio.TimeoutError(), LinkError("the broker is gone")])
def test_a_listener_hears_of_changes_although_the_server_was_busy_when_it_came(trouble):
    async def listened():
        listeners = Listeners(LateSource(trouble, trouble), look_s=0.0)
        stream = listeners.stream()
        assert b"event: hello" in await anext(stream)
        assert await asyncio.wait_for(anext(stream), PATIENCE_S) == CHANGE
        await stream.aclose()
        await listeners.hang_up()

    asyncio.run(listened())
