"""A sub-model survives its bytes, is named by what decides its frames, and is refused by field when it does not fit."""

import json

import msgspec
import pytest
from example_records import MODEL, cut_asset, submodel
from garbage import read_or_refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime_edge.errors import BundleError
from runtime_edge.formats.manifest import Manifest
from runtime_edge.formats.model_id import model_digest
from runtime_edge.formats.records.submodel import MAX_SUBMODEL_BYTES, Modules, SubModel

INFO = "manifest.additional_metadata.ssc"
names = st.text(st.characters(exclude_categories=["Cs", "Cc", "Cf", "Zl", "Zp"]), min_size=1, max_size=30)
digests = st.binary(min_size=32, max_size=32).map(lambda value: f"sha256:{value.hex()}")


@pytest.fixture(scope="module")
def manifest(small_bundle):
    return small_bundle.manifest


@pytest.fixture
def fields(manifest):
    return json.loads(submodel(manifest).to_json())


def read(fields):
    return SubModel.from_json(json.dumps(fields).encode(), "small.json")


@st.composite
def modules(draw):
    found = []
    for layer in draw(st.lists(names, min_size=1, max_size=4, unique=True)):
        groups = draw(st.integers(1, 4096))
        kept = draw(st.sets(st.integers(0, groups - 1), max_size=8))
        found.append(Modules(layer=layer, groups=groups, kept=tuple(sorted(kept))))
    return tuple(found)


def place(key):
    cut, kind, variant = key
    return cut, kind, None if kind == "coding" else variant


@st.composite
def cut_assets(draw, cuts):
    keys = st.tuples(
        st.sampled_from(cuts),
        st.sampled_from(["bottleneck", "decoder", "coding", "exit"]),
        st.sampled_from(["onnx-fp32", "tflite-int8"]),
    )
    found, sizes = [], {}  # a file has one size, however often it is named
    for cut, kind, variant in draw(st.lists(keys, max_size=6, unique_by=place)):
        own = {} if kind == "coding" else {"variant": variant, "input": draw(names), "output": draw(names)}
        widths = tuple(sorted(draw(st.sets(st.integers(1, 65535), min_size=1, max_size=4))))
        file, size = f"{draw(digests)}/{kind}", draw(st.integers(1, 4 << 30))
        own |= {} if kind == "exit" else {"widths": widths}
        found.append(cut_asset(kind, cut=cut, file=file, bytes=sizes.setdefault(file, size), **own))
    return tuple(found)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_reading_what_was_written_gives_the_same_sub_model_and_the_same_bytes(manifest, data):
    name = data.draw(st.from_regex(r"[a-z0-9][a-z0-9-]{0,31}", fullmatch=True))
    before = submodel(
        manifest,
        name=name,
        modules=data.draw(modules()),
        embeds_like=data.draw(st.none() | digests),
        head=data.draw(st.none() | digests),
        cut_assets=data.draw(cut_assets([cut.name for cut in manifest.info.cuts])),
    )
    written = before.to_json()
    again = SubModel.from_json(written, "small.json")
    assert again == before
    assert again.to_json() == written
    assert json.loads(written)["format"] == "streamsplit.submodel/1"


def test_its_digest_is_of_what_decides_its_frames_and_of_nothing_else(manifest):
    model = submodel(manifest)
    small = submodel(manifest, "small")
    assert small.digest == submodel(manifest, head=None).digest == submodel(manifest, embeds_like=MODEL).digest
    assert small.digest == model.digest
    changed = msgspec.to_builtins(model.manifest)
    changed["additional_metadata"]["ssc"]["cuts"][2]["name"] = "other"
    others = [
        submodel(manifest, cut_assets=model.cut_assets[:-1]),
        submodel(manifest, cut_assets=model.cut_assets[::-1]),
        submodel(manifest, cut_assets=()),
        submodel(msgspec.convert(changed, Manifest)),
    ]
    digests = {model.digest, model_digest(manifest), *(other.digest for other in others)}
    assert len(digests) == 6


