"""Pending answers: each is given up at its own deadline, though one timer serves them all."""

import asyncio

import pytest
from virtual_time import VirtualLoop

from runtime_edge.errors import LinkError
from runtime_edge.formats.wire import Reply, encode_reply
from runtime_edge.transport.pending import PendingAnswers

STORED = b'{"stream":"ACTIVATIONS","seq":1}'


def test_answers_and_acknowledgements_are_given_up_in_the_order_of_their_deadlines():
    async def given_up():
        pending, order, last = PendingAnswers(), [], asyncio.Event()
        pending.acknowledgement(0.03, lambda outcome: order.append((type(outcome), str(outcome))))
        pending.expect(1, 0.05, lambda reply: (order.append((1, reply)), last.set()))
        pending.expect(2, 0.01, lambda reply: order.append((2, reply)))
        await last.wait()
        return order

    order = asyncio.run(given_up())
    assert order == [(2, None), (LinkError, "not acknowledged by the broker: no answer in 0.03 s"), (1, None)]


def test_a_callback_that_raises_takes_no_other_with_it():
    async def given_up():
        pending, last, errors = PendingAnswers(), asyncio.Event(), []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context["exception"]))

        def fail(reply):
            raise RuntimeError("of this window")

        pending.expect(1, 0.01, fail)
        pending.expect(2, 0.01, lambda reply: last.set())
        await last.wait()
        return [str(error) for error in errors]

    assert asyncio.run(given_up()) == ["of this window"]


def answer(window, server_us=0):
    return encode_reply(Reply(window, 1, "ok", server_us, b"\0" * 8))


def test_an_answer_acknowledges_its_message_once_and_says_how_long_the_way_took():
    loop = VirtualLoop()
    outcomes, replies = [], []

    async def work():
        pending = PendingAnswers()
        pending.expect(7, 10.0, replies.append)
        pending.acknowledgement(10.0, outcomes.append, 7, by_answer=True)
        await loop.pass_by(0.5)
        pending.receive("7", answer(7, 200_000), "")
        pending.receive("7", answer(7, 200_000), "")
        pending.connection_lost()

    loop.run(work())
    assert outcomes == [pytest.approx(0.3)]
    assert [reply.window for reply in replies] == [7]


def test_what_answers_come_later_by_than_the_brokers_word_is_learnt_from_those_that_have_both():
    loop, outcomes = VirtualLoop(), []

    async def work():
        pending = PendingAnswers()
        token = pending.acknowledgement(10.0, outcomes.append, 1)
        await loop.pass_by(0.1)
        pending.receive(token, STORED, "")
        await loop.pass_by(0.25)
        pending.receive("1", answer(1, 50_000), "")
        pending.acknowledgement(10.0, outcomes.append, 2, by_answer=True)
        await loop.pass_by(0.4)
        pending.receive("2", answer(2, 50_000), "")

    loop.run(work())
    assert outcomes == [pytest.approx(0.1), pytest.approx(0.15)]


def test_a_message_that_is_not_answered_fails_and_so_does_one_whose_connection_is_lost():
    loop, outcomes = VirtualLoop(), []

    async def work():
        pending = PendingAnswers()
        pending.acknowledgement(2.0, outcomes.append, 1, by_answer=True)
        await loop.pass_by(3.0)
        pending.acknowledgement(2.0, outcomes.append, 2, by_answer=True)
        pending.connection_lost()
        pending.receive("2", answer(2), "")

    loop.run(work())
    assert [type(outcome) for outcome in outcomes] == [LinkError, LinkError]


def test_nobody_is_woken_once_everything_is_answered():
    loop = VirtualLoop()

    async def work():
        pending = PendingAnswers()
        pending.expect(1, 1.0, lambda reply: None)
        token = pending.acknowledgement(2.0, lambda outcome: None)
        pending.receive(token, STORED, "")
        await loop.pass_by(0.5)
        pending.receive("1", answer(1), "")
        await loop.pass_by(10.0)

    loop.run(work())
    assert loop.passed.waits == [pytest.approx(0.5), pytest.approx(10.0)]
