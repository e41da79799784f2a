"""A frame as the broker hands it over: whose it is, and what it holds."""

from __future__ import annotations

import time

import msgspec
from nats.aio.msg import Msg
from torch import Tensor

from runtime_edge.errors import FrameError
from runtime_edge.formats import subjects
from runtime_edge.formats.wire import FrameHeader, Reply, ReplyStatus, decode_frame
from runtime_server.training.buffer import TrainingWindow


class Parts(msgspec.Struct):
    """What has become of the windows of one message; changed by the answer stage alone."""

    windows: int = 1
    tried: int = 0
    """Whose answers were sent, or could not be."""
    answered: int = 0
    dead: bool = False
    """Whether the message is a dead letter, because of one window at least."""


class Arrival(msgspec.Struct, frozen=True):
    """One window of a frame that decoded."""

    message: Msg
    device: str
    partition: int
    """Of its device."""
    boot: str
    header: FrameHeader
    payload: bytes
    sequence: int
    """Place of its message in the broker's stream."""
    arrived: float
    """`time.monotonic()` of its arrival here, s."""
    parts: Parts = msgspec.field(default_factory=Parts)
    """Of its message, which is acknowledged once."""

    def window(self, activation: Tensor, in_range: bool) -> TrainingWindow:
        """What the trainer gets of it: its activation (rows, ...), and whether that is one to learn from."""
        header = self.header
        return TrainingWindow(
            device=self.device,
            boot=self.boot,
            index=header.window,
            generation=header.generation,
            cut=header.cut,
            activation=activation,
            uncertainty=header.uncertainty,
            sequence=self.sequence,
            in_range=in_range,
        )

    def reply(self, newest: int, status: ReplyStatus, embedding: bytes = b"", mixture: bytes = b"") -> Reply:
        """The answer to it, with the newest generation that there is."""
        return Reply(
            window=self.header.window,
            generation=newest,
            status=status,
            server_us=int((time.monotonic() - self.arrived) * 1e6),
            embedding=embedding,
            mixture=mixture,
        )


def decode_arrival(message: Msg, sequence: int, arrived: float) -> list[Arrival]:
    """Check the frame, and the identity in the message id against the subject and its first window.

    `sequence` is its place in the stream, `arrived` when it came, `time.monotonic()`. Raises FrameError.
    """
    device = message.subject.rsplit(".", 1)[-1]
    if not subjects.is_device(device) or message.subject != subjects.frames(device):
        raise FrameError("no device publishes on this subject")
    windows = decode_frame(message.data)
    partition, identity = subjects.partition(device), subjects.identity(message.headers)
    boot = identity[len(device) + 1 :].partition(".")[0]
    if not subjects.is_boot(boot) or identity != subjects.message_id(device, boot, windows[0][0].window):
        raise FrameError("the message id does not name this device and window")
    parts = Parts(len(windows))
    return [
        Arrival(message, device, partition, boot, header, payload, sequence, arrived, parts)
        for header, payload in windows
    ]
