"""The object store between server and devices: patches that give what they promise, and a bound on what stays."""

import asyncio

import pytest

from runtime_edge.errors import LinkError
from runtime_edge.formats import subjects
from runtime_edge.formats.patch import apply_patch
from runtime_server.broker.hub import Hub, released_bundle
from runtime_server.releases.bundle_publisher import prune, publish_patches
from streamsplit_compile.bundle.calibrate import calibration_set_for
from streamsplit_compile.bundle.compiler import recompile


@pytest.fixture(scope="module")
def bundles(small_bundle, tiny_encoder, signing_key, tmp_path_factory):
    """Three generations: in the second the stem is another one, in the third the head, too."""
    directory = tmp_path_factory.mktemp("generations")
    made, tensors = [small_bundle], dict(tiny_encoder.tensors)
    windows = calibration_set_for(small_bundle.manifest.info, None).windows[:2]
    for number, name in ((2, "stem.0.weight"), (3, "head.weight")):
        tensors = {**tensors, name: tensors[name] * 1.001}
        made.append(
            recompile(
                made[-1], tensors, directory / str(number), generation=number, windows=windows, reference=None,
                key=signing_key,
            )
        )  # fmt: skip
    return made


async def names(hub):
    store = await hub.stream.object_store(subjects.BUNDLES)
    return {info.name for info in await store.list()}


def files(bundle):
    return {subjects.manifest_object(bundle.digest)} | {
        subjects.asset_object(bundle.manifest.variant(block, variant).file)
        for block in bundle.manifest.info.blocks
        for variant in bundle.manifest.components[block].variants
    }


def test_a_patch_for_each_file_that_changed_gives_the_new_one(play, bundles):
    old, _, new = bundles
    stem, head = new.manifest.info.blocks[0], new.manifest.info.blocks[-1]

    async def work(hub):
        cost = await publish_patches(hub, old, new)
        store = await hub.stream.object_store(subjects.BUNDLES)
        found = {name: (await store.get(name)).data for name in await names(hub)}
        return cost, found, await publish_patches(hub, old, new)

    cost, found, again = play(work)
    pairs = {
        subjects.patch_object(before.file, after.file): (before, after)
        for before, after in ((b.manifest.variant(block, "onnx-fp32") for b in (old, new)) for block in (stem, head))
    }
    assert found.keys() == pairs.keys()
    for name, (before, after) in pairs.items():
        assert apply_patch(old.read(before.file), found[name], after.bytes) == new.read(after.file)
        assert len(found[name]) < after.bytes
    assert cost == again == {"onnx-fp32": sum(map(len, found.values()))}


def test_nothing_stays_that_neither_a_generation_nor_a_record_needs(play, bundles):
    first, second, third = bundles

    async def work(hub):
        for bundle in bundles:
            await hub.publish_bundle(bundle)
        for old, new in ((first, second), (first, third), (second, third)):
            await publish_patches(hub, old, new)
        before = await names(hub)
        young = await prune(hub, [third])
        await hub.release(third, "rpi4", None, share=0.5, stable=released_bundle(second))
        freed = await prune(hub, [third], grace_s=0.0)
        between = await names(hub)
        await hub.release(third, "rpi4", None)
        await prune(hub, [third], grace_s=0.0)
        after, messages = await names(hub), (await hub.stream.stream_info("OBJ_bundles")).state.messages
        return before, young, freed, between, after, messages

    before, young, freed, between, after, messages = play(work)
    assert files(first) | files(second) | files(third) < before
    assert young == 0, "what has just been put may be about to be released"
    assert freed > 0
    patch = subjects.patch_object(*(b.manifest.variant("block-03", "onnx-fp32").file for b in (second, third)))
    assert between == files(second) | files(third) | {patch}
    assert after == files(third)
    # One chunk and one entry for each object: no marks of what was removed.
    assert messages == 2 * len(after)


def test_an_empty_store_is_no_error(play, small_bundle):
    assert play(lambda hub: prune(hub, [small_bundle])) == 0


def test_a_broker_that_has_no_store_gives_one_line(broker, small_bundle):
    async def work():
        hub = Hub(broker.url, "test")
        await hub.connect()
        try:
            for request in (prune(hub, []), publish_patches(hub, small_bundle, small_bundle)):
                with pytest.raises(LinkError, match="broker "):
                    await request
        finally:
            await hub.close()

    asyncio.run(work())
