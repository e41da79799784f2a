"""The engine that a device's settings ask for."""

from __future__ import annotations

from runtime_edge.audio.wire_streams import AudioStreamEncoder
from runtime_edge.config import DeviceConfig
from runtime_edge.formats.bundle import Bundle
from runtime_edge.formats.records.adaptation import Adaptation
from runtime_edge.inference.engine import Engine
from runtime_edge.inference.variants import choose_variant, runtime_options


def engine_for(
    bundle: Bundle, config: DeviceConfig, previous: Engine | None = None, adaptation: Adaptation | None = None
) -> Engine:
    """An engine for a bundle; with `previous`, an engine of the same thread, what has not changed stays loaded.

    Raises what `Engine` raises, MissingExtra, and UsageError if the waveform cannot be shipped as a stream.
    """
    variant = choose_variant(bundle.manifest, config.variant, config.target)
    options = runtime_options(bundle.manifest, config.target, config.threads)
    stream = None
    if config.audio_format != "pcm16":
        front_end = bundle.manifest.info.front_end
        stream = AudioStreamEncoder(
            config.audio_format,
            front_end.sample_rate,
            front_end.window_samples,
            front_end.hop_samples,
            config.opus_kbps,
        )
    return Engine(bundle, variant, config.encoding, options, config.max_memory_mb, previous, stream, adaptation)


def adapted_engine(engine: Engine, config: DeviceConfig, adaptation: Adaptation | None) -> Engine:
    """A self-tested engine like another one with an adaptation, or with none, that can be made while that one runs.

    It shares no buffers with it. Raises what `Engine` and its self-test raise.
    """
    made = engine_for(engine.bundle, config, None, adaptation)
    made.prefix.share_proof(engine.prefix)
    made.ready()
    return made
