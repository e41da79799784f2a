"""A real broker, and what turns sounds into frames."""

import asyncio
import sys
from pathlib import Path

import pytest

from runtime_server.harness import ports

sys.path.insert(0, str(Path(__file__).parent))  # for `peers`


@pytest.fixture
def free_port():
    return ports.free_port()


@pytest.fixture
def health_port():
    return ports.free_port()


@pytest.fixture
def broker(tmp_path, free_port):
    """A running nats-server with JetStream; `broker.url` says where."""
    from runtime_server.broker.broker_process import Broker

    running = Broker(tmp_path / "broker", port=free_port)
    asyncio.run(running.start())
    yield running
    asyncio.run(running.stop())


@pytest.fixture
def play(broker):
    """`play(work)` runs `await work(hub)` on a hub that has made the streams and buckets."""
    from runtime_server.broker.hub import Hub

    def run(work, timeout_s=30.0):
        async def connected():
            hub = Hub(broker.url, "test")
            await hub.connect(create=True)
            try:
                return await asyncio.wait_for(work(hub), timeout_s)
            finally:
                await hub.close()

        return asyncio.run(connected())

    return run


@pytest.fixture(scope="session")
def sounds(small_bundle):
    """(64, samples) float32: windows for the small bundle."""
    import numpy as np

    from streamsplit_compile.bundle.soundscape import soundscape

    info = small_bundle.manifest.info.front_end
    count, window, hop = 64, info.window_samples, info.hop_samples
    audio = soundscape((window + count * hop) / info.sample_rate, info.sample_rate, seed=3)
    return np.stack([audio[i * hop : i * hop + window] for i in range(count)])


@pytest.fixture(scope="session")
def recordings(tmp_path_factory, small_bundle):
    """A folder with two labels, a low and a high sound, six recordings of each; a Tiny tells them apart mostly."""
    import numpy as np
    import soundfile

    root, rate = tmp_path_factory.mktemp("recordings"), small_bundle.manifest.info.front_end.sample_rate
    rng, time = np.random.default_rng(0), np.arange(2 * rate) / rate
    for label, pitch in (("high", 900.0), ("low", 120.0)):
        (root / label).mkdir()
        for number in range(6):
            tone = 0.3 * np.sin(2 * np.pi * (pitch + 10 * number) * time) + 0.05 * rng.standard_normal(len(time))
            soundfile.write(root / label / f"{number}.wav", tone.astype(np.float32), rate)
    return root


@pytest.fixture
def generations(tiny_encoder, small_bundle):
    """One generation of the small bundle."""
    from runtime_server.suffix.generations import Generations

    known = Generations(tiny_encoder.graph)
    known.add(small_bundle, tiny_encoder.tensors)
    return known


@pytest.fixture(scope="session")
def numbered(small_bundle):
    """`numbered(n)`: the small bundle as if it were generation n."""
    from msgspec.structs import replace

    from runtime_edge.formats.bundle import Bundle

    def renumber(number):
        info = replace(small_bundle.manifest.info, generation=number)
        metadata = replace(small_bundle.manifest.additional_metadata, ssc=info)
        manifest = replace(small_bundle.manifest, additional_metadata=metadata)
        return Bundle(small_bundle.path, manifest, small_bundle.digest, None)

    return renumber


@pytest.fixture(scope="session")
def activation(small_bundle):
    """`activation(sound, cut)`: what a device has of a window (samples,) at a cut."""
    from runtime_edge.inference.prefix import Prefix

    prefix = Prefix(small_bundle)

    def run(sound, cut):
        prefix.start(sound)
        return prefix.advance(cut).copy()

    return run


@pytest.fixture(scope="session")
def frame_of(small_bundle, activation):
    """`frame_of(sound, window, cut)`: a frame as a device sends it."""
    from runtime_edge.formats.codec import CutCodec
    from runtime_edge.formats.wire import encode_frame

    def encode(sound, window, cut, encoding="float32", generation=1):
        codec = CutCodec(small_bundle.manifest.info.cuts[cut], encoding)
        payload, compressed = codec.encode(activation(sound, cut))
        return encode_frame(window, 0, generation, cut, encoding, compressed, 0.5, payload)

    return encode


@pytest.fixture
def together():
    """`together(world, work)`: the results of `work(ranks)` in as many threads, by rank."""

    from concurrent.futures import ThreadPoolExecutor
    from datetime import timedelta

    import torch.distributed as dist

    from runtime_server.training.ranks import Ranks

    def run(world, work):
        store = dist.HashStore()

        def one(rank):
            group = dist.ProcessGroupGloo(dist.PrefixStore("test", store), rank, world, timedelta(seconds=20))
            return work(Ranks(rank, world, group))

        with ThreadPoolExecutor(world) as pool:
            return list(pool.map(one, range(world)))

    return run


@pytest.fixture
def adaptable(tiny_encoder, adaptable_bundle):
    """Generations with one that can be adapted."""
    from runtime_server.suffix.generations import Generations

    known = Generations(tiny_encoder.graph)
    known.add(adaptable_bundle, tiny_encoder.tensors)
    return known
