import msgspec
import pytest

from runtime_edge.errors import UsageError
from runtime_edge.formats.manifest import Cut, TargetCost
from runtime_edge.formats.wire import MAX_HEADER_BYTES
from runtime_edge.inference.profile import Profile
from streamsplit_compile.cost.cost_model import count_work, predict
from streamsplit_compile.cost.targets import load_target
from streamsplit_compile.encoder.segment import split
from streamsplit_compile.encoder.selection import cuts_of
from streamsplit_compile.splitter.pricing import action_costs, bundle_actions, default_encoding, price

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def work(tiny_encoder, small_bundle):
    graph = tiny_encoder.graph
    return [count_work(segment) for segment in split(graph, cuts_of(graph.candidates, small_bundle.manifest, "bundle"))]


def cut(index, sizes, agreement):
    return Cut(index=index, name=f"cut{index}", node="x", shape=(1, 4), bytes=sizes, agreement=agreement)


CUTS = [
    cut(0, {"float32": 999, "pcm16": 800}, {"pcm16": 0.99, "float32": 1.0}),
    cut(1, {"float32": 999, "float16": 500, "int8": 300}, {"int8": 0.98, "float16": 1.0}),
    cut(2, {"float32": 999, "float16": 20, "int8": 10}, {"int8": 0.9, "float16": 0.9999}),
]
COST = TargetCost(
    variant="onnx-fp32",
    block_ms=[3.0, 4.0],
    block_mj=[30.0, 40.0],
    block_peak_bytes=[1, 1],
    radio_mj_per_kb=1.0,
    table="tables/x.json",
)


def test_an_action_costs_what_runs_before_the_cut_and_ships_what_is_there():
    first, middle, last = action_costs(CUTS, COST, [0.5, 0.25])
    assert [(a.name, a.bytes - MAX_HEADER_BYTES, a.teaches) for a in (first, middle, last)] == [
        ("cut0", 800, True),
        ("cut1", 300, True),
        ("cut2", 20, False),
    ]
    assert [(a.device_ms, a.device_mj, a.server_ms) for a in (first, middle, last)] == [
        (0, 0, 3.75),
        (3.0, 30.0, 3.25),
        (7.0, 70.0, 3.0),
    ]
    assert [a.quality for a in (first, middle, last)] == [(0.99,), (0.98,), (0.9999,)]


def test_each_cut_has_its_default_encoding():
    assert [default_encoding(item, 3) for item in CUTS] == ["pcm16", "int8", "float16"]
    assert [default_encoding(item, 2) for item in CUTS[:2]] == ["pcm16", "float16"]


def test_the_manifests_costs_are_the_roofline_of_each_block(small_bundle, work):
    info = small_bundle.manifest.info
    for name, cost in info.targets.items():
        blocks = [predict(item, load_target(name)) for item in work]
        assert cost.block_ms == pytest.approx([block.ms for block in blocks], abs=1e-4)
        assert cost.block_mj == pytest.approx([block.mj for block in blocks], abs=1e-4)
        assert cost.block_peak_bytes == [block.peak_memory_bytes for block in blocks]
        assert cost.provenance == "predicted"
    server = [predict(item, load_target("x86-64")).ms for item in work]
    assert info.server_block_ms == pytest.approx(server, abs=1e-4)


def test_every_target_has_a_table_for_its_cuts(small_bundle):
    info = small_bundle.manifest.info
    names = [item.name for item in info.cuts]
    assert set(info.targets) == {"rpi4", "m2"}
    for name in info.targets:
        table = small_bundle.table(name)
        assert (table.target, table.encoder, table.created_by) == (name, "toys:Tiny", "ssc compile")
        assert set(table.actions) <= {*names, "local"}
        assert table.hop_s == info.front_end.hop_samples / info.front_end.sample_rate
        for action, size in zip(table.actions, table.action_bytes, strict=True):
            if action != "local":
                place = info.cuts[names.index(action)]
                assert size == place.bytes[default_encoding(place, len(names))] + MAX_HEADER_BYTES


