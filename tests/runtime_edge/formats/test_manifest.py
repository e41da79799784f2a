import json

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime_edge.errors import BundleError
from runtime_edge.formats import manifest as manifests
from runtime_edge.formats.encoder.load_options import MAX_SAMPLE_RATE
from runtime_edge.formats.encoder.parts import MAX_ASSET_BYTES
from runtime_edge.formats.manifest import MAX_WINDOW_SAMPLES, Cut, Int8Scale

names = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cf", "Zl", "Zp"]), min_size=1, max_size=12)
digests = st.binary(min_size=32, max_size=32).map(lambda value: f"sha256:{value.hex()}")
assets = st.builds("{}/{}".format, digests, st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True))
numbers = st.floats(allow_nan=False, allow_infinity=False)
costs = st.floats(0, 1e9)
counts = st.integers(0, 1 << 53)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 53), 1 << 53) | numbers | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=5,
)


agreements = st.fixed_dictionaries(
    {"max_abs_error": st.floats(0, 1e38), "cosine_median": st.floats(-1, 1), "cosine_worst": st.floats(-1, 1)}
)
proved = st.fixed_dictionaries(
    {"prefix": agreements, "wire": st.fixed_dictionaries({"float32": agreements}, optional={"int8": agreements})}
)


@st.composite
def cuts(draw, index, shape):
    int8 = None
    if draw(st.booleans()):
        axis = draw(st.integers(0, len(shape) - 1))
        scale = draw(st.floats(2**-20, 2**20, width=32))
        int8 = {"axis": axis, "scale": np.full(shape[axis], scale, "<f4").tobytes(), "zero_point": bytes(shape[axis])}
    return {
        "index": index,
        "name": f"{index}{draw(names)}",
        "node": draw(names),
        "shape": shape,
        "bytes": draw(st.dictionaries(names, counts, max_size=2)),
        "agreement": draw(st.dictionaries(names, st.floats(-1, 1), max_size=2)),
        "int8": int8,
    }


@st.composite
def components(draw):
    variant = {
        "format": draw(st.sampled_from(["onnx", "tflite"])),
        "precision": draw(names),
        "file": draw(assets),
        "bytes": draw(st.integers(1, MAX_ASSET_BYTES)),
        "input": draw(names),
        "output": draw(names),
    }
    kept = st.fixed_dictionaries({"file": assets, "bytes": st.integers(1, MAX_ASSET_BYTES)})
    graphs = st.dictionaries(st.sampled_from(["onnx", "tflite"]), kept)
    block = draw(st.just({}) | st.fixed_dictionaries({"parameters": digests, "graphs": graphs}))
    return {
        "variants": {name: {"executor_info": {"ssc": variant}} for name in draw(st.sets(names, max_size=2))},
        "additional_metadata": {"ssc": {**block, "macs": draw(counts)}},
    }