def test_its_assets_are_those_of_blocks_and_cuts(manifest):
    model = submodel(manifest)
    own = {asset.file: asset.bytes for asset in model.cut_assets}
    assert model.assets() == manifest.assets() | own
    assert len(model.assets()) == len(manifest.assets()) + 4, "files of the blocks are the bundle's own"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("format", "streamsplit.submodel/2", r"\$\.format"),
        ("surprise", 1, "surprise"),
        ("name", "Half", r"\$\.name"),
        ("name", "../half", r"\$\.name"),
        ("name", "half\n", r"\$\.name"),
        ("name", "other", "table must be tables/other.m2.json"),
        ("head", "sha256:1", r"\$\.head"),
        ("embeds_like", 5, r"\$\.embeds_like"),
        ("modules", [], r"\$\.modules"),
        ("modules.0.kept", [0, 4], "modules: stem: kept is not an increasing choice of 4 groups"),
        ("modules.0.kept", [2, 0], "modules: stem: kept is not"),
        ("modules.0.kept", [2, 2], "modules: stem: kept is not"),
        ("modules.0.kept", [-1], "kept"),
        ("modules.0.groups", 0, "groups"),
        ("modules.1.layer", "stem", "modules: a layer stands twice"),
        ("cut_assets.0.cut", "elsewhere", "cut_assets: bottleneck at elsewhere: no such cut"),
        ("cut_assets.0.kind", "program", "kind"),
        ("cut_assets.0.kind", "decoder", "two assets of one kind"),
        ("cut_assets.0.file", "sha256:" + "0" * 64 + "/../x", "file"),
        ("cut_assets.0.bytes", 0, "bytes"),
        ("cut_assets.0.variant", None, "bottleneck at stem: variant, input and output"),
        ("cut_assets.2.variant", "onnx-fp32", "coding at stem: variant, input and output"),
        ("cut_assets.0.widths", [], "bottleneck at stem: widths are given"),
        ("cut_assets.3.widths", [4], "exit at stem: widths are given"),
        ("cut_assets.0.widths", [8, 4], "bottleneck at stem: widths do not increase"),
        ("cut_assets.0.widths", [70_000], "widths"),
        ("manifest.surprise", 1, "surprise"),
        (f"{INFO}.blocks", ["block-00"], "manifest: blocks and components do not name the same"),
        (f"{INFO}.cuts.1.int8.axis", 8, "manifest: int8.axis 8 is outside"),
        (f"{INFO}.self_test.embedding", "AAAA", "manifest: self_test.embedding has 3 bytes"),
        (f"{INFO}.targets.rpi4.table", "tables/rpi4.json", "table must be tables/half.rpi4.json"),
    ],
)  # fmt: skip
def test_what_does_not_hold_together_is_refused_by_file_and_field(fields, path, value, message):
    *way, last = path.split(".")
    place = fields
    for step in way:
        place = place[int(step) if isinstance(place, list) else step]
    place[int(last) if isinstance(place, list) else last] = value
    with pytest.raises(BundleError, match=message) as caught:
        read(fields)
    assert str(caught.value).startswith("small.json: ")
    assert "\n" not in str(caught.value)


def test_one_file_has_one_size(fields, manifest):
    file, size = next(iter(manifest.assets().items()))
    fields["cut_assets"][0] |= {"file": file, "bytes": size}
    assert read(fields).assets()[file] == size
    fields["cut_assets"][0]["bytes"] += 1
    with pytest.raises(BundleError, match=f"bottleneck at stem: bytes: {size + 1}, but {size} elsewhere"):
        read(fields)


@pytest.mark.parametrize("field", ["name", "modules", "embeds_like", "head", "cut_assets", "manifest"])
def test_a_field_that_is_missing_is_refused(fields, field):
    del fields[field]
    with pytest.raises(BundleError, match=field):
        read(fields)


def test_sizes_are_bounded_before_they_are_read():
    with pytest.raises(BundleError, match=f"more than {MAX_SUBMODEL_BYTES}"):
        SubModel.from_json(b" " * (MAX_SUBMODEL_BYTES + 1), "small.json")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_garbage_gives_a_bundle_error_and_nothing_else(manifest, data):
    good = submodel(manifest).to_json()
    garbage = data.draw(st.binary(max_size=400) | st.integers(0, len(good)).map(lambda n: good[:n]))
    read = read_or_refused(SubModel.from_json, garbage, BundleError)
    assert read is None or read == submodel(manifest)
