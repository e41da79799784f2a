"""A frame is taken only under a message id that is its device's own."""

import numpy as np
import pytest
from nats.aio.msg import Msg

from runtime_edge.errors import FrameError
from runtime_edge.formats import subjects
from runtime_edge.formats.wire import encode_frame
from runtime_server.ingest.arrival import decode_arrival

PAYLOAD = np.zeros(4, "<f4").tobytes()


def arriving(
    message_id: str | None, device: str = "pi-1", subject: str | None = None, header: str = subjects.IDENTITY_HEADER
) -> Msg:
    """A frame of window 7 as the broker hands it over."""
    headers = None if message_id is None else {header: message_id}
    frame = encode_frame(7, 0, 1, 1, "float32", False, 0.5, PAYLOAD)
    return Msg(_client=None, subject=subject or subjects.frames(device), data=frame, headers=headers)


@pytest.mark.parametrize("header", ["Ssc-Id", "Nats-Msg-Id"])
def test_a_frame_under_its_own_id_names_device_boot_and_window_also_from_an_earlier_version(header: str) -> None:
    (arrival,) = decode_arrival(arriving("pi-1.boot.7", header=header), 11, 3.0)
    assert (arrival.device, arrival.boot, arrival.header.window) == ("pi-1", "boot", 7)
    assert (arrival.partition, arrival.sequence, arrival.arrived) == (subjects.partition("pi-1"), 11, 3.0)


@pytest.mark.parametrize("message_id", ["pi-2.boot.7", "pi-1.boot.8", "pi-1.boot.07", "pi-1.boot", "", None])
def test_a_frame_under_the_id_of_another_device_or_window_is_refused(message_id: str | None) -> None:
    with pytest.raises(FrameError, match="the message id does not name this device and window"):
        decode_arrival(arriving(message_id), 11, 0.0)


@pytest.mark.parametrize("subject", ["act.9.pi-1", "act.canary", f"{subjects.frames('pi-1')}.more"])
def test_a_subject_that_is_no_devices_is_refused(subject: str) -> None:
    with pytest.raises(FrameError, match="no device publishes on this subject"):
        decode_arrival(arriving("pi-1.boot.7", subject=subject), 11, 0.0)
