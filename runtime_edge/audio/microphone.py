"""The live microphone. The only file that imports sounddevice."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from runtime_edge.audio.audio_block import Clock, Counters
from runtime_edge.audio.live import FrameQueue, Waiter
from runtime_edge.audio.stream import BLOCK_SECONDS, SourceAudio
from runtime_edge.errors import MissingExtra, SourceError

PATIENCE_SECONDS = 5.0


class Microphone:
    """An input device, opened at its own sample rate and captured by PortAudio's thread.

    Args:
        device: PortAudio's name (or part of it) or number; empty for the system's default.
        queue_seconds: how much audio is kept for a late reader.
        counters: where overruns are counted.
        clock: the time.
        waiter: how the reader waits.
        least_channels: the fewest channels to open; two are opened if the device has two.

    Raises:
        MissingExtra: sounddevice is not installed.
        SourceError: PortAudio is missing, or the device is missing, busy or has no input.
    """

    def __init__(
        self,
        device: str,
        queue_seconds: float,
        counters: Counters,
        clock: Clock,
        waiter: Waiter | None = None,
        least_channels: int = 1,
    ) -> None:
        sounddevice = _sounddevice()
        chosen = int(device) if device.isdecimal() else device or None
        self._name = device or "default"
        self._counters = counters
        try:
            info = sounddevice.query_devices(chosen, "input")
            rate_hz = round(info["default_samplerate"])
            if (most := int(info["max_input_channels"])) < least_channels:
                raise ValueError(f"has {most} channels, and no channel {least_channels}")
            self.queue = FrameQueue(rate_hz, queue_seconds, counters, clock, waiter)
            self._stream = sounddevice.InputStream(
                samplerate=rate_hz,
                blocksize=max(1, round(rate_hz * BLOCK_SECONDS)),
                device=chosen,
                channels=max(least_channels, min(2, most)),
                dtype="float32",
                callback=self._captured,
            )
        except (sounddevice.PortAudioError, ValueError) as exc:
            raise self._error(exc) from exc
        self._failure = sounddevice.PortAudioError

    def read(self) -> Iterator[SourceAudio]:
        """Start capturing and yield frames until closed.

        Raises:
            SourceError: the device cannot start, or delivered nothing for `PATIENCE_SECONDS` (unplugged).
        """
        try:
            with self._stream:
                yield from self.queue.read(PATIENCE_SECONDS)
        except (self._failure, SourceError) as exc:
            raise self._error(exc) from exc

    def _captured(self, frames: Any, count: int, when: Any, status: Any) -> None:
        if status.input_overflow:
            self._counters.overruns += 1
        self.queue.put(np.array(frames, dtype=np.float32))

    def _error(self, exc: Exception) -> SourceError:
        reason = " ".join(str(exc).split())
        if reason.endswith("querying device -1"):  # PortAudio's number for a default device that does not exist
            reason = "there is no input device"
        return SourceError(
            f"microphone {self._name!r}: {reason}: list inputs with python -m sounddevice, then give mic:NAME"
        )


def _sounddevice() -> Any:
    try:
        return importlib.import_module("sounddevice")
    except ImportError as exc:
        raise MissingExtra("sounddevice", "audio") from exc
    except OSError as exc:
        raise SourceError(
            "microphone: the library PortAudio is missing: install it (Debian: apt install libportaudio2)"
        ) from exc
