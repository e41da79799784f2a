import hashlib
import json
import os
import random
import shutil
from collections import Counter

import pytest

from runtime_edge.errors import BundleError, FormatError, SignatureError
from runtime_edge.formats import manifest as manifests
from runtime_edge.formats import minisign
from runtime_edge.formats.bundle import asset_path, check_asset, open_bundle
from runtime_edge.formats.minisign import signature_path
from runtime_edge.inference import onnx_backend as backend_onnx
from runtime_edge.inference.prefix import Prefix


def check(path, key=None):
    """Everything a bundle is asked for before a block of it runs."""
    bundle = open_bundle(path, key)
    bundle.verify_assets()
    for target in bundle.manifest.info.targets:
        bundle.table(target)
    return bundle


def files(path):
    """Every file but the report for people, which nothing reads."""
    return sorted(entry for entry in path.rglob("*") if entry.is_file() and entry.name != "report.html")


@pytest.fixture
def seen(monkeypatch):
    """Digests of everything that the inference runtime is given."""
    digests = []

    class Watched(backend_onnx.onnxruntime.InferenceSession):
        def __init__(self, data, *arguments, **options):
            digests.append(hashlib.sha256(data).hexdigest())
            super().__init__(data, *arguments, **options)

    monkeypatch.setattr(backend_onnx.onnxruntime, "InferenceSession", Watched)
    return digests


def refused(path, key, part):
    """The bundle is refused with one line that names the part, and no runtime sees a changed byte."""
    with pytest.raises(FormatError) as caught:
        check(path, key)
    message = str(caught.value)
    assert "\n" not in message
    assert str(part) in message
    return message


def test_a_bundle_as_compiled_is_fine(small_bundle, signing_key):
    opened = check(small_bundle.path, signing_key.public)
    assert opened.signed_by == "generation:1 encoder:toys:Tiny"
    assert check(small_bundle.path).signed_by is None
    assert opened.digest == manifests.digest((small_bundle.path / "manifest.json").read_bytes())
    assert opened.verify_assets() == sum(opened.manifest.assets().values())


def test_the_directory_holds_nothing_that_is_not_covered(small_bundle):
    manifest = small_bundle.manifest
    tables = [small_bundle.path / cost.table for cost in manifest.info.targets.values()]
    expected = [small_bundle.path / "manifest.json", *tables]
    expected += [signature_path(path) for path in expected]
    expected += [asset_path(small_bundle.path, reference) for reference in manifest.assets()]
    assert files(small_bundle.path) == sorted(expected)


def test_random_bit_flips_anywhere_are_refused_and_never_reach_the_runtime(bundle_copy, signing_key, seen):
    rng = random.Random(0)
    honest = {hashlib.sha256(path.read_bytes()).hexdigest() for path in files(bundle_copy)}
    tried = Counter()
    while sum(tried.values()) < 200:
        path = rng.choice(files(bundle_copy))
        data = path.read_bytes()
        # The untrusted comment of a signature is, as it says, not covered by it.
        start = data.index(b"\n") if path.suffix == ".minisig" else 0
        position, bit = rng.randrange(start, len(data)), rng.randrange(8)
        path.write_bytes(data[:position] + bytes([data[position] ^ 1 << bit]) + data[position + 1 :])
        part = path.relative_to(bundle_copy)
        refused(bundle_copy, signing_key.public, part.with_suffix("") if part.suffix == ".minisig" else part)
        if part.name == "model.onnx":
            with pytest.raises(BundleError, match="digest does not match"):
                Prefix(open_bundle(bundle_copy, signing_key.public)).load_all()
        path.write_bytes(data)
        tried[path.suffix] += 1
    assert set(seen) <= honest
    assert min(tried[suffix] for suffix in (".onnx", ".json", ".minisig")) > 20
    check(bundle_copy, signing_key.public)


def test_a_flip_in_an_asset_is_refused_without_a_key_too(bundle_copy):
    rng = random.Random(1)
    for path in files(bundle_copy / "shared_assets"):
        honest = path.read_bytes()
        changed = bytearray(honest)
        changed[rng.randrange(len(honest))] ^= 1
        path.write_bytes(changed)
        assert "digest does not match the manifest" in refused(bundle_copy, None, path.relative_to(bundle_copy))
        path.write_bytes(honest)


