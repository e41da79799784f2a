"""A window between its decision and its result."""

from __future__ import annotations

import msgspec
import numpy as np

from runtime_edge.device.capture import CapturedWindow
from runtime_edge.formats.results import VERSION, WindowResult, answer_of
from runtime_edge.inference.engine import Embedding, Engine, PrefixResult
from runtime_edge.policy.online_learner import OnlineLearner
from runtime_edge.policy.splitter import Decision


class InFlight(msgspec.Struct, frozen=True, kw_only=True):
    """A window whose prefix has run and whose result is not complete."""

    window: CapturedWindow
    message_id: str
    live: bool
    """Whether its frame is to be sent at once."""
    decision: Decision
    filler_worth: float
    """Bytes that it may cost to see whether the link has become faster (`Splitter.filler_worth`)."""
    capped: bool
    """Whether the table has a cap on bytes."""
    hop_s: float
    cut: str
    engine: Engine
    """The engine that ran it; a newer one may be in use by now."""
    learner: OnlineLearner | None
    """The learner of its table, if there is one."""
    step: PrefixResult
    frame_bytes: int
    """Size of its frame, which need not be kept just to know it."""
    cpu: float
    bandwidth_mbps: float
    rtt_ms: float
    device_ms: float

    def result(
        self, embedding: Embedding, uncertainty: float, where: str, network_ms: float, server_ms: float
    ) -> WindowResult:
        """The window's result: its embedding (d,), finished at `where`, and the parts of its latency."""
        first = self.step.first
        return WindowResult(
            version=VERSION,
            answer=answer_of(where),
            revises=int(first is not None and where != first.by),
            novelty=None if first is None else round(first.novelty, 5),
            window=self.window.index,
            time=self.window.capture_time_ns / 1e9,
            file=self.window.file,
            offset_s=self.window.offset_s,
            recorded_at=self.window.recorded_at,
            embedding=embedding.astype(np.float64).round(5).tolist(),
            uncertainty=uncertainty,
            cut=self.cut,
            encoding=self.step.encoding,
            width=self.decision.width,
            probe=self.decision.explored,
            generation=self.engine.generation,
            finished=where,
            latency_ms=round(self.device_ms + network_ms + server_ms, 3),
            device_ms=round(self.device_ms, 3),
            network_ms=round(network_ms, 3),
            server_ms=round(server_ms, 3),
            frame_bytes=self.frame_bytes,
            bandwidth_mbps=round(self.bandwidth_mbps, 4),
            rtt_ms=round(self.rtt_ms, 3),
            cpu=round(self.cpu, 4),
        )


def differs(first: WindowResult, final: WindowResult, above: float) -> bool:
    """Whether a second answer for a window differs from the first by more than `above`.

    Compared are the labels' scores, where a label that a result does not name counts as 0; without labels, the
    embeddings: they differ if their cosine is below 1 - `above`.
    """
    if first.labels is None or final.labels is None:
        vectors = np.array([first.embedding, final.embedding])
        norms = np.linalg.norm(vectors, axis=1)
        return bool(first.labels != final.labels or 1 - vectors[0] @ vectors[1] / max(norms.prod(), 1e-30) > above)
    names = first.labels.keys() | final.labels.keys()
    return any(abs(first.labels.get(name, 0.0) - final.labels.get(name, 0.0)) > above for name in names)
