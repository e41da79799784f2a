"""The waveform's action as a stream: bytes of what is new in each window, and what Opus takes from an embedding."""

import numpy as np
import pytest

from runtime_edge.errors import UsageError
from runtime_edge.formats.wire import MAX_HEADER_BYTES
from streamsplit_compile.bundle.soundscape import soundscape
from streamsplit_compile.splitter.pricing import bundle_actions
from streamsplit_compile.splitter.raw_streams import with_stream


@pytest.fixture(scope="module")
def priced(small_bundle):
    front_end = small_bundle.manifest.info.front_end
    waveform = soundscape(8 * front_end.window_samples / front_end.sample_rate, front_end.sample_rate, 0)
    actions = bundle_actions(small_bundle.manifest, "rpi4")

    def as_stream(encoding):
        return with_stream(actions, small_bundle, encoding, 16.0, waveform)

    return actions, as_stream, front_end


def test_pcm_ships_each_sample_once(priced):
    actions, as_stream, front_end = priced
    raw, *others = as_stream("pcm16-stream")
    assert raw.bytes == 1 + 2 * front_end.hop_samples + MAX_HEADER_BYTES
    assert (raw.encoding, raw.cut, raw.quality) == ("pcm16-stream", actions[0].cut, actions[0].quality)
    assert others == actions[1:]


def test_flac_loses_nothing_and_ships_less_than_pcm(priced):
    actions, as_stream, _ = priced
    flac = as_stream("flac")[0]
    assert flac.quality == actions[0].quality
    assert flac.bytes < as_stream("pcm16-stream")[0].bytes


def test_opus_ships_least_and_is_judged_by_the_embedding(resnet_bundle):
    rate = resnet_bundle.manifest.info.front_end.sample_rate
    actions = bundle_actions(resnet_bundle.manifest, "rpi4")
    heard = soundscape(4.0, rate, 0)
    flac, opus = (with_stream(actions, resnet_bundle, kind, 16.0, heard)[0] for kind in ("flac", "opus"))
    assert -1.0 < opus.quality[0] < flac.quality[0]
    assert 700 < opus.bytes - MAX_HEADER_BYTES < 1300  # half a second at 16 kbit/s, and its packets' lengths
    assert opus.bytes < flac.bytes


def test_whole_windows_stay_as_they_are_and_too_little_audio_is_refused(priced, small_bundle):
    actions, as_stream, front_end = priced
    assert as_stream("pcm16") == actions
    with pytest.raises(UsageError, match="--audio-format flac: 1 windows of audio are too few"):
        with_stream(actions, small_bundle, "flac", 16.0, np.zeros(front_end.window_samples, np.float32))