def test_truncated_files_are_refused(bundle_copy, signing_key):
    rng = random.Random(2)
    for path in files(bundle_copy):
        data = path.read_bytes()
        for length in {0, 1, len(data) // 2, rng.randrange(len(data)), len(data) - 2}:
            path.write_bytes(data[:length])
            part = path.relative_to(bundle_copy)
            refused(bundle_copy, signing_key.public, part.with_suffix("") if part.suffix == ".minisig" else part)
        path.write_bytes(data + b"\0")
        refused(bundle_copy, signing_key.public, path.parent.name)
        path.write_bytes(data)


def test_missing_files_are_refused(bundle_copy, signing_key):
    for path in files(bundle_copy):
        data = path.read_bytes()
        path.unlink()
        refused(bundle_copy, signing_key.public, path.relative_to(bundle_copy))
        path.write_bytes(data)


def edits(value, path=()):
    """Every scalar of a JSON document with something else in its place."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from edits(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from edits(inner, (*path, index))
    else:
        for other in ("", "x", -1, 0, 2**60, 1.5, None, True, [], {}, "sha256:" + "0" * 64 + "/model.onnx"):
            if other != value or type(other) is not type(value):
                yield path, other


def edited(fields, path, other):
    changed = json.loads(json.dumps(fields))
    place = changed
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = other
    return changed


def test_edits_of_the_manifest_are_refused_with_a_key(bundle_copy, signing_key):
    path = bundle_copy / "manifest.json"
    fields = json.loads(path.read_bytes())
    chosen = random.Random(3).sample(list(edits(fields)), 200)
    for place, other in chosen:
        path.write_text(json.dumps(edited(fields, place, other)))
        assert "does not match the file" in refused(bundle_copy, signing_key.public, "manifest.json.minisig")
    path.write_text(json.dumps(fields, indent=1))  # the same meaning in other bytes
    refused(bundle_copy, signing_key.public, "manifest.json.minisig")


def test_edits_of_the_manifest_without_a_key_are_refused_or_harmless(bundle_copy):
    """Whatever is accepted still names the same blocks, so that nothing else can reach the runtime."""
    path = bundle_copy / "manifest.json"
    fields = json.loads(path.read_bytes())
    honest = manifests.decode(path.read_bytes()).assets()
    counts = Counter()
    for place, other in random.Random(4).sample(list(edits(fields)), 400):
        path.write_text(json.dumps(edited(fields, place, other)))
        try:
            bundle = check(bundle_copy)
        except FormatError:
            counts["refused"] += 1
        else:
            assert bundle.manifest.assets().items() <= honest.items()
            counts["accepted"] += 1
    assert counts["refused"] > 200


def test_edits_of_a_table_are_refused_with_a_key(bundle_copy, signing_key):
    path = bundle_copy / "tables" / "rpi4.json"
    text = path.read_text()
    path.write_text(text.replace('"hysteresis":', '"hysteresis": '))
    refused(bundle_copy, signing_key.public, "tables/rpi4.json")
    check(bundle_copy)
    path.write_text(text)
    shutil.copy(bundle_copy / "tables" / "m2.json.minisig", signature_path(path))
    refused(bundle_copy, signing_key.public, "tables/rpi4.json.minisig")


def test_the_table_of_another_target_is_refused(bundle_copy, signing_key):
    for suffix in ("json", "json.minisig"):
        shutil.copy(bundle_copy / "tables" / f"m2.{suffix}", bundle_copy / "tables" / f"rpi4.{suffix}")
    refused(bundle_copy, signing_key.public, "tables/rpi4.json: target is 'm2', expected 'rpi4'")


def test_the_table_of_another_encoder_is_refused(bundle_copy, resnet_bundle):
    shutil.copy(resnet_bundle.path / "tables" / "rpi4.json", bundle_copy / "tables" / "rpi4.json")
    refused(bundle_copy, None, "tables/rpi4.json: costs: the bundle has no cut 'log_mel'")


def test_an_unknown_target_is_refused_with_those_there_are(small_bundle):
    with pytest.raises(BundleError, match="compiled for m2, rpi4, not for 'x86-64'"):
        small_bundle.table("x86-64")


def test_an_unsigned_bundle_is_refused_where_a_key_is_trusted(resnet_bundle, signing_key):
    with pytest.raises(SignatureError, match="missing, but the signature of key 0706050403020100 is required"):
        open_bundle(resnet_bundle.path, signing_key.public)


def test_a_bundle_signed_by_another_key_is_refused(small_bundle):
    other = minisign.SecretKey(b"\1" * 8, bytes(32)).public
    with pytest.raises(SignatureError, match="is trusted"):
        open_bundle(small_bundle.path, other)


def test_a_signature_for_another_generation_is_refused(bundle_copy, signing_key):
    data = (bundle_copy / "manifest.json").read_bytes()
    for comment in ("generation:2 encoder:x", "generation:12 encoder:x", "no generation"):
        (bundle_copy / "manifest.json.minisig").write_text(minisign.sign(data, signing_key, comment))
        with pytest.raises(SignatureError, match="signed for another generation"):
            open_bundle(bundle_copy, signing_key.public)


@pytest.mark.parametrize(
    "part", ["manifest.json", "manifest.json.minisig", "shared_assets", "tables", "tables/rpi4.json", "asset", "folder"]
)
def test_links_are_refused_even_to_the_same_bytes(bundle_copy, tmp_path, signing_key, part):
    reference = next(iter(open_bundle(bundle_copy).manifest.assets()))
    place = {
        "asset": asset_path(bundle_copy, reference),
        "folder": asset_path(bundle_copy, reference).parent,
    }.get(part, bundle_copy / part)
    elsewhere = tmp_path / "elsewhere"
    place.rename(elsewhere)
    place.symlink_to(elsewhere)
    assert "a link; bundles hold plain files only" in refused(bundle_copy, signing_key.public, place.name)


def test_the_directory_itself_may_be_reached_through_a_link(bundle_copy, tmp_path, monkeypatch):
    (tmp_path / "current").symlink_to(bundle_copy)
    check(tmp_path / "current")
    monkeypatch.chdir(tmp_path)
    check(bundle_copy.relative_to(tmp_path))
    monkeypatch.chdir(bundle_copy)
    check(type(bundle_copy)("."))


@pytest.mark.parametrize(
    "reference",
    [
        "sha256:" + "0" * 64 + "/../../../etc/passwd",
        "sha256:" + "0" * 64 + "/..",
        "sha256:" + "0" * 64 + "/a/b",
        "sha256:" + "0" * 64 + "/",
        "sha256:" + "0" * 64 + "/model.onnx\n",
        "sha256:" + "0" * 63 + "/x",
        "sha256:" + "A" * 64 + "/x",
        "../" + "0" * 64 + "/x",
        "/etc/passwd",
        "",
    ],
)
def test_a_reference_cannot_leave_the_bundle(small_bundle, reference):
    with pytest.raises(BundleError, match="asset reference"):
        asset_path(small_bundle.path, reference)
    with pytest.raises(BundleError, match="not an asset of this bundle"):
        small_bundle.read(reference)


def test_what_is_no_bundle_is_refused(tmp_path):
    with pytest.raises(BundleError, match="no such bundle directory; make one with `ssc compile"):
        open_bundle(tmp_path / "missing")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BundleError, match="no such bundle directory"):
        open_bundle(tmp_path / "file")
    with pytest.raises(BundleError, match=r"manifest\.json: cannot be read"):
        open_bundle(tmp_path)
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(BundleError, match=r"manifest\.json: not a regular file"):
        open_bundle(tmp_path)


def test_sizes_are_bounded_before_anything_is_read(bundle_copy):
    os.truncate(bundle_copy / "tables" / "rpi4.json", 1 << 40)
    with pytest.raises(BundleError, match=r"tables/rpi4\.json: 1099511627776 bytes, more than"):
        open_bundle(bundle_copy).table("rpi4")
    os.truncate(bundle_copy / "manifest.json", 1 << 40)
    with pytest.raises(BundleError, match=r"manifest\.json: 1099511627776 bytes, more than"):
        open_bundle(bundle_copy)


def test_an_asset_is_held_against_size_and_digest():
    data = b"block"
    reference = manifests.asset_ref("model.onnx", data)
    check_asset(reference, 5, data, "here")
    with pytest.raises(BundleError, match="here: 5 bytes, but the manifest says 6"):
        check_asset(reference, 6, data, "here")
    with pytest.raises(BundleError, match="here: digest does not match"):
        check_asset(reference, 5, b"blocc", "here")


def test_an_asset_digest_is_that_of_a_directory_listing_as_sha256sum_prints_it():
    line = f"{hashlib.sha256(b'block').hexdigest()}  model.onnx\n"
    assert (
        manifests.asset_ref("model.onnx", b"block") == f"sha256:{hashlib.sha256(line.encode()).hexdigest()}/model.onnx"
    )
