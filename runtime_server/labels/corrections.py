"""Corrections that people made on the page about reported sounds, with the windows concerned.

    corrections = Corrections(state / "corrections")
    corrections.keep(correction)                               # the page
    joined = with_corrections(examples, corrections.read(), bundles)     # `ssc server label`

The windows are kept with the label, as frames, because the broker drops them after some days. Audio is usable for every
generation; an activation only as long as the blocks before its cut do not change.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta

from runtime_edge.base.checked_files import read_checked, remove_checked, write_checked
from runtime_edge.base.files import make_private
from runtime_edge.errors import FormatError, UsageError
from runtime_edge.formats import strict
from runtime_edge.formats.bundle import Bundle
from runtime_edge.formats.strict import Name, Strict
from runtime_edge.formats.wire import decode_frame
from runtime_server.labels.completer import Completed, Completer
from runtime_server.labels.head_training import Examples
from runtime_server.labels.label_shares import shared_out
from runtime_server.suffix.frame_codecs import FrameCodecs

_LOG = logging.getLogger(__name__)
MAX_CORRECTIONS = 1000
MAX_WINDOWS = 16
"""Per correction."""
_MAX_FRAME_BYTES, _MAX_ALL_BYTES = 1 << 20, 256 << 20
_MAX_BYTES = MAX_WINDOWS * _MAX_FRAME_BYTES + (1 << 16)
_FEWEST = 2
"""The number of corrections needed for a label without recordings: with only one, nothing could be held out."""
_FIX = ": that sound can be corrected again as long as the page shows it"


class Correction(Strict, frozen=True, kw_only=True):
    """One sound, and what it really was."""

    format: Literal["streamsplit.correction/1"] = "streamsplit.correction/1"
    device: Name
    since: float
    """Ends of its first and last windows by the device's clock, s since 1970."""
    until: float
    heard: Name
    """The label that the device gave it."""
    label: Name
    """What it really was; `background` if none of the labels."""
    made_at: float
    """When the correction was made, by the server's clock, s since 1970."""
    frames: Annotated[
        list[Annotated[bytes, Meta(max_length=_MAX_FRAME_BYTES)]], Meta(min_length=1, max_length=MAX_WINDOWS)
    ]
    """Its windows, each as a frame of its own."""

    @property
    def sound(self) -> tuple[str, str, float]:
        """The sound it is about."""
        return self.device, self.heard, self.since


