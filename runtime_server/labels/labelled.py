"""Labelled windows: from recordings on this machine, or from what devices have sent.

A folder has one subfolder of recordings for each label. A CSV has a header, and either `file,label` (optionally `fold`;
ESC-50's `filename`, `category` are read too) or `device,time,label` (optionally `seconds`): when a device heard what,
in seconds since 1970 or as 2026-11-21T10:00:00Z, with a zone. Repeat a line for two labels at once.

    examples = of_clips(read_clips(Path("clips/")), bundle)
    examples = await of_events(read_events(Path("heard.csv")), hub, bundles)
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import numpy.typing as npt

from runtime_edge.audio import Counters, Windower, open_source
from runtime_edge.audio.files.folder import audio_files, is_hidden, is_recording
from runtime_edge.base.text import shown
from runtime_edge.errors import FormatError, SourceError, UsageError
from runtime_edge.formats import subjects
from runtime_edge.formats.bundle import Bundle
from runtime_edge.formats.manifest import FrontEndInfo
from runtime_edge.formats.wire import FrameHeader
from runtime_edge.inference.cut_assets.early_exit import LoadedExit
from runtime_edge.inference.prefix import Prefix
from runtime_server.broker.hub import Hub
from runtime_server.labels.completer import Completed, Completer, float_variant
from runtime_server.labels.csv_fields import Row, filled, finite_number, named_rows, time_of
from runtime_server.labels.head_training import Examples, truth_of
from runtime_server.labels.label_shares import shared_out
from runtime_server.labels.sent_windows import sent_windows

_LOG = logging.getLogger(__name__)
MAX_WINDOWS = 200_000
_COLUMNS = "file,label or device,time,label"
_SYNONYMS = {"filename": "file", "class": "label", "category": "label"}
_CLOCK_SLACK = timedelta(days=1)
"""How far a device's clock may run ahead of the broker's."""
_FETCH = 256

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class LabelledClip:
    """A recording with one or several labels that apply from its beginning to its end."""

    path: Path
    labels: tuple[str, ...]
    fold: int | None = None


@dataclass(frozen=True)
class LabelledEvent:
    """What a device heard, from `start_s` to `end_s` since 1970."""

    device: str
    start_s: float
    end_s: float
    label: str


def is_events(source: Path) -> bool:
    """Whether a source names devices and times, rather than recordings. Raises UsageError or FormatError."""
    return not source.is_dir() and "device" in _rows(source)[0][1]


def read_clips(source: Path) -> list[LabelledClip]:
    """The recordings of a folder or CSV. Raises UsageError or FormatError naming file and line."""
    if source.is_dir():
        found: list[LabelledClip] = []
        for folder in sorted(path for path in source.iterdir() if path.is_dir() and not is_hidden(path.name)):
            try:
                found += [LabelledClip(path, (shown(folder.name),)) for path in audio_files(folder)]
            except SourceError as exc:
                _LOG.warning("%s: label left out", exc)
        if loose := sum(map(is_recording, source.iterdir())):
            _LOG.warning("%s: %d recordings are in no subfolder, so without a label: left out", shown(source), loose)
        if not found:
            raise UsageError(f"{source}: no recordings in subfolders; make one subfolder for each label")
        return found
    clips: dict[str, LabelledClip] = {}
    for number, row in _rows(source):
        where = f"{source}: line {number}"
        name, label = _field(row, "file", where), _field(row, "label", where)
        fold = None if "fold" not in row else int(finite_number(row["fold"], f"{where}: fold"))
        known = clips.get(name)
        if known is not None and known.fold != fold:
            raise FormatError(f"{where}: {name} appears in two folds")
        labels = (label,) if known is None else (*known.labels, label)
        clips[name] = LabelledClip(source.parent / name, labels, fold)
    return list(clips.values())


def read_events(source: Path) -> list[LabelledEvent]:
    """The events of a CSV. Raises FormatError naming file and line."""
    events = []
    for number, row in _rows(source):
        where = f"{source}: line {number}"
        device, label = _field(row, "device", where), _field(row, "label", where)
        if not subjects.is_device(device):
            raise FormatError(f"{where}: device {device!r}: no device has this name")
        start = time_of(_field(row, "time", where), where)
        seconds = finite_number(row["seconds"], f"{where}: seconds") if row.get("seconds") else 0.0
        events.append(LabelledEvent(device, start, start + max(0.0, seconds), label))
    return events


def of_clips(
    clips: Sequence[LabelledClip],
    bundle: Bundle,
    gate_db: float | None = -60.0,
    progress: Progress = lambda what, done, total: None,
) -> Examples:
    """Every window of the recordings that is louder than `gate_db`, embedded by the bundle's own blocks.

    Unreadable recordings are left out and logged. Raises UsageError if there is no window, SourceError if nothing can
    be read.
    """
    prefix, number = Prefix(bundle, float_variant(bundle)), bundle.manifest.info.generation
    exits = [LoadedExit(prefix, info) for info in bundle.manifest.info.exits]
    by_exit: dict[str, list[npt.NDArray[np.float32]]] = {early.info.cut: [] for early in exits}
    rows = []
    for group, samples in _windows(clips, bundle.manifest.info.front_end, gate_db, progress):
        prefix.start(samples)
        for early in exits:
            prefix.advance(early.cut)
            by_exit[early.info.cut].append(early.embedding())
        rows.append((group, prefix.advance(prefix.last_cut)[0].copy()))
    examples = _gathered(clips, rows, (number, number), gate_db)
    return replace(examples, by_exit={cut: np.stack(found) for cut, found in by_exit.items()})


def windows_of(
    clips: Sequence[LabelledClip], front_end: FrontEndInfo, most: int, gate_db: float | None = -60.0
) -> Examples:
    """Up to `most` windows of each recording, evenly spaced, with their samples (windows, samples) for embeddings.

    Unreadable recordings are left out and logged. Raises UsageError if there is no window, SourceError if nothing can
    be read.
    """
    rows: list[tuple[int, npt.NDArray[np.float32]]] = []
    heard = _windows(clips, front_end, gate_db, lambda what, done, total: None)
    for group, windows in itertools.groupby(heard, lambda window: window[0]):
        own = [samples.copy() for _, samples in windows]
        count = min(most, len(own))
        rows += [(group, own[place * len(own) // count]) for place in range(count)]
    return _gathered(clips, rows, (0, 0), gate_db)


def _windows(
    clips: Sequence[LabelledClip], front_end: FrontEndInfo, gate_db: float | None, progress: Progress
) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """Number of the recording and samples (window_samples,) of every window, which are valid until the next one."""
    unread: list[SourceError] = []
    counters = Counters()
    for group, clip in enumerate(clips):
        progress("embedding recordings", group, len(clips))
        windower = Windower(front_end.window_samples, front_end.hop_samples, gate_db)
        try:
            blocks = open_source(str(clip.path), front_end.sample_rate, False, counters=counters)
            for window in windower.windows(blocks):
                yield group, window.samples
        except SourceError as exc:
            unread.append(exc)
            _LOG.warning("skipped: %s", exc)
    if len(unread) == len(clips):
        raise unread[0]
    if unread:
        _LOG.warning("%d of %d recordings could not be read", len(unread), len(clips))


def _gathered(
    clips: Sequence[LabelledClip],
    rows: Iterable[tuple[int, npt.NDArray[np.float32]]],
    generations: tuple[int, int],
    gate_db: float | None,
) -> Examples:
    """Examples of windows, given the number of the recording and a vector of each."""
    found = list(rows)
    if not found:
        raise UsageError(f"no window of the {len(clips)} recordings is louder than {gate_db} dB; see --gate-db")
    names, truth = truth_of([clips[group].labels for group, _ in found])
    folds = [clip.fold for clip in clips]
    numbers = np.array([group for group, _ in found])
    given = None if None in folds else np.array(folds, np.int64)[numbers]
    return Examples(np.stack([vector for _, vector in found]), names, truth, numbers, generations, given, unit="clip")


async def of_events(
    events: Sequence[LabelledEvent],
    hub: Hub,
    bundles: Mapping[int, Bundle],
    progress: Progress = lambda what, done, total: None,
) -> Examples:
    """The windows in the broker's stream that the events overlap by half the window or half the event.

    `bundles` has the server's generations by number; a frame is completed by the newest one whose blocks before the cut
    are those that made it. Windows that a device kept to itself are not in the stream. Consecutive windows of a device
    with the same labels are held out together. No device has more windows than the median one (`label_shares`). Raises
    UsageError if there is no window, LinkError.
    """
    completer = Completer(bundles)
    devices = sorted({event.device for event in events})
    rows: list[tuple[str, int, tuple[str, ...], Completed]] = []
    for place, device in enumerate(devices):
        progress("reading what devices have sent", place, len(devices))
        own = _Events([event for event in events if event.device == device], completer.window_s)
        since = datetime.fromtimestamp(own.first_s, timezone.utc) - _CLOCK_SLACK
        for header, payload in await _frames(hub, device, since, own, completer.front_end):
            completed = completer.complete(header, payload)
            if completed is not None:
                rows.append((device, header.capture_ns, own.labels(header), completed))
    if not rows:
        raise UsageError(
            f"none of the {len(events)} events is in what {', '.join(devices)} sent and the broker still has; "
            "look at device names and times (seconds since 1970, of the device's clock)"
        )
    rows.sort(key=lambda row: row[:3])
    groups = _runs([row[:3] for row in rows], completer.window_s)
    kept = shared_out([row[0] for row in rows], [row[2] for row in rows])
    groups, rows = groups[kept], [rows[place] for place in kept]
    names, truth = truth_of([row[2] for row in rows])
    found = [row[3] for row in rows]
    numbers, unknown = [one.generation for one in found], np.full_like(found[0].embedding, np.nan)
    cuts = sorted({cut for one in found for cut in one.by_exit})
    return Examples(
        np.stack([one.embedding for one in found]),
        names,
        truth,
        groups,
        (min(numbers), max(numbers)),
        unit="event",
        by_exit={cut: np.stack([one.by_exit.get(cut, unknown) for one in found]) for cut in cuts},
    )


class _Events:
    """The events of one device."""

    def __init__(self, events: Sequence[LabelledEvent], window_s: float) -> None:
        self._events, self._window_s = sorted(events, key=lambda event: event.start_s), window_s
        self._starts = [event.start_s for event in self._events]
        self._longest_s = max(event.end_s - event.start_s for event in events)
        self.first_s = self._starts[0]

    def near(self, header: FrameHeader) -> bool:
        """Whether a window ends in an event, or up to two windows before or after one."""
        end = header.capture_ns / 1e9
        first = bisect_left(self._starts, end - self._longest_s - 2 * self._window_s)
        close = self._events[first : bisect_right(self._starts, end + 2 * self._window_s)]
        return any(event.end_s >= end - 2 * self._window_s for event in close)

    def labels(self, header: FrameHeader) -> tuple[str, ...]:
        """Labels of a window, sorted; empty if no event overlaps it enough."""
        end = header.capture_ns / 1e9
        start = end - self._window_s
        found = set()
        near = slice(bisect_left(self._starts, start - self._longest_s), bisect_right(self._starts, end))
        for event in self._events[near]:
            shared = min(end, event.end_s) - max(start, event.start_s)
            if shared >= 0.5 * min(self._window_s, event.end_s - event.start_s):
                found.add(event.label)
        return tuple(sorted(found))


async def _frames(
    hub: Hub, device: str, since: datetime, events: _Events, front_end: FrontEndInfo
) -> list[tuple[FrameHeader, bytes]]:
    """The labelled frames of one device, each once. Raises LinkError."""
    found: dict[tuple[str, int], tuple[FrameHeader, bytes]] = {}
    async with contextlib.aclosing(sent_windows(hub, device, since, front_end, events.near, _FETCH)) as batches:
        async for batch in batches:
            for window in batch.windows:
                if window.whole and events.labels(window.header):
                    found[window.boot, window.header.window] = window.header, window.payload
            if len(found) >= MAX_WINDOWS:
                break
    return list(found.values())


def _runs(rows: Sequence[tuple[str, int, tuple[str, ...]]], window_s: float) -> npt.NDArray[np.int64]:
    """A number for each run of one device's windows with the same labels, less than a window apart."""
    groups = np.zeros(len(rows), np.int64)
    for place in range(1, len(rows)):
        (device, time_ns, labels), (before, earlier_ns, previous) = rows[place], rows[place - 1]
        same = device == before and labels == previous and time_ns - earlier_ns <= window_s * 1e9
        groups[place] = groups[place - 1] + (not same)
    return groups


def _rows(source: Path) -> list[Row]:
    """The rows of a CSV, with this project's names for the columns."""
    if not source.is_file():
        raise UsageError(f"{source}: no such folder or CSV file")
    rows = named_rows(source, _SYNONYMS)
    if not rows:
        raise UsageError(f"{source}: no lines; the first one names the columns: {_COLUMNS}")
    return rows


def _field(row: Mapping[str, str], name: str, where: str) -> str:
    return filled(row, name, where, _COLUMNS)
