"""Audio sources and windows: from a microphone, files or a pipe to fixed-length windows.

Use it when audio arrives at any rate and channel count and has to be cut into the
windows an encoder takes:

    counters = Counters()
    blocks = open_source("recordings/", 16000, counters=counters)
    for window in Windower(16000, 8000, counters=counters).windows(blocks):
        print(window.index, window.capture_time_ns, window.samples.shape)
"""

from runtime_edge.audio.audio_block import SYSTEM_CLOCK, AudioBlock, Clock, Counters
from runtime_edge.audio.source import open_source
from runtime_edge.audio.windower import AudioWindow, Windower

__all__ = ["SYSTEM_CLOCK", "AudioBlock", "AudioWindow", "Clock", "Counters", "Windower", "open_source"]
