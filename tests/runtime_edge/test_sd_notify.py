"""What systemd would receive, on a real datagram socket."""

import contextlib
import os
import socket

import pytest

from runtime_edge.sd_notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    """(socket, what NOTIFY_SOCKET says)."""
    name = str(tmp_path / "n") if request.param == "path" else f"\0ssc-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(name)
        receiver.settimeout(5.0)
        yield receiver, name.replace("\0", "@")


def test_every_message_arrives_as_systemd_expects_it(manager):
    receiver, address = manager
    notifier = Notifier({"NOTIFY_SOCKET": address})
    notifier.ready()
    notifier.alive()
    notifier.status("cut one,\nU 0.5 – ü")
    notifier.stopping()
    received = [receiver.recv(4096).decode() for _ in range(4)]
    assert received == ["READY=1", "WATCHDOG=1", "STATUS=cut one, U 0.5 – ü", "STOPPING=1"]


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "/nowhere/at/all"}])
def test_without_a_manager_nothing_happens(environment):
    notifier = Notifier(environment)
    notifier.ready()
    notifier.status("alone")
    assert notifier.watchdog_s is None


def test_a_manager_that_does_not_read_holds_nothing_up(manager):
    receiver, address = manager
    notifier = Notifier({"NOTIFY_SOCKET": address})
    for _ in range(2000):  # far more than the socket's queue takes
        notifier.alive()
    receiver.setblocking(False)
    received = 0
    with contextlib.suppress(BlockingIOError):
        while receiver.recv(4096) == b"WATCHDOG=1":
            received += 1
    assert 0 < received < 2000, "the rest is dropped"


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({"WATCHDOG_USEC": "120000000"}, 120.0),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": str(os.getpid())}, 0.5),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "1"}, None),  # meant for another process
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_this_process_s_own(environment, seconds):
    assert Notifier(environment).watchdog_s == seconds
