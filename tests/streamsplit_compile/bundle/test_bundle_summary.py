import json

import msgspec
import pytest

from runtime_edge.formats.bundle import Bundle
from streamsplit_compile.bundle.bundle_summary import bundle_summary
from streamsplit_compile.cli.tables.bundle_tables import print_cuts


def without_parity(bundle):
    info = msgspec.structs.replace(bundle.manifest.info, parity={})
    metadata = msgspec.structs.replace(bundle.manifest.additional_metadata, ssc=info)
    manifest = msgspec.structs.replace(bundle.manifest, additional_metadata=metadata)
    return Bundle(bundle.path, manifest, bundle.digest, None)


def test_the_summary_is_json_and_adds_up(small_bundle):
    summary = json.loads(json.dumps(bundle_summary(small_bundle)))
    info = small_bundle.manifest.info
    assert summary["encoder"] == "toys:Tiny"
    assert summary["signed"]
    assert summary["bytes"] == sum(path.stat().st_size for path in small_bundle.path.glob("shared_assets/*/*"))
    assert [cut["name"] for cut in summary["cuts"]] == [cut.name for cut in info.cuts]
    macs = [cut["macs"] for cut in summary["cuts"]]
    assert macs[0] == 0
    assert macs == sorted(macs)
    # stem: 8 filters of 16 taps at 127 places; down: 12 filters of 8 x 4 taps at 31 places
    assert macs[1:3] == [8 * 16 * 127, 8 * 16 * 127 + 12 * 8 * 4 * 31]
    last = summary["cuts"][-1]
    assert last["targets"]["rpi4"]["ms"] == pytest.approx(sum(info.targets["rpi4"].block_ms), abs=1e-3)
    assert summary["cuts"][0]["targets"]["rpi4"] == {"ms": 0, "mj": 0}
    assert last["max_abs_error"] == info.parity["onnx-fp32"].max_abs_error[-1]
    down = summary["parity"]["onnx-fp32"]["down"]
    assert down["prefix"]["max_abs_error"] <= 1e-4
    assert down["wire"]["int8"]["cosine_median"] == summary["cuts"][2]["agreement"]["int8"]
    assert set(down["wire"]) == {"float32", "float16", "int8"}


def test_the_table_shows_every_cut_and_target(small_bundle, capsys):
    print_cuts(small_bundle)
    text = capsys.readouterr().out
    for cut in small_bundle.manifest.info.cuts:
        assert f" {cut.name} " in text
    assert {"wire", "bytes", "int8", "agreement", "rpi4", "ms", "m2", "mJ"} <= set(text.split()), "whatever the width"
    assert "of a synthesised soundscape; errors and agreement are of 4 others; signed." in text


def test_a_bundle_that_was_not_proved_says_so(resnet_bundle, capsys):
    bundle = without_parity(resnet_bundle)
    assert {cut["max_abs_error"] for cut in bundle_summary(bundle)["cuts"]} == {None}
    assert not any(cut["agreement"] for cut in bundle_summary(bundle)["cuts"])
    print_cuts(bundle)
    text = capsys.readouterr().out
    assert " - " in text
    assert "not signed" in text


def test_it_says_which_variants_can_be_adapted(adaptable_bundle, small_bundle, capsys):
    assert bundle_summary(adaptable_bundle)["adaptable"] == ["onnx-fp16", "onnx-fp32", "onnx-int8"]
    assert bundle_summary(small_bundle)["adaptable"] == []
    print_cuts(adaptable_bundle)
    assert "Devices can be adapted that run onnx-fp16, onnx-fp32, onnx-int8." in capsys.readouterr().out
    print_cuts(small_bundle)
    assert "adapted" not in capsys.readouterr().out
