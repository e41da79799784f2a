"""The events that a device publishes on `evt.<device>`: results, and labels going on or off."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Literal

import msgspec

from runtime_edge.config import LabelRule
from runtime_edge.device.label_switches import Change, LabelSwitches
from runtime_edge.device.sinks import Sink
from runtime_edge.formats import subjects
from runtime_edge.formats.results import VERSION, LabelEvent, ResultEvent, WindowResult

EventMode = Literal["all", "labels", "off"]
_MAX_UNSENT = 64
_MAX_TOLD = 64
"""The most labels in one report."""
_GRACE_S = 2.0
"""How long a device that ends waits for unsent events, s."""
_LATE_S = 5.0
"""How long after its window a result may come, s."""
_USUAL: LabelRule = LabelRule()


class EventSink:
    """Publishes results, every one (`all`) or those with a detected label (`labels`), and labels going on or off.

    Only live listeners receive events: while the broker is away or does not keep up, they are dropped and counted.

    Args:
        publish: sends an event on a subject; None without a broker.
        device: the device's name.
        mode: which results to publish.
        usual: when a label counts as detected, goes on and goes off.
        rules: the same for labels with rules of their own.
        hop_s: time from one window to the next, s.
        on_change: called with each label that goes on or off, whatever is published.
    """

    def __init__(
        self,
        publish: Callable[[str, bytes], Awaitable[None]] | None,
        device: str,
        mode: EventMode = "labels",
        usual: LabelRule = _USUAL,
        rules: Mapping[str, LabelRule] | None = None,
        hop_s: float = 0.5,
        on_change: Callable[[Change], None] | None = None,
    ) -> None:
        self.dropped = 0
        self._publish, self._device, self._gap_s, self._on_change = publish, device, 2.5 * hop_s, on_change
        self._mode: EventMode = "off" if publish is None else mode
        self._switches = LabelSwitches(usual, rules or {}, self._gap_s)
        self._unsent: set[asyncio.Future[None]] = set()
        self._latest: WindowResult | None = None
        self._silence: asyncio.TimerHandle | None = None

    @property
    def on(self) -> dict[str, float]:
        """The labels that are on and were published, each with the time when it was first detected."""
        return {} if self._mode == "off" else self._switches.on

    def put(self, result: WindowResult) -> None:
        """Publish a result in the background; called on the event loop."""
        if self._mode == "off" and self._on_change is None:
            return
        detected = self._detected(result)
        # The revised answer may have been published: listeners must learn that it no longer holds.
        if detected or result.revises or self._mode == "all":
            self._send(self._event(result, list(detected)))
        if self._latest is None or result.time > self._latest.time:
            self._latest = result
        self._tell(self._switches.window(result.time, detected, bool(result.revises)))
        self._await_silence()

    async def end(self) -> None:
        """Call when no more results come: labels that are on go off, and this is sent if that does not take long."""
        self._stop_waiting()
        self._tell(self._switches.end())
        if self._unsent:
            await asyncio.wait(self._unsent, timeout=_GRACE_S)

    def close(self) -> None:
        """Drop what has not been sent."""
        self._stop_waiting()
        for sending in self._unsent:
            sending.cancel()

    def _detected(self, result: WindowResult) -> dict[str, float]:
        """The detected labels, best first, with their scores."""
        labels, said = {} if result.unknown else result.labels or {}, result.detected or []
        thresholds = {label: self._switches.rule(label).threshold for label in labels}
        return {
            label: score
            for label, score in labels.items()
            if (label in said if (threshold := thresholds[label]) is None else score >= threshold)
        }

    def _await_silence(self) -> None:
        """Make labels go off later even if no window comes, because the source is quiet or gone."""
        self._stop_waiting()
        if not self._switches.on:
            return
        loop, heard = asyncio.get_running_loop(), self._latest
        began = loop.time()

        def look() -> None:
            if heard is not None:
                self._tell(self._switches.passed(heard.time + loop.time() - began - _LATE_S))
            self._silence = loop.call_later(_LATE_S, look) if self._switches.on else None

        self._silence = loop.call_later(_LATE_S + self._gap_s, look)

    def _stop_waiting(self) -> None:
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None

    def _tell(self, changes: Iterable[Change]) -> None:
        for change in changes:
            if self._on_change is not None:
                self._on_change(change)
            self._send(self._label_event(change))

    def _send(self, event: msgspec.Struct) -> None:
        if self._publish is None or self._mode == "off":
            return
        if len(self._unsent) >= _MAX_UNSENT:
            self.dropped += 1
            return
        sending = asyncio.ensure_future(self._publish(subjects.events(self._device), msgspec.json.encode(event)))
        self._unsent.add(sending)
        sending.add_done_callback(self._unsent.discard)

    def _label_event(self, change: Change) -> LabelEvent:
        latest = self._latest
        return LabelEvent(
            event=change.event,
            version=VERSION,
            device=self._device,
            label=change.label,
            score=change.score,
            since=change.since,
            time=change.last,
            window=0 if latest is None else latest.window,
            head_generation=None if latest is None else latest.head_generation,
        )

    def _event(self, result: WindowResult, detected: list[str]) -> ResultEvent:
        return ResultEvent(
            version=result.version,
            answer=result.answer,
            revises=result.revises,
            device=self._device,
            window=result.window,
            time=result.time,
            file=None if result.file is None else result.file.rpartition(os.sep)[2],
            offset_s=result.offset_s,
            recorded_at=result.recorded_at,
            labels=result.labels or {},
            detected=detected,
            head_generation=result.head_generation,
            uncertainty=round(result.uncertainty, 4),
            novelty=None if result.novelty is None else round(result.novelty, 4),
            cut=result.cut,
            finished=result.finished,
            generation=result.generation,
            latency_ms=result.latency_ms,
        )


def labels_on(sinks: Iterable[Sink]) -> dict[str, float]:
    """The labels that are on, each with the time when it was first detected; only the latest if there are very many."""
    found = [pair for sink in sinks if isinstance(sink, EventSink) for pair in sink.on.items()]
    return dict(found[-_MAX_TOLD:])


async def end_events(sinks: Iterable[Sink]) -> None:
    """Tell the sinks that no more results come."""
    for sink in sinks:
        if isinstance(sink, EventSink):
            await sink.end()
