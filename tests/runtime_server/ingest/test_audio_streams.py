"""Audio streams put together again: each device's own, and no device forgets another's."""

import numpy as np
import pytest

from runtime_edge.audio.wire_streams import AudioStreamEncoder
from runtime_edge.errors import FrameError
from runtime_edge.formats.wire import WIRE_ENCODINGS, FrameHeader
from runtime_server.ingest.arrival import Arrival
from runtime_server.ingest.audio_streams import AudioStreams

PCM = "pcm16-stream"


@pytest.fixture
def hear(generations, sounds):
    """`hear(streams, device, boot, window)`: window 0 starts a stream and window 1 continues it."""
    generation = generations.get(1)
    info = generation.bundle.manifest.info.front_end
    encoder = AudioStreamEncoder(PCM, info.sample_rate, info.window_samples, info.hop_samples, 16.0)
    payloads = [encoder.encode(sound, window, False) for window, sound in enumerate(sounds[:2])]

    def arrive(streams, device, boot, window):
        header = FrameHeader(window, 0, 1, 0, WIRE_ENCODINGS.index(PCM), False, 0.5)
        heard = streams.activation(generation, Arrival(None, device, 0, boot, header, payloads[window], window, 0.0))
        assert np.abs(heard[0] - sounds[window]).max() < 1e-4

    return arrive


def test_a_device_with_thousands_of_boots_ends_no_other_devices_stream(hear):
    streams = AudioStreams()
    hear(streams, "pi-1", "b0", 0)
    for number in range(5000):
        hear(streams, "pi-2", f"b{number}", 0)
    hear(streams, "pi-1", "b0", 1)
    hear(streams, "pi-2", "b4999", 1)
    with pytest.raises(FrameError, match="continues window 0"):
        hear(streams, "pi-2", "b7", 1)
