"""The clips of pushed heads that a server keeps: they judge releases, and heads are refitted to them for each release.

    folder = HeadClipsFolder(state / "heads")
    folder.keep(HeadClips.of(head, clips, front_end, gate_db))     # `ssc server label --push`
    kept = folder.read(head)                                       # the release gate
    kept.right(model), kept.refitted(model)

Each file is at most a few tens of megabytes, readable only by its owner, and has its checksum beside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
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
from runtime_edge.formats.manifest import FrontEndInfo
from runtime_edge.formats.records.head import MAX_HEAD_BYTES, Head
from runtime_edge.formats.strict import Name, Strict
from runtime_server.labels.head_training import Examples, fit_head, folds_of, held_out_right, mean_by_group, right_rows
from runtime_server.labels.label_shares import thinned
from runtime_server.labels.labelled import LabelledClip, windows_of
from runtime_server.labels.linear_probe import embedded
from runtime_server.suffix.generations import CutModel

MAX_HEADS = 32
"""The number of heads whose clips one server keeps."""
_MAX_WINDOWS = 1024
_MAX_AUDIO_BYTES = 32 << 20
_MAX_BYTES = _MAX_AUDIO_BYTES + MAX_HEAD_BYTES + (1 << 20)
_NOT_JUDGED = ": releases are then not judged by that head until it is pushed again"
Bools = npt.NDArray[np.bool_]
Heard = tuple[tuple[str, ...], npt.NDArray[np.float32]]
"""Labels of a sound, and its windows (windows, samples)."""
_Place = Annotated[int, Meta(ge=0, lt=_MAX_WINDOWS)]


class HeadClips(Strict, frozen=True, kw_only=True):
    """A pushed head, and windows of the clips it was fitted to."""

    format: Literal["streamsplit.head_clips/1"] = "streamsplit.head_clips/1"
    head: Annotated[bytes, Meta(max_length=MAX_HEAD_BYTES)]
    """The contents of its file."""
    clips: Annotated[list[tuple[Name, ...]], Meta(min_length=1, max_length=_MAX_WINDOWS)]
    """The labels of each clip."""
    places: Annotated[list[_Place], Meta(min_length=1, max_length=_MAX_WINDOWS)]
    """The clip that each window belongs to."""
    windows: Annotated[bytes, Meta(max_length=_MAX_AUDIO_BYTES)]
    """float16[windows, samples], little-endian: the audio as the encoder expects it."""
    best: Annotated[bytes, Meta(max_length=_MAX_WINDOWS)] = b""
    """uint8[clips], 1 if a held-out clip was labelled correctly with the weights of the best generation so far; empty
    before any release."""
    best_generation: Annotated[int, Meta(ge=0)] = 0
    fixed: bool = False
    """The head was fitted to other recordings and is never refitted: these only judge."""

    def __post_init__(self) -> None:
        if len(self.windows) % (2 * len(self.places)):
            raise FormatError(f"windows: {len(self.windows)} bytes are not {len(self.places)} windows of float16")
        if set(self.places) != set(range(len(self.clips))):
            raise FormatError(f"places: not a window of each of the {len(self.clips)} clips")
        if self.best and (len(self.best) != len(self.clips) or max(self.best) > 1):
            raise FormatError(f"best: not a 0 or 1 for each of the {len(self.clips)} clips")

    @classmethod
    def of(
        cls,
        head: Head,
        clips: Sequence[LabelledClip],
        front_end: FrontEndInfo,
        gate_db: float | None,
        fixed: bool = False,
        corrected: Sequence[Heard] = (),
    ) -> HeadClips:
        """Keep at most 1024 clips, spread over all, a few windows each; `head` was fitted to them unless it is `fixed`.

        `corrected` are further sounds, which may take up to a quarter of the room. Raises UsageError or SourceError for
        recordings that cannot be used.
        """
        most = max(1, min(_MAX_WINDOWS, _MAX_AUDIO_BYTES // (2 * front_end.window_samples)))
        share = max(1, most // 4)
        more = [corrected[place] for place in thinned([labels for labels, _ in corrected], share)]
        each = max(1, share // len(more)) if more else 0
        further = [windows[:: -(-len(windows) // each)] for _, windows in more]
        most = max(1, most - sum(map(len, further)))
        kept = clips[:: -(-len(clips) // most)]
        heard = windows_of(kept, front_end, max(1, most // len(kept)), gate_db)
        groups, places = np.unique(heard.groups, return_inverse=True)
        behind = [len(groups) + place for place, windows in enumerate(further) for _ in windows]
        return cls(
            head=head.to_json(),
            clips=[tuple(sorted(set(kept[group].labels))) for group in groups] + [labels for labels, _ in more],
            places=[*places.tolist(), *behind],
            windows=np.concatenate([heard.embeddings, *further]).astype("<f2").tobytes(),
            fixed=fixed,
        )

    def right(self, model: CutModel) -> Bools:
        """(clips,) which of them are labelled correctly from the embeddings of some weights.

        Each clip is judged by a head fitted to the others (cross-validation over clips), or by the head itself if it is
        fixed or a label would be missing from a fit. Raises FormatError.
        """
        embeddings = embedded(model, self.samples)
        examples = self._examples(embeddings)
        if not np.isfinite(embeddings).all():
            return np.zeros(len(self.clips), np.bool_)
        found = None if self.fixed else held_out_right(examples)
        return self._right_of_head(embeddings) if found is None else found

    def refitted(self, model: CutModel) -> Head:
        """The head refitted to the embeddings of some weights; unchanged if it is fixed or has too few clips.

        It keeps the generations of the former head. Raises FormatError.
        """
        head = Head.from_json(self.head, "head")
        if self.fixed:
            return head
        embeddings = embedded(model, self.samples)
        examples = self._examples(embeddings)
        if set(examples.labels) != set(head.labels) or folds_of(examples, 0) is None:
            return head
        again = fit_head(examples, head.encoder, head.created_by)
        kept = {name: getattr(head, name) for name in ("generations", "model", "exit_temperatures")}
        return msgspec.structs.replace(again, **kept)

    def _examples(self, embeddings: npt.NDArray[np.float32]) -> Examples:
        head, places = Head.from_json(self.head, "head"), np.array(self.places)
        for labels in self.clips:
            if not set(head.labels) >= set(labels):
                raise FormatError(f"clips: {', '.join(labels)}: the head's labels are {', '.join(head.labels)}")
        truth = np.array([[label in labels for label in head.labels] for labels in self.clips])
        heard = np.flatnonzero(truth.any(axis=0))
        names = tuple(head.labels[place] for place in heard)
        several = head.scores_by == "sigmoid"
        return Examples(embeddings, names, truth[places][:, heard], places, (0, 0), several=several)

    def _right_of_head(self, embeddings: npt.NDArray[np.float32]) -> Bools:
        head = Head.from_json(self.head, "head")
        truth = np.array([[label in labels for label in head.labels] for labels in self.clips])
        scores = mean_by_group(head.scores(embeddings).astype(np.float64), np.array(self.places))
        return right_rows(scores, truth, head.scores_by == "softmax")

    @property
    def samples(self) -> npt.NDArray[np.float32]:
        """The audio (windows, samples)."""
        return np.frombuffer(self.windows, "<f2").reshape(len(self.places), -1).astype(np.float32)


class HeadClipsFolder:
    """The clips of the heads that were pushed from this machine, one file for each head."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def keep(self, kept: HeadClips, bounded: bool = True) -> None:
        """Write a head's clips. Raises UsageError if, `bounded`, there are already clips of too many heads."""
        make_private(self.path)
        path = self._file(kept.head)
        if bounded and not path.exists() and len(self._files()) >= MAX_HEADS:
            raise UsageError(
                f"{self.path}: has the clips of {MAX_HEADS} heads, no more are kept; give --no-judging, or remove some "
                f"of these files and their checksums{_NOT_JUDGED}"
            )
        write_checked(path, msgspec.msgpack.encode(kept), 0o600)

    def read(self, head: Head) -> HeadClips | None:
        """The clips of a head; None if none were kept. Raises FormatError if they are damaged."""
        path = self._file(head.to_json())
        data = read_checked(path, _MAX_BYTES, fix=_NOT_JUDGED)
        if data is None:
            return None
        return strict.decode(
            data, HeadClips, str(path), _MAX_BYTES, form="MessagePack", fix=f"; remove it{_NOT_JUDGED}"
        )

    def remove_others(self, heads: Collection[Head]) -> None:
        """Remove the clips of all heads except these."""
        wanted = {self._file(head.to_json()) for head in heads}
        for path in self._files() - wanted:
            remove_checked(path)

    def _files(self) -> set[Path]:
        return set(self.path.glob("*.clips")) if self.path.is_dir() else set()

    def _file(self, head: bytes) -> Path:
        return self.path / f"{head_name(head)}.clips"


def head_name(head: bytes) -> str:
    """A file name for a head; every head gets a different one."""
    return hashlib.sha256(head).hexdigest()[:32]