@st.composite
def built(draw):
    """Any manifest that holds together."""
    window, dim = draw(st.integers(1, MAX_WINDOW_SAMPLES)), draw(st.integers(1, 64))
    blocks = draw(st.lists(names, min_size=1, max_size=3, unique=True))
    shapes = draw(
        st.lists(
            st.lists(st.integers(1, 20), min_size=1, max_size=4), min_size=len(blocks) - 1, max_size=len(blocks) - 1
        )
    )
    each = st.lists(costs, min_size=len(blocks), max_size=len(blocks))
    at_cuts = st.lists(proved, min_size=len(blocks) + 1, max_size=len(blocks) + 1)
    target = st.fixed_dictionaries(
        {
            "variant": names,
            "block_ms": each,
            "block_mj": each,
            "block_peak_bytes": st.lists(counts, min_size=len(blocks), max_size=len(blocks)),
            "radio_mj_per_kb": costs,
            "table": st.from_regex(r"tables/[a-z0-9._-]{1,10}\.json", fullmatch=True),
            "provenance": st.sampled_from(["predicted", "measured"]),
        }
    )
    waveform = {**draw(cuts(0, [1, 1])), "shape": [1, window], "int8": None}
    inner = [draw(cuts(index, shape)) for index, shape in enumerate(shapes, 1)]
    ssc = {
        "encoder": {
            "id": draw(names),
            "config": draw(st.dictionaries(names, values, max_size=3)),
            "weights": draw(digests),
            "embedding_dim": dim,
        },
        "generation": draw(st.integers(1, 1 << 31)),
        "front_end": {
            "sample_rate": draw(st.integers(1, MAX_SAMPLE_RATE)),
            "window_samples": window,
            "hop_samples": draw(st.integers(1, MAX_WINDOW_SAMPLES)),
            "details": draw(st.dictionaries(names, values, max_size=3)),
        },
        "blocks": blocks,
        "cuts": [waveform, *inner, draw(cuts(len(blocks), [1, dim]))],
        "targets": draw(st.dictionaries(names, target, max_size=2)),
        "server_block_ms": draw(each),
        "calibration": {"source": draw(names), "windows": draw(counts), "seed": draw(counts)},
        "self_test": {
            "embedding": bytes(4 * dim),
            "tolerance": draw(st.floats(0, 100)),
            "variants": {
                name: {"embedding": bytes(4 * dim), "tolerance": 0.1} for name in draw(st.sets(names, max_size=2))
            },
        },
        "parity": draw(st.dictionaries(names, st.fixed_dictionaries({"cuts": at_cuts, "windows": counts}), max_size=2)),
    }
    fields = {
        "package_name": draw(names),
        "package_version": draw(names),
        "components": {name: draw(components()) for name in blocks},
        "additional_metadata": {"ssc": ssc},
    }
    return msgspec.convert(fields, manifests.Manifest)


@settings(max_examples=60, deadline=None)
@given(built())
def test_a_manifest_survives_its_bytes(manifest):
    data = manifests.encode(manifest)
    assert manifests.decode(data) == manifest
    assert manifests.encode(manifests.decode(data)) == data


@pytest.fixture
def fields(small_bundle):
    return json.loads((small_bundle.path / "manifest.json").read_bytes())


def decode(fields):
    return manifests.decode(json.dumps(fields).encode(), "m.json")


def test_it_says_which_layout_it_has_for_onnx_runtime(fields):
    assert fields["schema_version"] == "1.0"
    assert fields["layout"] == "portable"
    assert all(cut["dtype"] == "float32" for cut in fields["additional_metadata"]["ssc"]["cuts"])


def test_its_keys_are_sorted_and_its_bytes_canonical(small_bundle, fields):
    data = (small_bundle.path / "manifest.json").read_bytes()
    assert manifests.encode(decode(fields)) == data
    assert list(fields) == sorted(fields)


