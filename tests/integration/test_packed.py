"""Windows that may wait go to the server several in a message, and none of them gets lost."""

import asyncio
import functools

import harness

from runtime_edge.formats import subjects
from runtime_edge.formats.wire import decode_frame, decode_replies
from runtime_server.broker.hub import Hub


def test_windows_that_may_wait_share_messages_answers_and_acknowledgements(start, tmp_path, toy_bundle, toy_model):
    server = start.server("--no-training")
    server.put_table(harness.always(toy_bundle, "rpi4", "log_mel"))
    source = harness.write_wav(tmp_path / "audio.wav", 12.0, seed=1)
    frames, replies = [], []

    async def watch():
        async with Hub(server.url) as hub:
            await hub.subscribe("act.>", functools.partial(_keep, frames))
            await hub.subscribe(f"{subjects.inbox('pi-1')}.>", functools.partial(_keep, replies))
            device = start.device(server, "pi-1", source, "--deadline-ms", 4000)
            return device, await asyncio.to_thread(device.finish)

    device, report = asyncio.run(watch())
    results = device.results()

    assert report["windows_acked"] == report["windows_captured"] == len(results) > 15
    assert report["windows_lost"] == report["windows_spooled"] == report["windows_refused"] == 0
    counted = report["windows_captured"]
    harness.until(lambda: server.counted("pi-1") == counted, "every window counted once")
    sent = [[header.window for header, _ in decode_frame(message.data)] for message in frames]
    assert sorted(window for windows in sent for window in windows) == sorted(r["window"] for r in results)
    assert max(map(len, sent)) >= 4
    assert len(sent) <= len(results) / 2
    answers = [decode_replies(message.data) for message in replies if is_answer(message)]
    assert sorted(map(len, answers)) == sorted(map(len, sent)), "one answer for each message"
    assert {reply.encoding for some in answers for reply in some} == {"int8"}
    assert {r["finished"] for r in results} == {"server"}
    assert harness.cosines(results, harness.windows_of(source), toy_model).min() > 0.99


def test_a_device_that_has_the_embedding_is_not_answered(start, tmp_path, toy_bundle):
    server = start.server("--no-training")
    server.put_table(harness.always(toy_bundle, "rpi4", toy_bundle.manifest.info.cuts[-1].name))
    source = harness.write_wav(tmp_path / "audio.wav", 6.0, seed=1)
    replies = []

    async def watch():
        async with Hub(server.url) as hub:
            await hub.subscribe(f"{subjects.inbox('pi-1')}.>", functools.partial(_keep, replies))
            return await asyncio.to_thread(start.device(server, "pi-1", source).finish)

    report = asyncio.run(watch())
    assert report["windows_acked"] == report["windows_captured"] > 8
    assert report["finished"] == {"device": report["windows_captured"]}
    assert [message for message in replies if is_answer(message)] == []


def is_answer(message):
    """Whether it is MessagePack's array, and nothing else that the device has asked for."""
    return subjects.is_reply("pi-1", message.subject) and message.data[0] >> 4 == 9


async def _keep(found, message):
    if message.data:  # the broker itself has none
        found.append(message)
