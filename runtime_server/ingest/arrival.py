"""A frame as the broker delivers it: which device sent it, and its contents."""

from __future__ import annotations

import time

import msgspec
import numpy as np
import numpy.typing as npt
from nats.aio.msg import Msg
from torch import Tensor

from runtime_edge.errors import FrameError
from runtime_edge.formats import subjects
from runtime_edge.formats.wire import FrameHeader, Reply, ReplyEncoding, ReplyStatus, decode_frame, int8_embedding
from runtime_server.training.buffer import TrainingWindow


class Parts(msgspec.Struct):
    """What has become of the windows of one message; changed only by the answer stage."""

    windows: int = 1
    tried: int = 0
    """Windows whose answers were sent or could not be sent."""
    answered: int = 0
    replies: list[Reply] = msgspec.field(default_factory=list)
    """Replies waiting for those of the other windows."""
    dead: bool = False
    """Whether the message is a dead letter, because of at least one of its windows."""


class Arrival(msgspec.Struct, frozen=True):
    """One window of a successfully decoded frame."""

    message: Msg
    device: str
    partition: int
    """The partition of its device."""
    boot: str
    header: FrameHeader
    payload: bytes
    sequence: int
    """Its message's sequence number in the broker's stream."""
    arrived: float
    """`time.monotonic()` when it arrived here, s."""
    parts: Parts = msgspec.field(default_factory=Parts)
    """The progress of its message, which is acknowledged once."""
    inbox: str = ""
    """Where to send the answer; empty: nowhere."""
    asked: subjects.Asked = "everything"

    def window(self, activation: Tensor, in_range: bool) -> TrainingWindow:
        """What the trainer gets: the activation (rows, ...), and whether it is one to learn from."""
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
            plain=not header.width,
            in_range=in_range,
        )

    def reply(
        self,
        newest: int,
        status: ReplyStatus,
        embedding: npt.NDArray[np.float32] | None = None,
        mixture: bytes = b"",
    ) -> Reply:
        """The answer to it, with the number of the newest generation, and the embedding (d,) if it was asked for."""
        encoding: ReplyEncoding = "float16"
        written = b""
        if embedding is not None and self.asked != "trouble":
            encoding = "int8" if self.asked == "embedding" else "float16"
            written = int8_embedding(embedding) if encoding == "int8" else embedding.astype("<f2").tobytes()
        return Reply(
            window=self.header.window,
            generation=newest,
            status=status,
            server_us=int((time.monotonic() - self.arrived) * 1e6),
            embedding=written,
            encoding=encoding,
            mixture=mixture,
        )

    def is_wanted(self, reply: Reply) -> bool:
        """Whether the device should get this answer."""
        return bool(self.inbox) and (self.asked != "trouble" or reply.status != "ok" or bool(reply.mixture))


def decode_arrival(message: Msg, sequence: int, arrived: float) -> list[Arrival]:
    """Decode a frame, and check the identity in its message id against the subject and the first window.

    `sequence` is its place in the stream, `arrived` its arrival by `time.monotonic()`. Raises FrameError.
    """
    device = message.subject.rsplit(".", 1)[-1]
    if not subjects.is_device(device) or message.subject != subjects.frames(device):
        raise FrameError("no device publishes on this subject")
    windows = decode_frame(message.data)
    partition, (identity, inbox, asked) = subjects.partition(device), subjects.read_envelope(message.headers, device)
    boot = identity[len(device) + 1 :].partition(".")[0]
    if not subjects.is_boot(boot) or identity != subjects.message_id(device, boot, windows[0][0].window):
        raise FrameError("the message id does not name this device and window")
    parts = Parts(len(windows))
    return [
        Arrival(message, device, partition, boot, header, payload, sequence, arrived, parts, inbox, asked)
        for header, payload in windows
    ]
