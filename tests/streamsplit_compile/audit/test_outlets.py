"""What arrives is what the device's prefix, the wire and the server's decoder make of a window."""

import numpy as np
import pytest
import torch

from runtime_edge.errors import UsageError
from runtime_edge.inference.cut_assets.bottleneck import LoadedBottleneck
from runtime_edge.inference.cut_assets.early_exit import LoadedExit
from runtime_edge.inference.prefix import Prefix
from streamsplit_compile.audit.outlets import Collector, Outlet, outlets_of
from streamsplit_compile.bottleneck.block import read_bottleneck


def test_every_cut_width_and_exit_of_a_bundle_is_an_outlet(calibrated_bundle):
    manifest = calibrated_bundle.manifest
    found = outlets_of(calibrated_bundle, ("int8", "float16"))
    shipped = {(one.cut, one.width) for one in found if one.what == "shipped"}
    assert shipped == {
        *((cut.name, 0) for cut in manifest.info.cuts),
        *((cut, width) for cut, widths in manifest.widths.items() for width in widths),
    }
    assert {one.encoding for one in found if one.cut == "waveform"} == {"pcm16"}
    assert {one.cut for one in found if one.what == "exit"} == manifest.exit_cuts
    with pytest.raises(UsageError, match="--encodings pcm16"):
        outlets_of(calibrated_bundle, ("pcm16",))


def test_a_latent_arrives_as_a_device_codes_it_at_that_width(calibrated_bundle, spoken):
    info = calibrated_bundle.manifest.info.bottlenecks[0]
    width = info.widths[0].width
    collector = Collector(calibrated_bundle, spoken.windows[:3])
    arrived = collector.arrived(Outlet("shipped", info.cut, "int8", width))
    prefix = Prefix(calibrated_bundle)
    device, cut = LoadedBottleneck(prefix, info), calibrated_bundle.manifest.cut_named(info.cut)
    block = read_bottleneck(calibrated_bundle.read(info.decoder.file), cut, "bundle")
    for window, values, embedding in zip(spoken.windows[:3], arrived.values, arrived.embeddings, strict=True):
        prefix.start(window)
        prefix.advance(cut.index)
        latent = device.codec.decode(*device.encode(width), width)
        assert np.array_equal(values, latent[0, :width])
        with torch.inference_mode():
            prefix.resume(cut.index, block.decode(torch.from_numpy(latent)).numpy())
        assert np.allclose(embedding, prefix.advance(prefix.last_cut)[0], atol=1e-5)


def test_an_activation_is_quantised_and_an_exit_gives_its_embedding(calibrated_bundle, spoken):
    windows, prefix = spoken.windows[:2], Prefix(calibrated_bundle)
    collector = Collector(calibrated_bundle, windows)
    exact = collector.arrived(Outlet("shipped", "down", "float32")).values
    coarse = collector.arrived(Outlet("shipped", "down", "int8")).values
    assert 0 < np.abs(exact - coarse).max() < 0.1 * np.abs(exact).max()
    early = calibrated_bundle.manifest.info.exits[0]
    given = collector.arrived(Outlet("exit", early.cut, "float32")).embeddings
    prefix.start(windows[1])
    loaded = LoadedExit(prefix, early)
    prefix.advance(loaded.cut)
    assert np.array_equal(given[1], loaded.embedding())