class Corrections:
    """The corrections of one server, each in a file of its own; the latest one about a sound counts."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def keep(self, correction: Correction) -> None:
        """Write a correction. Raises UsageError if there is no room for more."""
        make_private(self.path)
        path, body = self._file(correction), msgspec.msgpack.encode(correction)
        others = {name: size for name, size, _ in self._listed() if name != path.name}
        if len(others) >= MAX_CORRECTIONS or sum(others.values()) + len(body) > _MAX_ALL_BYTES:
            raise UsageError(
                f"{self.path}: has {len(others)} corrections, no more are kept; fit a head, and remove the oldest files"
            )
        write_checked(path, body, 0o600)

    def forget(self, device: str, heard: str, since: float) -> None:
        """Remove the correction of a sound."""
        remove_checked(self._named(device, heard, since))

    def read(self) -> list[Correction]:
        """All corrections, the oldest first; damaged ones are logged."""
        return sorted(self.each(), key=lambda correction: correction.made_at)

    def each(self) -> Iterator[Correction]:
        """The same one by one, in the order of their files."""
        for path in self._files():
            try:
                data = read_checked(path, _MAX_BYTES, fix=_FIX)
                if data is not None:
                    yield strict.decode(data, Correction, str(path), _MAX_BYTES, form="MessagePack", fix=_FIX)
            except FormatError as exc:
                _LOG.warning("%s", exc)

    @property
    def fingerprint(self) -> tuple[tuple[str, int, int], ...]:
        """A value that changes whenever the corrections do."""
        return tuple(self._listed())

    def _listed(self) -> Iterator[tuple[str, int, int]]:
        """Name, size and modification time of each file, in order."""
        for path in self._files():
            with contextlib.suppress(FileNotFoundError):  # it was just removed
                found = path.stat()
                yield path.name, found.st_size, found.st_mtime_ns

    def _files(self) -> list[Path]:
        return sorted(self.path.glob("*.correction")) if self.path.is_dir() else []

    def _file(self, correction: Correction) -> Path:
        return self._named(*correction.sound)

    def _named(self, device: str, heard: str, since: float) -> Path:
        name = hashlib.sha256(msgspec.msgpack.encode((device, heard, since))).hexdigest()[:32]
        return self.path / f"{name}.correction"


def corrections_path(root: Path) -> Path:
    """Where the corrections of a state directory are kept."""
    return root / "corrections"


@dataclass(frozen=True)
class Corrected:
    """Examples of recordings, followed by corrected windows, and the audio of these."""

    examples: Examples
    used: int = 0
    """The number of corrections among them."""
    audio: tuple[tuple[tuple[str, ...], npt.NDArray[np.float32]], ...] = ()
    """Labels and windows (windows, samples) of each correction that was sent as audio."""


def with_corrections(examples: Examples, corrections: Sequence[Correction], bundles: Mapping[int, Bundle]) -> Corrected:
    """Add corrected windows, embedded by the newest of the bundles.

    The windows of a correction are held out together; no device has more windows than the median one (`label_shares`).
    Corrections that cannot be used are logged.
    """
    if not corrections:
        return Corrected(examples)
    newest, completer = max(bundles), Completer(bundles)
    rows: list[tuple[int, Completed]] = []
    for place, correction in enumerate(corrections):
        completed = [completer.complete(*decode_frame(frame)[0]) for frame in correction.frames]
        own = [one for one in completed if one is not None and one.generation == newest]
        rows += [(place, one) for one in own]
        if not own:
            _LOG.warning(
                "%s on %s: corrected to %s, but blocks before its cut have changed since: left out",
                correction.heard, correction.device, correction.label,
            )  # fmt: skip
    rows = _of_labels_with_enough(examples, corrections, rows)
    if not rows:
        return Corrected(examples)
    of = [corrections[place] for place, _ in rows]
    kept = shared_out([one.device for one in of], [(one.label,) for one in of])
    rows = [rows[place] for place in kept]
    used = sorted({place for place, _ in rows})
    audio = [_audio(corrections[place], bundles[newest]) for place in used]
    return Corrected(_joined(examples, corrections, rows), len(used), tuple(one for one in audio if len(one[1])))


def _of_labels_with_enough(
    examples: Examples, corrections: Sequence[Correction], rows: list[tuple[int, Completed]]
) -> list[tuple[int, Completed]]:
    counts = Counter(corrections[place].label for place in {place for place, _ in rows})
    few = sorted(label for label, count in counts.items() if label not in examples.labels and count < _FEWEST)
    for label in few:
        _LOG.warning("label %s: one correction alone; the head learns it from %d on", label, _FEWEST)
    return [row for row in rows if corrections[row[0]].label not in few]


def _joined(examples: Examples, corrections: Sequence[Correction], rows: Sequence[tuple[int, Completed]]) -> Examples:
    places = np.array([place for place, _ in rows])
    labels = tuple(sorted({*examples.labels, *(corrections[place].label for place in places)}))
    truth = np.zeros((len(examples.truth) + len(rows), len(labels)), np.bool_)
    truth[: len(examples.truth), [labels.index(label) for label in examples.labels]] = examples.truth
    for row, place in enumerate(places, start=len(examples.truth)):
        truth[row, labels.index(corrections[place].label)] = True
    groups = np.concatenate([examples.groups, examples.groups.max() + 1 + places])
    folds = examples.folds
    if folds is not None:
        known = np.unique(folds)
        folds = np.concatenate([folds, known[places % len(known)]])
    unknown = np.full(examples.embeddings.shape[1], np.nan, np.float32)
    return replace(
        examples,
        embeddings=np.concatenate([examples.embeddings, np.stack([one.embedding for _, one in rows])]),
        labels=labels,
        truth=truth,
        groups=groups,
        folds=folds,
        generations=(
            min(examples.generations[0], *(one.generation for _, one in rows)),
            max(examples.generations[1], *(one.generation for _, one in rows)),
        ),
        by_exit={
            cut: np.concatenate([found, np.stack([one.by_exit.get(cut, unknown) for _, one in rows])])
            for cut, found in examples.by_exit.items()
        },
    )


def _audio(correction: Correction, bundle: Bundle) -> tuple[tuple[str, ...], npt.NDArray[np.float32]]:
    codecs, samples = FrameCodecs(bundle), []
    for frame in correction.frames:
        ((header, payload),) = decode_frame(frame)
        with contextlib.suppress(FormatError):
            if header.cut == 0:
                samples.append(codecs.decode(header, payload)[0])
    length = bundle.manifest.info.front_end.window_samples
    return (correction.label,), np.stack(samples) if samples else np.zeros((0, length), np.float32)
