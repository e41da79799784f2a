"""/healthz over real HTTP."""

import asyncio
import json
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from runtime_edge.errors import UsageError
from runtime_server.telemetry.health import HealthAnswer, HealthServer, healthz, metrics_page
from runtime_server.telemetry.server_metrics import ServerMeasurements


def get(port, path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, exc.read()


def test_it_is_well_until_something_is_wrong_and_says_what():
    wrong = []

    async def troubles():
        return wrong

    async def life():
        server = HealthServer(
            0, {"/healthz": healthz(troubles, 0.3), "/metrics": lambda: HealthAnswer(200, b"x 1\n", "text/plain")}
        )
        try:
            answers = [
                await asyncio.to_thread(get, server.port, path) for path in ("/healthz?verbose", "/metrics", "/")
            ]
            wrong.append("the broker is away")
            answers.append(await asyncio.to_thread(get, server.port, "/healthz"))
            with ThreadPoolExecutor(1) as pool:  # the event loop stands still until the answer is there
                return [*answers, pool.submit(get, server.port, "/healthz").result(60)]
        finally:
            server.close()

    well, metrics, nothing, away, stuck = asyncio.run(life())
    assert (well[0], json.loads(well[1])) == (200, {"status": "ok", "troubles": []})
    assert metrics == (200, b"x 1\n")
    assert (nothing[0], json.loads(nothing[1])) == (404, {"paths": ["/healthz", "/metrics"]})
    assert (away[0], json.loads(away[1])["troubles"]) == (503, ["the broker is away"])
    assert (stuck[0], json.loads(stuck[1])["troubles"]) == (503, ["no answer within 0.3 s"])


def test_a_port_in_use_is_refused():
    server = HealthServer(0, {})
    try:
        with pytest.raises(UsageError, match=f"--metrics-port {server.port}"):
            HealthServer(server.port, {})
    finally:
        server.close()


def test_measures_without_the_package_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)

    async def measure():
        return ServerMeasurements("tiny", 1, 2.0, 3, 4, {}, True)

    async def life():
        server = HealthServer(0, {"/metrics": metrics_page(measure)})
        try:
            return await asyncio.to_thread(get, server.port, "/metrics")
        finally:
            server.close()

    status, body = asyncio.run(life())
    assert status == 501
    assert b"-py3-none-any.whl[metrics]" in body
