"""Loads a server's state before it serves: key, generations, rollout, and the state of training."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from runtime_edge.errors import BundleError, UsageError
from runtime_edge.formats import minisign
from runtime_edge.formats.bundle import Bundle, open_bundle
from runtime_edge.formats.records.head import read_head
from runtime_server.labels.linear_probe import LinearProbe
from runtime_server.releases.release_gate import ReleaseGate, first_model
from runtime_server.releases.rollout import Rollout
from runtime_server.serving.server_config import ServerConfig
from runtime_server.state.server_state import ServerState
from runtime_server.suffix.generations import KEPT_GENERATIONS, Generation, Generations
from runtime_server.suffix.larger_encoder import LargerEncoder
from runtime_server.training.checkpoint import Checkpoints, resumed
from runtime_server.training.ranks import Ranks
from runtime_server.training.trainer import Trainer
from streamsplit_compile.bundle.bundle_writer import renew_signature, staging_directory, write_manifest
from streamsplit_compile.bundle.calibrate import calibration_set_for
from streamsplit_compile.bundle.digests import weights_digest
from streamsplit_compile.encoder.encoders import LoadedEncoder, load_encoder

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Training:
    """The parts that train and judge."""

    trainer: Trainer
    release_gate: ReleaseGate
    checkpoints: Checkpoints


@dataclass(frozen=True)
class Loaded:
    """What was loaded from the disk."""

    key: minisign.SecretKey
    """Signs releases, tables, heads and adaptations."""
    generations: Generations
    rollout: Rollout
    unreleased: int | None
    """A generation that was compiled but never offered to devices; only on the first rank."""
    training: Training | None
    """None: the server does not train."""
    larger: LargerEncoder | None = None
    """The larger encoder that helps to complete windows sent as audio, if there is one."""


class Loader:
    """Reads a state directory once; the first rank creates what is missing."""

    def __init__(self, encoder: LoadedEncoder, config: ServerConfig, state: ServerState, ranks: Ranks) -> None:
        self._encoder, self._config, self._state, self._ranks = encoder, config, state, ranks

    def load(self) -> Loaded:
        """Load everything from the disk; other ranks wait until the first one has created it.

        Raises BundleError if the bundle was made from other weights, FormatError or SignatureError for damaged files.
        """
        number = 0 if self._ranks.first else self._ranks.sum(0)[0]
        key = self._state.signing_key(self._config.key)
        larger = self._larger()
        generations = Generations(self._encoder.graph, precision=self._config.precision, larger=larger)
        rollout = Rollout(self._state.root / "rollout.json", self._config.rollout)
        newest = self._fill(generations, rollout, key)
        unreleased = None
        if self._ranks.first:
            kept = {generation.number: generation.bundle.digest for generation in generations.kept()}
            unreleased = rollout.begin(kept)
        if unreleased is None:
            newest = generations.get(rollout.base) or newest
        training = self._training(generations.get(number) or newest, generations, rollout, key)
        if self._ranks.first:
            self._ranks.sum(newest.number)
        return Loaded(key, generations, rollout, unreleased, training, larger)

    def _fill(self, generations: Generations, rollout: Rollout, key: minisign.SecretKey) -> Generation:
        """Fill `generations` from the state directory, or with the given bundle as the first; returns the newest."""
        generations.protect(rollout.running)
        known = self._state.generations(KEPT_GENERATIONS, rollout.running)
        found = {bundle.manifest.info.generation for bundle, _ in known}
        for number in sorted(rollout.running - found):
            _LOG.error("%s: generation %d, which devices run, is missing", self._state.root / "generations", number)
        for bundle, tensors in known or [self._import_first(key)]:
            if self._ranks.first and renew_signature(bundle, key):
                _LOG.warning("%s: was signed with another key; from now on this server's key signs it", bundle.path)
            newest = generations.add(bundle, tensors)
        return newest

    def _larger(self) -> LargerEncoder | None:
        config = self._config
        if config.larger is None:
            if config.larger_head is not None:
                raise UsageError("--larger-head: needs --larger, the encoder that it is for")
            return None
        front_end = open_bundle(config.bundle).manifest.info.front_end
        head = None if config.larger_head is None else read_head(config.larger_head)
        return LargerEncoder.of(load_encoder(config.larger), front_end, config.calibrate, config.train.seed, head)

    def _import_first(self, key: minisign.SecretKey) -> tuple[Bundle, dict[str, npt.NDArray[Any]]]:
        given = open_bundle(self._config.bundle)
        tensors = self._encoder.tensors
        if given.manifest.info.encoder.weights != weights_digest(tensors):
            raise BundleError(f"{given.path}: compiled from other weights than the encoder given; compile it again")
        number = given.manifest.info.generation
        path = self._state.bundle_path(number)
        with staging_directory(path) as staging:
            shutil.copytree(given.path, staging, dirs_exist_ok=True)
            write_manifest(staging, given.manifest, key)
        self._state.save_weights(number, tensors)
        return open_bundle(path), tensors

    def _training(
        self, newest: Generation, generations: Generations, rollout: Rollout, key: minisign.SecretKey
    ) -> Training | None:
        """A trainer that continues from the checkpoint or starts with `newest`, and its release gate."""
        config, encoder, ranks = self._config, self._encoder, self._ranks
        if not config.training:
            return None
        info = newest.bundle.manifest.info
        checkpoints = Checkpoints(self._state.root / "trainer" / "checkpoint.pt", encoder.id, ranks.rank)
        held_out_key = self._state.held_out_key()
        model_width = encoder.embedding_dim
        trainer = resumed(
            lambda: Trainer(first_model(encoder.graph, newest), config.train, model_width, ranks, held_out_key),
            checkpoints,
        )
        release_gate = ReleaseGate(
            encoder.graph,
            generations,
            trainer,
            self._state,
            calibration_set_for(info, config.calibrate),
            key,
            config.release,
            rollout,
            ranks,
            LinearProbe(config.probe, info.front_end) if config.probe and ranks.first else None,
        )
        return Training(trainer, release_gate, checkpoints)
