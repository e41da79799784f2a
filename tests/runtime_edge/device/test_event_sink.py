import asyncio
import json

import msgspec
import pytest
from labelled_results import LABELLED, RESULT
from virtual_time import VirtualLoop

from runtime_edge.config import LabelRule
from runtime_edge.device.event_sink import EventSink, end_events, labels_on
from runtime_edge.formats.results import decode_label_event


def published(results, mode="labels", threshold=None, publish=None, rules=None):
    """Which results a sink publishes: (subject, event) pairs, and the sink."""
    sent = []

    async def keep(subject, data):
        if b'"event":"result"' in data:
            sent.append((subject, json.loads(data)))

    async def run():
        sink = EventSink(publish or keep, "pi-1", mode, LabelRule(threshold=threshold), rules)
        for result in results:
            sink.put(result)
        await asyncio.sleep(0)
        sink.close()
        await asyncio.sleep(0)
        return sink

    return sent, asyncio.run(run())


def test_an_event_says_what_was_heard_and_holds_no_embedding():
    ((subject, event),), _ = published([LABELLED])
    assert subject == "evt.pi-1"
    assert event == {
        "event": "result", "version": 2, "answer": "server", "device": "pi-1", "window": 7, "time": 1.5,
        "labels": LABELLED.labels,
        "detected": ["dog"], "head_generation": 2, "uncertainty": 0.25, "cut": "layer1",
        "finished": "server", "generation": 3, "latency_ms": 12.5,
    }  # fmt: skip


def test_an_event_names_the_recording_without_its_directory():
    ((_, event),), _ = published([msgspec.structs.replace(LABELLED, file="/home/eve/yard.wav", offset_s=0.0)])
    assert (event["file"], event["offset_s"]) == ("yard.wav", 0.0)


def test_an_event_without_a_head_names_no_generation_of_one():
    ((_, event),), _ = published([RESULT], "all")
    assert "head_generation" not in event


@pytest.mark.parametrize(
    ("mode", "threshold", "detected"),
    [
        ("labels", None, [["dog"]]),
        ("labels", 0.9, []),
        ("labels", 0.1, [["dog", "rain"]]),
        ("all", None, [None, ["dog"]]),
        ("all", 0.9, [None, None]),
        ("off", 0.0, []),
    ],
)
def test_which_results_are_events(mode, threshold, detected):
    sent, _ = published([RESULT, LABELLED], mode, threshold)
    assert [event.get("detected") for _, event in sent] == detected


def test_an_unknown_sound_is_no_event_whatever_its_scores():
    sent, sink = published([msgspec.structs.replace(LABELLED, unknown=True, detected=[])], threshold=0.1)
    assert (sent, sink.on) == ([], {})


def test_a_revision_is_an_event_even_where_nothing_is_detected_any_more():
    first = msgspec.structs.replace(LABELLED, answer="exit", finished="exit", novelty=0.123456)
    revised = msgspec.structs.replace(LABELLED, revises=1, detected=[])
    sent, _ = published([first, revised])
    assert [(event["answer"], event.get("revises", 0)) for _, event in sent] == [("exit", 0), ("server", 1)]
    assert sent[0][1]["novelty"] == 0.1235
    assert "detected" not in sent[1][1]


def test_a_broker_that_does_not_keep_up_costs_events_not_memory():
    async def stuck(subject, data):
        await asyncio.Event().wait()

    _, sink = published([LABELLED] * 100, publish=stuck)
    assert sink.dropped == 101 - 64, "a hundred results, and one label that has gone on"


def test_a_label_with_a_threshold_of_its_own_is_detected_by_that():
    rules = {"rain": LabelRule(threshold=0.1), "dog": LabelRule(threshold=0.85)}
    ((_, event),), _ = published([LABELLED], rules=rules)
    assert event["detected"] == ["rain"]


class Listener:
    """What a sink publishes of labels, and when, on a loop whose time passes at once."""

    def __init__(self, *arguments, **settings):
        self.heard = []
        self.sink = EventSink(self._publish, "pi-1", *arguments, **settings)

    async def _publish(self, subject, data):
        assert subject == "evt.pi-1"
        if b'"event":"result"' not in data:
            self.heard.append((asyncio.get_running_loop().time(), decode_label_event(data)))

    def window(self, index, *detected):
        change = {"window": index, "time": 1000.0 + index * 0.5, "detected": list(detected)}
        self.sink.put(msgspec.structs.replace(LABELLED, **change))

    @property
    def told(self):
        return [(event.event, event.label, event.window) for _, event in self.heard]


def test_labels_go_on_and_off_with_the_windows_and_say_of_which_head():
    loop = VirtualLoop()
    listener = Listener("labels", LabelRule(hold_s=1.0))

    async def play():
        for index, detected in enumerate([(), ("dog",), ("dog",), ("rain",), ()]):
            listener.window(index, *detected)
            await loop.pass_by(0.5)
        assert labels_on([listener.sink]) == {"rain": 1001.5}
        listener.sink.close()

    loop.run(play())
    assert listener.told == [("on", "dog", 1), ("on", "rain", 3), ("off", "dog", 4)]
    assert {event.head_generation for _, event in listener.heard} == {2}


def test_what_is_on_goes_off_though_no_window_comes_any_more():
    loop, listener = VirtualLoop(), Listener("labels", LabelRule(hold_s=3.0))

    async def play():
        listener.window(0, "dog")
        await loop.pass_by(60.0)

    loop.run(play())
    assert listener.told == [("on", "dog", 0), ("off", "dog", 0)]
    (at_on, on), (at_off, off) = listener.heard
    assert at_off - at_on >= 3.0
    assert (on.since, on.time, off.time, off.score, off.head_generation) == (1000.0, 1000.0, 1000.0, 0.8, 2)


def test_a_source_that_ends_leaves_nothing_on_and_it_is_sent():
    loop, listener = VirtualLoop(), Listener()

    async def play():
        listener.window(0, "dog", "rain")
        await end_events([listener.sink])
        listener.sink.close()

    loop.run(play())
    assert sorted(listener.told) == [("off", "dog", 0), ("off", "rain", 0), ("on", "dog", 0), ("on", "rain", 0)]
    assert labels_on([listener.sink]) == {}


def test_a_broker_that_takes_nothing_does_not_keep_the_end_waiting():
    async def stuck(subject, data):
        await asyncio.Event().wait()

    async def play():
        sink = EventSink(stuck, "pi-1")
        sink.put(LABELLED)
        await end_events([sink])
        ended = asyncio.get_running_loop().time()
        sink.close()
        await asyncio.sleep(0)
        return ended

    assert VirtualLoop().run(play()) < 10.0, "seconds that passed for the sink"


@pytest.mark.parametrize("mode", ["labels", "all", "off"])
def test_with_events_off_no_label_goes_on(mode):
    loop, listener = VirtualLoop(), Listener(mode)

    async def play():
        listener.window(0, "dog")
        await end_events([listener.sink])

    loop.run(play())
    assert listener.told == ([] if mode == "off" else [("on", "dog", 0), ("off", "dog", 0)])


def test_of_very_many_labels_a_report_tells_the_latest():
    loop, listener = VirtualLoop(), Listener()

    async def play():
        names = [f"label {number}" for number in range(100)]
        listener.sink.put(msgspec.structs.replace(LABELLED, labels=dict.fromkeys(names, 0.9), detected=names))
        assert len(labels_on([listener.sink])) == 64

    loop.run(play())
