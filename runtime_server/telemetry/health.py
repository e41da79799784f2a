"""The server over HTTP on this machine: `GET /healthz` is 200, or 503 with what is wrong; `/metrics` has metrics.

health = HealthServer(8080, {"/healthz": healthz(server.troubles), "/metrics": metrics_page(server.measure)})
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import threading
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from runtime_edge.base import prometheus
from runtime_edge.errors import MissingExtra, UsageError
from runtime_server.telemetry.server_metrics import ServerMeasurements, families

TIMEOUT_S = 3.0
"""How soon the event loop must answer."""


@dataclass(frozen=True)
class HealthAnswer:
    """The answer to a request for a path."""

    status: int
    body: bytes
    content_type: str = "application/json"


class HealthServer:
    """Answers GET requests on 127.0.0.1 in its own threads until closed.

    Args:
        port: 0 takes a free one, which `port` then names.
        paths: the function to call for each path. The calls come from other threads.

    Raises:
        UsageError: the port is taken.
    """

    def __init__(self, port: int, paths: Mapping[str, Callable[[], HealthAnswer]]) -> None:
        class Handler(BaseHTTPRequestHandler):
            timeout = TIMEOUT_S

            def do_GET(self) -> None:  # the name that the library requires
                ask = paths.get(self.path.partition("?")[0])
                answer = ask() if ask else HealthAnswer(404, json.dumps({"paths": sorted(paths)}).encode())
                self.send_response(answer.status)
                self.send_header("Content-Type", answer.content_type)
                self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                self.wfile.write(answer.body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
                """Log nothing: probes come every few seconds."""

        try:
            self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        except OSError as exc:
            raise UsageError(f"--metrics-port {port}: {exc.strerror}; choose another") from None
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="health", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def metrics_page(
    measure: Callable[[], Coroutine[Any, Any, ServerMeasurements]], timeout_s: float = TIMEOUT_S
) -> Callable[[], HealthAnswer]:
    """The function for `/metrics`; `measure` runs on the caller's event loop.

    503 if the event loop is stuck, 501 if prometheus-client is not installed.
    """
    loop = asyncio.get_running_loop()

    def ask() -> HealthAnswer:
        asked = asyncio.run_coroutine_threadsafe(measure(), loop)
        try:
            prometheus.require()
            return HealthAnswer(200, prometheus.render(families(asked.result(timeout_s))), prometheus.CONTENT_TYPE)
        except MissingExtra as exc:
            return HealthAnswer(501, f"{exc}\n".encode(), "text/plain")
        except (concurrent.futures.TimeoutError, concurrent.futures.CancelledError):
            asked.cancel()
            return HealthAnswer(503, b"no answer in time\n", "text/plain")

    return ask


def healthz(
    troubles: Callable[[], Coroutine[Any, Any, list[str]]], timeout_s: float = TIMEOUT_S
) -> Callable[[], HealthAnswer]:
    """The function for `/healthz`; `troubles` runs on the caller's event loop and must answer quickly.

    200 without troubles, else 503; also 503 if the event loop is stuck.
    """
    loop = asyncio.get_running_loop()

    def ask() -> HealthAnswer:
        asked = asyncio.run_coroutine_threadsafe(troubles(), loop)
        try:
            found = asked.result(timeout_s)
        except (concurrent.futures.TimeoutError, concurrent.futures.CancelledError):
            asked.cancel()
            found = [f"no answer within {timeout_s:g} s"]
        body = {"status": "unhealthy" if found else "ok", "troubles": found}
        return HealthAnswer(503 if found else 200, json.dumps(body).encode() + b"\n")

    return ask
