"""What comes from a broker, in pieces of any size: one inbox's messages are taken out, the rest goes on untouched."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_edge.transport.fast_client import InboxSorter

INBOX = "_INBOX.pi-1.abc"
NOBODY = b"NATS/1.0 503\r\n\r\n"
OPERATIONS = [
    (b"PING\r\n", None),
    (b"MSG _INBOX.pi-1.abc.a1 2 5\r\nhello\r\n", ("a1", b"hello", "")),
    (b"MSG news.tables.x 3 9\r\nMSG a 1 2\r\n", None),
    (b"HMSG _INBOX.pi-1.abc.p7 2 16 16\r\n" + NOBODY + b"\r\n", ("p7", b"", "503")),
    (b"HMSG _INBOX.pi-1.abcd.4 2 16 18\r\n" + NOBODY + b"ok\r\n", None),
    (b"MSG _INBOX.pi-1.abc.17 2 _INBOX.other.1 8\r\n\r\nPONG\r\n\r\n", ("17", b"\r\nPONG\r\n", "")),
    (b"HMSG _INBOX.pi-1.abc.18 2 24 27\r\nNATS/1.0\r\nKey: Value\r\n\r\nxyz\r\n", ("18", b"xyz", "")),
    (b"-ERR 'Permissions Violation'\r\n", None),
    (b"MSG _INBOX.pi-1.abc. 2 0\r\n\r\n", ("", b"", "")),
]


class Library(asyncio.Protocol):
    """What stands behind, and what it was given."""

    def __init__(self) -> None:
        self.given: list[bytes] = []

    def data_received(self, data: bytes) -> None:
        self.given.append(data)


def receive(sorter: InboxSorter, data: bytes) -> None:
    """As asyncio does it: by as much as there is room for."""
    while data:
        room = sorter.get_buffer(-1)
        piece, data = data[: len(room)], data[len(room) :]
        room[: len(piece)] = piece
        sorter.buffer_updated(len(piece))


@given(st.lists(st.sampled_from(OPERATIONS), max_size=12), st.lists(st.integers(1, 40), max_size=60))
def test_messages_are_sorted_whatever_the_pieces_they_come_in(operations, sizes):
    library, taken = Library(), []
    sorter = InboxSorter(library, INBOX, lambda *message: taken.append(message))
    stream = b"".join(operation for operation, _ in operations)
    for size in [*sizes, len(stream)]:
        if piece := stream[:size]:
            receive(sorter, piece)
        stream = stream[size:]

    assert taken == [message for _, message in operations if message is not None]
    assert b"".join(library.given) == b"".join(operation for operation, message in operations if message is None)
    assert all(given.endswith(b"\r\n") for given in library.given)


def test_an_answer_that_cannot_be_handled_is_logged_and_the_next_one_is_taken(caplog):
    taken = []

    def take(token, data, status):
        if token == "bad":
            raise RuntimeError("of this answer")
        taken.append(token)

    sorter = InboxSorter(Library(), INBOX, take)
    receive(sorter, b"MSG _INBOX.pi-1.abc.bad 2 0\r\n\r\nMSG _INBOX.pi-1.abc.good 2 0\r\n\r\n")
    assert taken == ["good"]
    assert "cannot be handled" in caplog.text


def test_what_is_no_protocol_of_a_broker_ends_the_connection():
    sorter = InboxSorter(Library(), INBOX, lambda *message: None)
    with pytest.raises(ValueError, match="invalid literal"):  # asyncio closes the connection then
        receive(sorter, b"MSG _INBOX.pi-1.abc.1 2 many\r\n")


@pytest.mark.parametrize(
    ("start", "why"),
    [
        (b"MSG _INBOX.pi-1.abc.1 2 9000000\r\n", "more than"),
        (b"INFO " + bytes(9_000_000), "more than"),
        (b"MSG _INBOX.pi-1.abc.1 2 -90\r\n", "negative size"),
    ],
)
def test_a_length_that_no_broker_of_ours_announces_ends_the_connection(start, why):
    sorter = InboxSorter(Library(), INBOX, lambda *message: None)
    with pytest.raises(ValueError, match=why):
        receive(sorter, start)
