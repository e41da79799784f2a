"""Over HTTP: who is let in, what the answers' headers say, and what listeners hear."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import socket
import stat
import wave
from urllib.parse import urlsplit

import pytest
from showroom import RATE, Showroom
from waiting import PATIENCE_S, until

from runtime_edge.errors import UsageError
from runtime_server.web.page_app import MAX_LISTENERS, VIEWS
from runtime_server.web.page_server import MAX_CONNECTIONS, WebAddress


class Browser:
    """One request after another, each on a connection of its own."""

    def __init__(self, room: Showroom) -> None:
        self.port = urlsplit(room.page.url).port

    def ask(self, path, method="GET", body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        try:
            return answer, answer.read()
        finally:
            connection.close()

    def listen(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        connection.request("GET", "/api/v1/stream")
        return connection, connection.getresponse()


@pytest.fixture
def room(tmp_path):
    room = Showroom(tmp_path)
    yield room
    room.close()


@pytest.fixture
def open_room(tmp_path):
    room = Showroom(tmp_path / "state", "0.0.0.0:0")
    yield room
    room.close()


@pytest.mark.parametrize("path", ["/", *(f"/api/v1/{view}" for view in VIEWS), "/static/page.js", "/api/v1/none", "/x"])
def test_every_answer_keeps_strangers_content_out(room, path):
    answer, body = Browser(room).ask(path)
    assert answer.status == (404 if path in ("/api/v1/none", "/x") else 200), body
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert "unsafe" not in answer.headers["Content-Security-Policy"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_nothing_above_the_static_files_can_be_had(room):
    for path in ("/static/../page_app.py", "/static/%2e%2e/page_app.py", "/static/..%2fpage_app.py"):
        answer, _ = Browser(room).ask(path)
        assert answer.status == 404


def test_no_other_name_leads_to_a_page_of_this_machine(room):
    """A stranger's site whose name leads here would be in a browser that may read the page."""
    browser = Browser(room)
    for host, status in (("evil.example", 421), ("evil.example:80", 421), ("localhost:1", 200), ("[::1]:1", 200)):
        assert browser.ask("/api/v1/devices", Host=host)[0].status == status


def test_prometheus_reads_what_devices_say(room):
    room.devices(2)
    answer, body = Browser(room).ask("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert b'ssc_device_up{device="' in body
    assert Browser(room).ask("/api/v1/metrics")[0].status == 404, "it is no view"


def test_nothing_but_a_correction_can_be_written(room):
    for method in ("POST", "PUT", "DELETE"):
        assert Browser(room).ask("/api/v1/devices", method)[0].status == 405
    for method in ("PUT", "DELETE", "PATCH"):
        assert Browser(room).ask("/api/v1/corrections", method)[0].status == 405


def corrected(browser, body, **headers):
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
    answer, said = browser.ask("/api/v1/corrections", "POST", body, **{"content_type": "application/json"} | headers)
    return answer.status, json.loads(said)


def test_a_sound_is_seen_heard_and_corrected(room):
    room.devices(3)
    room.label("pi-000", "on", "rain")
    browser = Browser(room)
    picture = json.loads(browser.ask("/api/v1/events/1/picture")[1])
    assert picture["seconds"] > 1
    answer, heard = browser.ask("/api/v1/events/1/audio.wav")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "audio/wav")
    with wave.open(io.BytesIO(heard)) as file:
        assert file.getframerate() == RATE
        assert file.getnframes() / RATE == pytest.approx(picture["seconds"], abs=1e-3)
    answer, part = browser.ask("/api/v1/events/1/audio.wav", Range="bytes=0-1")  # Safari's first question
    assert (answer.status, answer.headers["Content-Range"], part) == (206, f"bytes 0-1/{len(heard)}", heard[:2])
    assert corrected(browser, {"number": 1, "label": "dog_bark"})[0] == 200
    (event,) = json.loads(browser.ask("/api/v1/events")[1])["events"]
    assert event["corrected"] == "dog_bark"
    (one,) = json.loads(browser.ask("/api/v1/corrections")[1])["corrections"]
    assert (one["device"], one["heard"], one["label"]) == ("pi-000", "rain", "dog_bark")
    assert corrected(browser, {"number": 1, "label": None})[0] == 200
    assert json.loads(browser.ask("/api/v1/corrections")[1])["corrections"] == []
    assert corrected(browser, {"number": 1, "label": "dog_bark"})[0] == 200
    sound = {name: one[name] for name in ("device", "heard", "since")}
    assert corrected(browser, sound | {"label": "cat"})[0] == 400, "only taken back without its event"
    assert corrected(browser, sound | {"label": None})[0] == 200
    assert json.loads(browser.ask("/api/v1/corrections")[1])["corrections"] == []


