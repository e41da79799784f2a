"""What a user gets out: one result for every window, to the sinks that were asked for."""

from __future__ import annotations

import msgspec


class WindowResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One window, as it goes to JSON lines and callbacks; without a head the last three fields are left out."""

    window: int
    time: float
    """Capture time of the window's end, seconds since the epoch."""
    embedding: list[float]
    uncertainty: float
    """Normalised to [0, 1]; 1 while the memory is cold."""
    cut: str
    encoding: str
    probe: bool
    generation: int
    """Of the bundle that made the embedding."""
    finished: str
    """Where: "server", "device" (the whole encoder ran here) or "fallback" (the server did not answer in time)."""
    latency_ms: float
    """From the end of the window to the embedding."""
    device_ms: float
    network_ms: float
    server_ms: float
    frame_bytes: int
    bandwidth_mbps: float
    rtt_ms: float
    cpu: float
    labels: dict[str, float] | None = None
    """The best labels with their scores in [0, 1], best first."""
    detected: list[str] | None = None
    """All labels whose score reached the head's threshold, best first."""
    head_generation: int | None = None
    """Newest generation of the embeddings the head was trained on; labels are surest when it is `generation`."""


class ResultEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="event", tag="result"):
    """A result as other programs get it on `evt.<device>`: what was heard, and no embedding."""

    device: str
    window: int
    time: float
    labels: dict[str, float] = {}
    detected: list[str] = []
    uncertainty: float
    cut: str
    finished: str
    generation: int
    latency_ms: float