def test_pricing_twice_gives_the_same_tables(small_bundle, work):
    targets = [load_target("rpi4"), load_target("m2")]
    manifest, tables = price(small_bundle.manifest, work, targets, 0, lambda *_: None)
    assert tables["tables/rpi4.json"] == small_bundle.table("rpi4")
    assert manifest == small_bundle.manifest


def in_formats(manifest, *formats):
    """A manifest whose blocks have the same files by the names of other formats."""

    def renamed(component):
        (variant,) = component.variants.values()
        return msgspec.structs.replace(component, variants={f"{name}-fp32": variant for name in formats})

    components = {name: renamed(component) for name, component in manifest.components.items()}
    return msgspec.structs.replace(manifest, components=components)


def test_a_target_runs_the_format_that_it_is_fastest_with(small_bundle, work):
    targets = [load_target("rpi-zero-2w"), load_target("m2")]
    chosen = {}
    for formats in (("onnx", "tflite"), ("tflite",)):
        manifest, _ = price(in_formats(small_bundle.manifest, *formats), work, targets, 0, lambda *_: None)
        chosen[formats] = [manifest.info.targets[target.name].variant for target in targets]
    assert chosen == {("onnx", "tflite"): ["tflite-fp32", "onnx-fp32"], ("tflite",): ["tflite-fp32", "tflite-fp32"]}


def test_a_faster_board_costs_less(small_bundle):
    info = small_bundle.manifest.info.targets
    assert sum(info["m2"].block_ms) < sum(info["rpi4"].block_ms)


def test_the_actions_of_a_bundle_are_priced_again_from_its_manifest(small_bundle):
    actions = bundle_actions(small_bundle.manifest, "rpi4")
    info = small_bundle.manifest.info
    assert [action.name for action in actions] == [item.name for item in info.cuts]
    assert actions[-1].device_ms == pytest.approx(sum(info.targets["rpi4"].block_ms))
    with pytest.raises(UsageError, match="--target vax: this bundle was compiled for m2, rpi4"):
        bundle_actions(small_bundle.manifest, "vax")


def test_what_was_measured_takes_the_place_of_predictions(small_bundle, work):
    info = small_bundle.manifest.info
    blocks = len(info.blocks)
    measured = Profile(
        target="m2", encoder=info.encoder.id, variant="onnx-fp32", blocks=info.blocks, block_ms=[2.0] * blocks,
        block_p90_ms=[3.0] * blocks, block_mj=[7.0] * blocks, runs=5, threads=2, memory_mb=80.0, machine={},
    )  # fmt: skip
    targets = [load_target("rpi4"), load_target("m2")]

    def priced(profile):
        return price(small_bundle.manifest, work, targets, 0, lambda *_: None, measured=profile)

    manifest, tables = priced(measured)
    cost = manifest.info.targets["m2"]
    assert (cost.block_ms, cost.block_mj, cost.threads) == ([2.0] * blocks, [7.0] * blocks, 2)
    assert cost.provenance == "measured"
    assert manifest.info.targets["rpi4"] == info.targets["rpi4"]
    assert tables["tables/m2.json"].costs[-1].device_mj == 7.0 * blocks
    without_meter = msgspec.structs.replace(measured, block_mj=None)
    followed = [mj * 2.0 / ms for mj, ms in zip(info.targets["m2"].block_mj, info.targets["m2"].block_ms, strict=True)]
    assert priced(without_meter)[0].info.targets["m2"].block_mj == pytest.approx(followed)
    for wrong, message in (
        (msgspec.structs.replace(measured, target="rpi5"), "the profile is of rpi5; the targets are rpi4, m2"),
        (msgspec.structs.replace(measured, blocks=["one"]), "in 1 blocks, not of this bundle"),
    ):
        with pytest.raises(UsageError, match=message):
            priced(wrong)