def test_what_has_not_come_as_audio_is_said(room):
    room.devices(3)
    for device in ("pi-001", "pi-002"):
        room.label(device, "on", "rain")
    browser = Browser(room)
    for number, why in ((1, "sent activations"), (2, "kept it to itself")):
        assert why in json.loads(browser.ask(f"/api/v1/events/{number}/picture")[1])["why"]
        answer, said = browser.ask(f"/api/v1/events/{number}/audio.wav")
        assert answer.status == 404
        assert why in json.loads(said)["error"]
    assert corrected(browser, {"number": 1, "label": "dog"})[0] == 200, "activations teach a head, too"
    status, said = corrected(browser, {"number": 2, "label": "dog"})
    assert status == 409
    assert "nothing to learn from" in said["error"]
    for path in ("/api/v1/events/9/picture", "/api/v1/events/9/audio.wav"):
        assert browser.ask(path)[0].status == 404
    assert browser.ask("/api/v1/events/x/picture")[0].status == 404


@pytest.mark.parametrize(
    "body",
    [b"{", b"[]", b"7", {"number": 1}, {"number": "1", "label": "a"}, {"number": 1, "label": 2},
     {"number": 1, "label": "a", "more": 1}, b"[" * 1000],
)  # fmt: skip
def test_what_is_no_correction_is_one_line(room, body):
    status, said = corrected(Browser(room), body)
    assert status == 400
    assert said["error"].startswith('send {"number"')


@pytest.mark.parametrize("label", ["", "   ", "x" * 81, "a\u202eb", "a\x00b", "\ud800"])
def test_a_label_that_no_head_can_have_is_refused(room, label):
    room.devices(1)
    room.label("pi-000", "on", "rain")
    status, said = corrected(Browser(room), {"number": 1, "label": label})
    assert (status, said["error"]) == (409, "a label has 1 to 80 characters, all of them visible")
    assert room.corrections.read() == []


