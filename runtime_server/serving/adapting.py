"""Puts adaptation together for a server, and refuses settings with which it cannot work."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from runtime_edge.errors import FormatError, UsageError
from runtime_edge.formats.bundle import open_bundle
from runtime_edge.formats.records.head import Head
from runtime_server.adaptation.adaptation_judge import GetLabelled, LabelledWindows
from runtime_server.adaptation.adaptation_loop import AdaptationLoop
from runtime_server.adaptation.adaptation_service import AdaptationService
from runtime_server.adaptation.known_adaptations import KnownAdaptations
from runtime_server.adaptation.make_method import TAUGHT, method_maker
from runtime_server.broker.hub import Hub
from runtime_server.broker.pushed_heads import PushedHeads
from runtime_server.labels.head_clips import HeadClipsFolder
from runtime_server.serving.loading import Loaded
from runtime_server.serving.server_config import ServerConfig

_MOST_LABELLED = 128
"""Labelled windows that judge an adaptation."""


def check_adapt(config: ServerConfig, ranks: int) -> None:
    """Raise UsageError for settings of adaptation that do not go together, or for a bundle that cannot be adapted."""
    method = config.adapt.method
    if method is None:
        return
    if method in TAUGHT and config.larger is None:
        raise UsageError(f"--adapt {method}: needs a teacher; give --larger and --calibrate, or --adapt tent")
    if ranks > 1:
        raise UsageError(f"--adapt {method}: works with one server process only, this is one of {ranks} ranks")
    if not open_bundle(config.bundle).manifest.info.adaptable:
        raise UsageError(f"--adapt {method}: {config.bundle} cannot be adapted; compile it with --adaptable")


def adaptation_service(
    config: ServerConfig, loaded: Loaded, known: KnownAdaptations, hub: Hub, labelled: GetLabelled
) -> AdaptationService | None:
    """The service, or None if devices are not adapted. Raises UsageError if what devices run cannot be adapted."""
    adapt, bundle = config.adapt, loaded.generations.newest.bundle
    if adapt.method is None:
        return None
    if not bundle.manifest.info.adaptable:
        raise UsageError(
            f"--adapt {adapt.method}: {bundle.path}, which devices run, cannot be adapted; start with a new --state "
            "and a bundle compiled with --adaptable"
        )
    loop = AdaptationLoop(
        adapt,
        loaded.generations,
        known,
        method_maker(adapt.method, loaded.larger, config.train.seed, adapt.statistics == "blended"),
        labelled,
        config.train.share,
    )

    def targets() -> dict[str, str]:
        return {device: report.target for device, report in loaded.rollout.last_reports().items()}

    heads = PushedHeads(hub, loaded.key)
    return AdaptationService(hub, loaded.key, heads, targets, loop, known, loaded.generations, adapt)


def labelled_windows(folder: HeadClipsFolder, warn: Callable[[str], None]) -> GetLabelled:
    """Finds windows of the clips that were kept for a head; damaged clips are named to `warn` and left out."""

    def find(head: Head) -> LabelledWindows | None:
        try:
            kept = folder.read(head)
        except FormatError as exc:
            warn(str(exc))
            return None
        if kept is None:
            return None
        labels = [kept.clips[place] for place in kept.places]
        chosen = [row for row, names in enumerate(labels) if len(names) == 1 and names[0] in head.labels]
        chosen = chosen[:: -(-len(chosen) // _MOST_LABELLED)] if chosen else []
        if not chosen:
            return None
        truth = np.array([head.labels.index(labels[row][0]) for row in chosen])
        return LabelledWindows(kept.samples[chosen], truth)

    return find