def objects(value, path=""):
    """Every JSON object with a fixed set of fields, and where it stands."""
    if isinstance(value, dict):
        yield path, value
        for key, inner in value.items():
            if key not in ("config", "details"):
                yield from objects(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from objects(inner, f"{path}[{index}]")


def test_an_unknown_field_is_refused_wherever_it_stands(fields):
    refused = 0
    for path, item in list(objects(fields)):
        if path.endswith((".bytes", ".agreement", ".wire")):
            continue  # by encoding, so any name may stand there
        item["surprise"] = 1
        with pytest.raises(BundleError, match=r"^m\.json: "):
            decode(fields)
        del item["surprise"]
        refused += 1
    decode(fields)
    assert refused > 30


def test_a_missing_field_is_refused_by_name(fields):
    optional = {"schema_version", "layout", "dtype", "int8", "provenance", "parameters", "graphs", "macs"}
    optional |= {"variants", "keep_norms", "adaptable", "by_uncertainty", "threads", "providers", "load", "factory"}
    optional |= {"sample_rate"}
    for path, item in list(objects(fields)):
        if path.endswith((".bytes", ".agreement", ".wire", ".targets", ".parity", ".variants", ".graphs")):
            continue
        for key in list(item):
            value = item.pop(key)
            if key not in optional:
                with pytest.raises(BundleError, match=r"^m\.json: "):
                    decode(fields)
            item[key] = value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ssc: ssc["blocks"].pop(), "blocks and components do not name the same"),
        (lambda ssc: ssc["blocks"].__setitem__(0, ssc["blocks"][1]), "blocks and components"),
        (lambda ssc: ssc["cuts"].pop(), "need 5 cuts|need . cuts|need .. cuts"),
        (lambda ssc: ssc["cuts"].reverse(), "index must count up"),
        (lambda ssc: ssc["cuts"][1].update(name="waveform"), "name must be unique"),
        (lambda ssc: ssc["cuts"][0].update(shape=[1, 7]), r"cuts\[0\].shape"),
        (lambda ssc: ssc["cuts"][-1].update(shape=[1, 7], int8=None), "the last cut's shape"),
        (lambda ssc: ssc["cuts"][1].update(shape=[1] * 9), "shape"),
        (lambda ssc: ssc["cuts"][1].update(shape=[1, 0, 3]), "shape"),
        (lambda ssc: ssc["cuts"][1].update(shape=[2**31] * 8, int8=None), "the shapes of all cuts"),
        (lambda ssc: ssc["cuts"][1].update(dtype="float64"), "dtype"),
        (lambda ssc: ssc["cuts"][1]["int8"].update(axis=7), "axis"),
        (lambda ssc: ssc["cuts"][1]["int8"].update(scale="AAAA"), "int8.scale has 3 bytes"),
        (lambda ssc: ssc["cuts"][1]["int8"].update(zero_point=""), "int8.zero_point has 0 bytes"),
        (lambda ssc: ssc["cuts"][1]["int8"].update(scale="not base64!"), "scale"),
        (lambda ssc: ssc["self_test"].update(embedding="AAAA"), "self_test.embedding has 3 bytes"),
        (lambda ssc: ssc["targets"]["rpi4"]["block_ms"].pop(), "targets.rpi4.block_ms"),
        (lambda ssc: ssc["server_block_ms"].pop(), "server_block_ms"),
        (lambda ssc: ssc["parity"]["onnx-fp32"]["cuts"].pop(), "parity.onnx-fp32.cuts"),
        (lambda ssc: ssc["parity"]["onnx-fp32"]["cuts"][1]["wire"].pop("float32"), "parity.onnx-fp32.cuts"),
        (lambda ssc: ssc["parity"]["onnx-fp32"]["cuts"][1]["prefix"].update(cosine_worst=2), "cosine_worst"),
        (lambda ssc: ssc["parity"]["onnx-fp32"]["cuts"][1]["prefix"].update(max_abs_error=-1), "max_abs_error"),
        (lambda ssc: ssc["targets"]["rpi4"].update(table="tables/../../etc/x.json"), "table"),
        (lambda ssc: ssc["targets"]["rpi4"].update(table="/etc/x.json"), "table"),
        (lambda ssc: ssc["targets"]["rpi4"].update(table="tables/x.json\n"), "table"),
        (lambda ssc: ssc.update(generation=0), "generation"),
        (lambda ssc: ssc.update(generation=1 << 40), "generation"),
        (lambda ssc: ssc["encoder"].update(weights="sha256:00"), "weights"),
        (lambda ssc: ssc["front_end"].update(sample_rate=-1), "sample_rate"),
        (lambda ssc: ssc["front_end"].update(sample_rate="16000"), "sample_rate"),
        (lambda ssc: ssc["front_end"].update(sample_rate=1 << 30), "sample_rate"),
        (lambda ssc: ssc["front_end"].update(window_samples=1 << 28), "window_samples"),
        (lambda ssc: ssc["front_end"].update(hop_samples=0), "hop_samples"),
        (lambda ssc: ssc["self_test"].update(tolerance=1e300), "tolerance"),
        (lambda ssc: ssc["self_test"].update(tolerance=-1.0), "tolerance"),
        (lambda ssc: ssc["targets"]["rpi4"]["block_ms"].__setitem__(0, -1.0), "block_ms"),
        (lambda ssc: ssc["targets"]["rpi4"]["block_mj"].__setitem__(0, 1e300), "block_mj"),
        (lambda ssc: ssc["targets"]["rpi4"].update(radio_mj_per_kb=-1.0), "radio_mj_per_kb"),
        (lambda ssc: ssc["server_block_ms"].__setitem__(0, -1.0), "server_block_ms"),
        (lambda ssc: ssc["encoder"].update(embedding_dim=1 << 20), "embedding_dim"),
        (lambda ssc: ssc["cuts"][1].update(name="stem\u202egpj.exe"), "name"),
        (lambda ssc: ssc["encoder"].update(id="res\u2066net"), "id"),
        (lambda ssc: ssc["encoder"].update(id=""), "id"),
    ],
)
def test_what_does_not_hold_together_is_refused_by_field(fields, change, message):
    change(fields["additional_metadata"]["ssc"])
    with pytest.raises(BundleError, match=rf"^(m|manifest)\.json: .*({message})"):
        decode(fields)