def test_no_other_site_can_correct_anything(room):
    """A form or a script of a stranger's page, in a browser that may read this one."""
    room.devices(1)
    room.label("pi-000", "on", "rain")
    browser, fine = Browser(room), {"number": 1, "label": "dog"}
    own = f"http://127.0.0.1:{browser.port}"
    for headers in (
        {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1:1"},
        {"Sec_Fetch_Site": "cross-site"}, {"Sec_Fetch_Site": "same-site", "Origin": own}, {"Sec_Fetch_Site": "none"},
    ):  # fmt: skip
        assert corrected(browser, fine, **headers)[0] == 403
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        assert corrected(browser, fine, content_type=kind)[0] == 415
    assert corrected(browser, fine, Host="evil.example")[0] == 421
    assert corrected(browser, b"x" * 5000)[0] == 413
    assert room.corrections.read() == []
    assert corrected(browser, fine, Origin=own, Sec_Fetch_Site="same-origin")[0] == 200


def test_beyond_this_machine_a_correction_needs_the_token(open_room, tmp_path):
    open_room.devices(1)
    open_room.label("pi-000", "on", "rain")
    browser, token = Browser(open_room), (tmp_path / "state" / "web.token").read_text().strip()
    fine = {"number": 1, "label": "dog"}
    for path in ("/api/v1/events/1/picture", "/api/v1/events/1/audio.wav"):
        assert browser.ask(path)[0].status == 401
        assert browser.ask(path, Authorization=f"Bearer {token}")[0].status == 200
    assert corrected(browser, fine)[0] == 401
    assert corrected(browser, fine, Cookie="ssc_token=wrong")[0] == 401
    assert corrected(browser, fine, Cookie=f"ssc_token={token}")[0] == 200
    assert corrected(browser, fine, Cookie=f"ssc_token={token}", Origin="http://evil.example")[0] == 403


def test_beyond_this_machine_only_the_token_lets_in(open_room, tmp_path):
    browser, file = Browser(open_room), tmp_path / "state" / "web.token"
    token = file.read_text().strip()
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o600
    assert browser.ask("/metrics")[0].status == 401
    assert browser.ask("/metrics", Authorization=f"Bearer {token}")[0].status == 200
    for view in (*VIEWS, "stream"):
        assert browser.ask(f"/api/v1/{view}")[0].status == 401
        assert browser.ask(f"/api/v1/{view}", Authorization="Bearer wrong")[0].status == 401
    assert browser.ask("/api/v1/devices", Authorization=f"Bearer {token}")[0].status == 200
    assert browser.ask("/")[0].status == 200, "which asks for the token"


def test_a_browser_gets_a_cookie_for_the_token(open_room, tmp_path):
    browser, token = Browser(open_room), (tmp_path / "state" / "web.token").read_text().strip()

    def login(body, kind="application/json"):
        return browser.ask("/api/v1/login", "POST", body, content_type=kind)[0]

    lone, deep = r'{"token":"\ud800"}', "[" * 1024
    for wrong in ('{"token":"wrong"}', '{"token":1}', "[]", "{", '{"token":"ä"}', lone, deep):
        assert login(wrong.encode()).status == 401
    assert login(b"x" * 5000).status == 413
    assert login(json.dumps({"token": token}), "text/plain").status == 415
    answer = login(json.dumps({"token": token}))
    assert answer.status == 204
    cookie = answer.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert browser.ask("/api/v1/devices", Cookie=cookie.partition(";")[0])[0].status == 200


def test_a_token_is_kept_over_a_restart(tmp_path):
    found = set()
    for _ in range(2):
        room = Showroom(tmp_path, "0.0.0.0:0")
        found.add((tmp_path / "web.token").read_text())
        room.close()
    assert len(found) == 1


def test_a_listener_hears_of_what_changes(room):
    connection, answer = Browser(room).listen()
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    assert answer.readline() == b"retry: 2000\n"
    until(lambda: answer.readline() == b"\n", "the greeting")
    room.devices(1)
    room.label("pi-000", "on", "rain")
    labels = []
    while "rain" not in labels:
        line = answer.readline()
        if line.startswith(b"data: {"):
            labels += [event.get("label") for event in json.loads(line[6:]).get("events", [])]
    connection.close()


def test_listeners_have_a_bound_and_one_that_leaves_makes_room(room):
    browser = Browser(room)
    listening = [browser.listen() for _ in range(MAX_LISTENERS)]
    assert all(answer.status == 200 for _, answer in listening)
    for _, answer in listening:
        answer.readline()
    answer, body = browser.ask("/api/v1/stream")
    assert (answer.status, json.loads(body)["error"]) == (503, f"{MAX_LISTENERS} pages are open already; close one")
    for connection, _ in listening:
        connection.close()

    def room_again():
        connection, answer = browser.listen()
        connection.close()
        return answer.status == 200

    room.devices(1)
    until(room_again, "those that have left are missed")


def connected(room):
    return socket.create_connection(("127.0.0.1", urlsplit(room.page.url).port), PATIENCE_S)


def ended(connection):
    """Waits until the server ends it; what it said until then."""
    with connection, contextlib.suppress(ConnectionResetError):
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.fixture
def strict_room(tmp_path):
    """Where a request must be there within a second."""
    room = Showroom(tmp_path / "strict", "0.0.0.0:0", request_s=1)
    yield room
    room.close()


def test_beyond_a_number_of_connections_others_are_ended_at_once(tmp_path):
    room = Showroom(tmp_path, request_s=600)
    with contextlib.ExitStack() as stack:
        stack.callback(room.close)
        kept = [stack.enter_context(connected(room)) for _ in range(MAX_CONNECTIONS)]
        kept[-1].sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert kept[-1].recv(12) == b"HTTP/1.1 200"
        assert not ended(connected(room))


@pytest.mark.integration
@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"GET / HTT",
        b"POST /api/v1/login HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n[",
    ],
)
def test_connections_without_a_whole_request_shut_nobody_out(strict_room, begun, caplog):
    idle = [connected(strict_room) for _ in range(MAX_CONNECTIONS)]
    for connection in idle:
        with contextlib.suppress(ConnectionError):  # on a busy machine the first has been ended already
            connection.sendall(begun)
    for connection in idle:
        ended(connection)
    assert Browser(strict_room).ask("/")[0].status == 200
    assert not caplog.records


