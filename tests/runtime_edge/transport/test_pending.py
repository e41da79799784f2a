"""Pending answers: each is given up at its own deadline, though one timer serves them all."""

import asyncio

from runtime_edge.errors import LinkError
from runtime_edge.transport.pending import PendingAnswers


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