def test_scales_that_no_activation_can_have_are_refused(fields):
    scale = fields["additional_metadata"]["ssc"]["cuts"][1]["int8"]
    count = len(msgspec.convert(scale, Int8Scale).zero_point)
    for value in (0.0, -1.0, 1e38, np.nan, np.inf):
        scale["scale"] = msgspec.to_builtins(np.full(count, value, "<f4").tobytes())
        with pytest.raises(BundleError, match=r"int8\.scale must be from 1e-30 to"):
            decode(fields)


@pytest.mark.parametrize(
    "reference", ["", "sha256:00/x", "../../etc/passwd", f"sha256:{'0' * 64}/../x", f"sha256:{'0' * 64}/model.onnx\n"]
)
def test_a_file_that_is_no_asset_reference_is_refused(fields, reference):
    component = fields["components"]["block-00"]["variants"]["onnx-fp32"]["executor_info"]["ssc"]
    component["file"] = reference
    with pytest.raises(BundleError, match=r"^m\.json: .*file"):
        decode(fields)


@given(st.binary(max_size=200))
def test_bytes_that_are_no_manifest_are_refused(data):
    with pytest.raises(BundleError, match=r"^m\.json: "):
        manifests.decode(data, "m.json")


def test_deeply_nested_json_is_refused():
    with pytest.raises(BundleError, match=r"^m\.json: "):
        manifests.decode(b'{"components":' + b"[" * 200_000, "m.json")


@pytest.mark.parametrize("name", ["", "a\nb", "a\n", "\x1b[2J", "a\u2028b", "x" * 201])
def test_a_name_that_would_break_a_line_is_refused(fields, name):
    targets = fields["additional_metadata"]["ssc"]["targets"]
    targets[name] = targets.pop("rpi4")
    with pytest.raises(BundleError, match=r"^m\.json: [^\n]*$"):
        decode(fields)


def test_a_cut_is_found_by_name(small_bundle):
    manifest = small_bundle.manifest
    assert manifest.cut_named("stem").name == "stem"
    with pytest.raises(BundleError, match="no cut 'nothing'; this bundle has waveform, "):
        manifest.cut_named("nothing")
    with pytest.raises(BundleError, match=r"block-00 has no variant 'tflite-int8', only \['onnx-fp32'\]"):
        manifest.variant("block-00", "tflite-int8")


def test_int8_scales_are_little_endian():
    scale = Int8Scale(axis=1, scale=np.array([0.5, 2.0], "<f4").tobytes(), zero_point=b"\x80\x7f")
    values, zero = scale.arrays((1, 2, 3))
    assert values.tolist() == [0.5, 2.0]
    assert zero.tolist() == [-128, 127]


def test_a_struct_says_what_is_wrong_with_it():
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"index": -1}, Cut)