@pytest.mark.integration
def test_a_second_request_must_come_whole_in_time_too(strict_room):
    connection = connected(strict_room)
    connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    answer = b""
    while b"</html>" not in answer:
        answer += connection.recv(65536)
    connection.sendall(b"GET / HTT")
    assert not ended(connection)


@pytest.mark.integration
def test_who_takes_nothing_of_an_answer_is_hung_up_on_and_who_listens_is_not(tmp_path):
    room = Showroom(tmp_path, request_s=1)
    room.devices(1500)
    listening, stream = Browser(room).listen()
    deaf = socket.socket()
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.connect(("127.0.0.1", urlsplit(room.page.url).port))
    asked = 20  # more than the buffers of both sides have room for
    deaf.sendall(b"GET /api/v1/devices HTTP/1.1\r\nHost: localhost\r\n\r\n" * asked)
    assert deaf.recv(12) == b"HTTP/1.1 200"
    for _ in range(4):  # each for as long as a request may take
        ended(connected(room))
    _, whole = Browser(room).ask("/api/v1/devices")
    assert len(ended(deaf) or b"") < asked * len(whole)
    room.label("pi-000", "on", "rain")
    until(lambda: b'"rain"' in stream.readline(), "the event")
    listening.close()
    room.close()


def test_a_server_that_stops_ends_its_streams(tmp_path):
    room = Showroom(tmp_path)
    connection, answer = Browser(room).listen()
    answer.readline()
    room.close()
    assert answer.read().endswith(b"\n\n"), "to its end, and not cut off"
    connection.close()


def test_a_place_that_is_taken_is_named(room, tmp_path):
    port = urlsplit(room.page.url).port
    with pytest.raises(UsageError, match=rf"--web 127.0.0.1:{port}: Address already in use; choose another address"):
        Showroom(tmp_path, f"127.0.0.1:{port}")


def test_a_token_that_is_too_short_is_refused(tmp_path):
    (tmp_path / "web.token").write_text("secret\n")
    with pytest.raises(UsageError, match=r"web.token: a token has at least 16 characters; remove the file"):
        Showroom(tmp_path, "0.0.0.0:0")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("8081", WebAddress("127.0.0.1", 8081)),
        ("0.0.0.0:80", WebAddress("0.0.0.0", 80)),
        ("[::1]:8081", WebAddress("::1", 8081)),
        ("gateway:0", WebAddress("gateway", 0)),
    ],
)
def test_an_address(text, address):
    assert WebAddress.parse(text) == address


@pytest.mark.parametrize("text", ["", "web", ":8081", "gateway:", "70000", "-1", "٣"])
def test_what_is_no_address_is_refused(text):
    with pytest.raises(UsageError, match=r"--web .*: give a port, such as 8081"):
        WebAddress.parse(text)
