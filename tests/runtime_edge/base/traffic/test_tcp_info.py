"""What the kernel says of a connection is what passes its interface."""

import contextlib
import socket
import sys

import pytest

from runtime_edge.base.traffic import tcp_info
from runtime_server.harness.network import SERVER_ADDRESS, Network, listener_in, socket_in, why_not


def exchange(client, server, sizes):
    """Messages to and fro; what the client has sent and received of them."""
    for size in sizes:
        for sender, receiver in ((client, server), (server, client)):
            sender.sendall(bytes(size))
            left = size
            while left:
                left -= len(receiver.recv(min(left, 65_536)))
    return sum(sizes), sum(sizes)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has TCP_INFO with segments")
def test_every_byte_and_a_header_for_every_segment_is_counted():
    with contextlib.ExitStack() as closing:
        listener = closing.enter_context(socket.create_server(("127.0.0.1", 0)))
        client = closing.enter_context(socket.create_connection(listener.getsockname()))
        server = closing.enter_context(listener.accept()[0])
        before = tcp_info.passed(client)
        up, down = exchange(client, server, [1, 1000, 100_000])
        after = tcp_info.passed(client)
    assert before is not None
    assert up + 3 * 66 <= after.up - before.up <= 1.5 * up
    assert down + 3 * 66 <= after.down - before.down <= 1.5 * down


@pytest.mark.integration
@pytest.mark.skipif(bool(why_not()), reason=why_not() or "permitted")
def test_it_is_what_the_interface_counts():
    with Network() as network, contextlib.ExitStack() as closing:
        listener = closing.enter_context(listener_in(network.server, SERVER_ADDRESS))
        listener.listen()
        before = network.traffic()
        client = closing.enter_context(socket_in(network.device))
        client.connect(listener.getsockname())
        server = closing.enter_context(listener.accept()[0])
        exchange(client, server, [100] * 200 + [300_000])
        counted, seen = tcp_info.passed(client), network.traffic().since(before)
    assert counted.up == pytest.approx(seen.up, rel=0.02)
    assert counted.down == pytest.approx(seen.down, rel=0.02)


def test_a_closed_socket_and_one_without_such_counts_say_nothing():
    closed = socket.socket()
    closed.close()
    assert tcp_info.passed(closed) is None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        assert tcp_info.passed(other) is None
    with socket.socket() as unconnected:  # as kernels that leave the fields empty
        assert tcp_info.passed(unconnected) is None
