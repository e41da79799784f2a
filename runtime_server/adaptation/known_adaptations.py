"""The adaptations that devices may run, and the weights with which their frames are completed.

    known = KnownAdaptations(state / "adaptations", generations)
    known.add("pi-1.rpi4", adaptation)                      # before a device can see it
    if known.may_run("pi-1", header.model):
        generation = known.served(generation, header.model)

The last few of each recipient are kept on disk, because a device sends frames from before its latest swap. A device
may run only those that were made for it, or for all devices.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import quote

import msgspec
from msgspec import Meta

from runtime_edge.base.checked_files import read_checked, remove_checked, write_checked
from runtime_edge.errors import FormatError, SscError
from runtime_edge.formats import strict, subjects
from runtime_edge.formats.model_id import model_digest
from runtime_edge.formats.records.adaptation import MAX_ADAPTATION_BYTES, Adaptation
from runtime_edge.formats.strict import Name, Strict
from runtime_edge.formats.wire import NO_MODEL
from runtime_server.adaptation.norm_changes import adapted_tensors
from runtime_server.suffix.generations import Generation, Generations

_LOG = logging.getLogger(__name__)
KEPT = 4
"""Adaptations of one recipient."""
MAX_RECIPIENTS = 1024
"""With more, those whose latest adaptation is the oldest are forgotten."""
_MAX_BYTES = (KEPT + 1) * MAX_ADAPTATION_BYTES
_MAX_SERVED_BYTES = 512 << 20
"""Memory for adapted weights that are ready to complete frames; at least one adaptation's are kept."""


class _Kept(Strict, frozen=True, kw_only=True):
    """The file of one recipient."""

    format: Literal["streamsplit.kept_adaptations/1"] = "streamsplit.kept_adaptations/1"
    key: Name
    """Key of the bucket."""
    adaptations: Annotated[tuple[Adaptation, ...], Meta(max_length=KEPT)]
    """The latest one last."""


class KnownAdaptations:
    """The adaptations of one server. Used by several threads."""

    def __init__(self, folder: Path, generations: Generations) -> None:
        """Read the folder; a damaged file is left out with a warning."""
        self._folder, self._generations = folder, generations
        self._lock = threading.Lock()
        self._by_key: dict[str, tuple[Adaptation, ...]] = {}
        self._by_number: dict[int, dict[str, Adaptation]] = {}
        self._served: OrderedDict[tuple[int, int], Generation | None] = OrderedDict()
        for path in sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime):
            try:
                kept = strict.decode(read_checked(path, _MAX_BYTES) or b"", _Kept, str(path), _MAX_BYTES)
            except FormatError as exc:
                _LOG.warning("%s; frames of devices that run it are refused", exc)
                continue
            self._by_key[kept.key] = kept.adaptations
        self._index()

    def add(self, key: str, adaptation: Adaptation) -> None:
        """Keep an adaptation for the recipient with this bucket key. Raises OSError."""
        with self._lock:
            kept = (*self._by_key.pop(key, ()), adaptation)[-KEPT:]
            write_checked(self._file(key), msgspec.json.encode(_Kept(key=key, adaptations=kept)), 0o600)
            self._by_key[key] = kept
            while len(self._by_key) > MAX_RECIPIENTS:
                forgotten = next(iter(self._by_key))
                del self._by_key[forgotten]
                remove_checked(self._file(forgotten))
            self._index()

    def latest(self, key: str) -> Adaptation | None:
        """The latest one of a recipient, by its bucket key."""
        with self._lock:
            return next(iter(self._by_key.get(key, ())[-1:]), None)

    def may_run(self, device: str, number: int) -> bool:
        """Whether an adaptation with this number was made for a device or for all devices."""
        with self._lock:
            keys = self._by_number.get(number, {})
        return any(key.partition(".")[0] in (device, subjects.ALL_DEVICES) for key in keys)

    def is_compiled(self, generation: Generation, number: int, cut: int) -> bool:
        """Whether a device that names this model in its frames runs the compiled blocks in front of a cut."""
        if number in (NO_MODEL, generation.model_number):
            return True
        with self._lock:
            adaptation = next(iter(self._by_number.get(number, {}).values()), None)
        before = generation.bundle.manifest.info.blocks[:cut]
        return adaptation is not None and not any(layer.block in before for layer in adaptation.layers)

    def served(self, generation: Generation, number: int) -> Generation | None:
        """The generation with the weights of an adaptation; None if there is none of this number for it."""
        place = generation.number, number
        with self._lock:
            adaptation = next(iter(self._by_number.get(number, {}).values()), None)
            if adaptation is None or not fits(adaptation, generation):
                return None
            if place in self._served:
                self._served.move_to_end(place)
                return self._served[place]
        made = self._made(generation, adaptation)
        with self._lock:
            self._served[place] = made
            room = max(1, _MAX_SERVED_BYTES // max(1, _weight_bytes(generation)))
            while len(self._served) > room:
                self._served.popitem(last=False)
        return made

    def _made(self, generation: Generation, adaptation: Adaptation) -> Generation | None:
        try:
            tensors = adapted_tensors(generation.model.tensors(), adaptation.layers)
            return self._generations.adapted(generation, tensors, adaptation.number)
        except (SscError, KeyError, ValueError) as exc:
            _LOG.error("an adaptation of generation %d does not fit it: %s", generation.number, exc)
            return None

    def _index(self) -> None:
        self._by_number = {}
        for key, adaptations in self._by_key.items():
            for adaptation in filter(_changes, adaptations):
                self._by_number.setdefault(adaptation.number, {})[key] = adaptation

    def _file(self, key: str) -> Path:
        return self._folder / f"{quote(key, safe='')}.json"


def fits(adaptation: Adaptation, generation: Generation) -> bool:
    """Whether an adaptation was made for the weights of a generation."""
    manifest = generation.bundle.manifest
    return (adaptation.generation, adaptation.model) == (generation.number, model_digest(manifest))


def _changes(adaptation: Adaptation) -> bool:
    return bool(adaptation.layers)


def _weight_bytes(generation: Generation) -> int:
    """Memory that the weights of an adapted generation take: its own, and those of its optimised blocks."""
    return 2 * sum(int(tensor.nbytes) for tensor in generation.model.module.state_dict().values())
