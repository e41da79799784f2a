"""Training checkpoints: a server that restarts continues at the exact step.

    <state>/trainer/checkpoint.pt

It contains the weights, averaged weights, the objective's state, the optimiser's moments, every random generator, the
mixture memory, and the positions in the broker's stream of the windows that the trainer had. The windows themselves
stay in the stream (`runtime_server.ingest.frame_replay` reads them again).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from runtime_edge.base.checked_files import check, checksum_path, digest_of, replacing
from runtime_edge.base.files import fsync_directory
from runtime_edge.errors import FormatError, UsageError
from runtime_server.training.trainer import TrainConfig, Trainer

FORMAT = "streamsplit.trainer/1"
_LOG = logging.getLogger(__name__)
_COPIES = 5
"""How many times the weights' size a checkpoint may have: weights, average, two moments, and room."""
_ROOM_BYTES = 256 << 20
_UNNAMED = {"objective": "virtual-negatives", "objective_state": {}}
"""The settings of earlier checkpoints, which do not name them because there was no choice."""


def resumed(make: Callable[[], Trainer], checkpoints: Checkpoints) -> Trainer:
    """A trainer that continues from the checkpoint, or a new one.

    A checkpoint that cannot be resumed is moved aside with a warning: it is better to restart training from the
    released weights than not to start. Raises UsageError for a checkpoint of another objective, if either objective has
    a state.
    """
    trainer = make()
    try:
        if checkpoints.load(trainer):
            _LOG.info("training continues at step %d", trainer.steps)
        return trainer
    except FormatError as exc:
        aside = checkpoints.path.with_name(checkpoints.path.name + ".unusable")
        checksum_path(checkpoints.path).unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.replace(checkpoints.path, aside)
        _LOG.warning("%s; training restarts from the released weights, the file is now %s", exc, aside.name)
        return make()


class Checkpoints:
    """One trainer's checkpoint, replaced as training continues.

    Args:
        path: the file.
        encoder: id of the trained encoder; a checkpoint of another encoder is refused.
        rank: a rank other than the first has a separate file beside it, for its own windows. All ranks continue from
            the first one's weights.
    """

    def __init__(self, path: Path, encoder: str, rank: int = 0) -> None:
        self._first, self._encoder = path, encoder
        self.path = path.with_name(f"{path.stem}-{rank}{path.suffix}") if rank else path
        self.saved: int | None = None
        """The trainer's steps when it was last saved or loaded here."""

    def save(self, trainer: Trainer) -> None:
        """Replace the file atomically. Call it between two steps. Raises OSError."""
        state = trainer.state_dict()
        memory = dict(state["memory"])
        arrays = {name: torch.from_numpy(memory.pop(name)) for name in list(memory) if hasattr(memory[name], "shape")}
        document = {
            **state,
            "format": FORMAT,
            "encoder": self._encoder,
            "config": json.dumps(asdict(trainer.config)),
            "rng": json.dumps(state["rng"]),
            "memory": arrays,
            "memory_counts": json.dumps(memory),
            **{name: torch.tensor(state[name], dtype=torch.int64) for name in ("taken", "kept")},
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Straight to the disk, so that several times the weights need not be in memory twice.
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                torch.save(document, file)
                file.flush()
                os.fsync(file.fileno())
            with replacing(self.path, digest_of(Path(name))):
                os.replace(name, self.path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        fsync_directory(self.path.parent)
        self.saved = trainer.steps

    def load(self, trainer: Trainer) -> bool:
        """Let a new trainer continue from the file; False if there is none.

        Raises FormatError if it is damaged or belongs to another encoder or version, and UsageError if it belongs to
        another objective and either has a state of its own: the trainer is then unusable.
        """
        if not check(self._first):
            return False
        try:
            state = self._read(self._first, trainer)
            self._check_objective(state, trainer)
            trainer.load_state_dict(state, None if self.path == self._first else self._own(trainer))
        except UsageError:
            raise
        except FormatError as exc:
            raise FormatError(f"{self._first}: {exc}") from None
        except Exception as exc:  # torch raises all kinds of exceptions when it reads a damaged archive
            raise FormatError(f"{self._first}: cannot be resumed ({' '.join(str(exc).split())[:200]})") from None
        for line in _changes(state["config"], trainer.config):
            _LOG.warning("training continues with other settings than before: %s", line)
        self.saved = trainer.steps
        return True

    def _check_objective(self, state: Mapping[str, Any], trainer: Trainer) -> None:
        trained, own = state["objective"], trainer.objective.state_dict()
        if trained != trainer.config.objective and (own or state["objective_state"]):
            raise UsageError(
                f"{self._first}: was trained with --objective {trained}, not {trainer.config.objective}; give "
                f"--objective {trained}, or remove {self._first.parent} to train anew from the released weights"
            )

    def _own(self, trainer: Trainer) -> dict[str, Any]:
        """What a rank other than the first had for itself; empty if it has no file, or an unusable one."""
        try:
            return self._read(self.path, trainer) if check(self.path) else {}
        except Exception as exc:  # as in `load`
            _LOG.warning("%s: cannot be read (%s); this rank's windows are read again", self.path, type(exc).__name__)
            return {}

    def _read(self, path: Path, trainer: Trainer) -> dict[str, Any]:
        own = _nbytes(trainer.model.module)
        size = path.stat().st_size
        if size > _COPIES * own + _nbytes(trainer.objective) + _ROOM_BYTES:
            raise FormatError(f"{size} bytes, too many for a trainer of {own} bytes of weights")
        document = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise FormatError(f"not a {FORMAT} file")
        if document["encoder"] != self._encoder:
            raise FormatError(f"training of encoder {document['encoder']}, this one is {self._encoder}")
        arrays = {name: array.numpy() for name, array in document["memory"].items()}
        return {
            **_UNNAMED,
            **document,
            "rng": json.loads(document["rng"]),
            "memory": arrays | json.loads(document["memory_counts"]),
            **{name: document[name].tolist() for name in ("taken", "kept")},
        }


def _changes(before: str, config: TrainConfig) -> list[str]:
    """Settings that differ from a checkpoint's; with them, training continues differently."""
    then, now = {**_UNNAMED, **json.loads(before)}, asdict(config)
    names = [field.name for field in fields(config)]
    return [f"{name} {then.get(name)} -> {now[name]}" for name in names if then.get(name) != now[name]]


def _nbytes(module: nn.Module) -> int:
    return sum(value.nbytes for value in module.state_dict().values())
