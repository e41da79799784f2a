"""From recordings to first answers: compiled exits, what a device makes of them, and what a release keeps."""

import dataclasses
import shutil

import msgspec
import numpy as np
import pytest
import torch

from runtime_edge.errors import BundleError, SelfTestError
from runtime_edge.formats import manifest as manifests
from runtime_edge.formats.bundle import ASSETS, Bundle, asset_path, open_bundle
from runtime_edge.inference.cut_assets.early_exit import LoadedExit
from runtime_edge.inference.cut_assets.loaded import self_test
from runtime_edge.inference.engine import Engine
from runtime_edge.inference.prefix import Prefix
from runtime_edge.policy.splitter import Splitter
from runtime_server.suffix.generations import cut_model
from streamsplit_compile.bundle.bundle_summary import bundle_summary, exit_rows
from streamsplit_compile.bundle.calibrate import calibration_set_for
from streamsplit_compile.bundle.compiler import bundle_variants, compile_encoder, recompile
from streamsplit_compile.bundle.measure import Reference
from streamsplit_compile.exits.exit_map import read_exit

pytestmark = pytest.mark.integration


def with_exits(bundle, change):
    """The same bundle in memory, its exits changed."""
    info = msgspec.structs.replace(bundle.manifest.info, exits=tuple(map(change, bundle.manifest.info.exits)))
    metadata = msgspec.structs.replace(bundle.manifest.additional_metadata, ssc=info)
    manifest = msgspec.structs.replace(bundle.manifest, additional_metadata=metadata)
    return Bundle(bundle.path, manifest, bundle.digest, bundle.signed_by, bundle.trusted)


def cosines(found, expected):
    return (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)


def test_every_inner_cut_has_one_with_files_for_each_format_and_figures_for_each_variant(bundle, signing_key):
    assert [info.cut for info in bundle.manifest.info.exits] == ["stem", "down"]
    variants = set(bundle_variants(bundle.manifest))
    for info in bundle.manifest.info.exits:
        assert set(info.files) == {"onnx", "tflite"}
        assert set(info.agreement) == set(info.self_test) == variants
        assert info.windows > 32
    assert open_bundle(bundle.path, signing_key.public).verify_assets() > 0
    rows = {row[0]: row for row in exit_rows(bundle.manifest.info.exits)}
    assert "onnx-fp16" in rows["stem"][-1]
    assert [early["cut"] for early in bundle_summary(bundle)["exits"]] == ["stem", "down"]


def test_an_exit_gives_about_the_embedding_that_the_whole_encoder_gives(bundle, tiny_encoder, windows):
    with torch.inference_mode():
        expected = tiny_encoder.graph.module(torch.from_numpy(windows)).numpy()
    strangers = np.roll(expected, 1, axis=0)
    for variant in bundle_variants(bundle.manifest):
        prefix = Prefix(bundle, variant)
        for info in bundle.manifest.info.exits:
            early, cut, found = LoadedExit(prefix, info), bundle.manifest.cut_named(info.cut).index, []
            block = read_exit(bundle.read(info.weights.file), bundle.manifest.info.cuts[cut], "here")
            for window in windows:
                prefix.start(window)
                prefix.advance(cut)
                found.append(early.embedding())
                with torch.inference_mode():
                    exact = block(torch.from_numpy(prefix.buffers[cut])).numpy()[0]
                assert np.abs(found[-1] - exact).max() < 1e-3
            near = cosines(np.stack(found), expected)
            assert np.median(near) > info.agreement[variant].cosine_median - 0.1
            assert np.median(near) > np.median(cosines(np.stack(found), strangers))


def test_tables_price_exits_whose_answer_the_server_can_improve_on(bundle):
    costs = {action.name: action for action in bundle.table("rpi4").costs}
    exits = [action for action in costs.values() if action.answer == "exit"]

    assert exits
    for action in exits:
        info, plain = bundle.manifest.exit(action.cut), costs[action.name.removesuffix("+exit")]
        assert list(action.exit_quality) == info.agreement["onnx-fp32"].by_uncertainty
        assert (action.bytes, action.quality, action.width) == (plain.bytes, plain.quality, plain.width)
        assert action.device_ms > plain.device_ms
        assert action.memory_mb > plain.memory_mb
        assert np.mean(action.quality) >= np.mean(action.exit_quality)


def test_a_splitter_chooses_only_exits_that_the_bundle_has(bundle):
    table, names = bundle.table("rpi4"), [cut.name for cut in bundle.manifest.info.cuts]
    chosen = next(place for place, action in enumerate(table.costs) if action.answer == "exit")
    q = tuple(tuple(float(place == chosen) for place in range(len(table.costs))) for _ in table.q)
    always = msgspec.structs.replace(table, q=q, probe_rate=0.0)
    widths, exits = bundle.manifest.widths, bundle.manifest.exit_cuts

    found = Splitter(always, names, widths=widths, exits=exits).choose(0.5, 0.1, 1.0, 80.0)
    swapped = Splitter(always, names, widths=widths)
    assert (found.cut, found.exit) == (table.costs[chosen].cut, True)
    assert not swapped.choose(0.5, 0.1, 1.0, 80.0).exit
    swapped.swap(always, widths, exits)
    assert swapped.choose(0.5, 0.1, 1.0, 80.0).exit
    assert not swapped.choose(0.5, 0.1, 1.0, 80.0, connected=False).exit


def test_the_same_recordings_give_the_same_bytes(tiny_encoder, options, bundle, tmp_path):
    again = compile_encoder(tiny_encoder, options, tmp_path / "again")

    assert again.manifest.info.exits == bundle.manifest.info.exits


def test_a_release_keeps_exits_that_hold_fits_others_anew_and_withdraws_them_without_recordings(
    bundle, tiny_encoder, options, tmp_path
):
    calibration = calibration_set_for(bundle.manifest.info, options.calibrate)
    before = tiny_encoder.tensors
    turned = {**before, "head.weight": -before["head.weight"], "head.bias": -before["head.bias"]}

    def released(tensors, name, recordings):
        segments = cut_model(tiny_encoder.graph, bundle, tensors).segments
        reference = Reference(segments, calibration.unseen, recordings=recordings)
        windows = calibration.windows
        return recompile(bundle, tensors, tmp_path / name, generation=2, windows=windows, reference=reference)

    same = released(before, "same", None)
    anew = released(turned, "anew", options.calibrate)
    without = released(turned, "without", None)

    files = [info.weights for info in bundle.manifest.info.exits]
    assert [info.weights for info in same.manifest.info.exits] == files
    assert [info.cut for info in anew.manifest.info.exits] == ["stem", "down"]
    assert not {info.weights.file for info in anew.manifest.info.exits} & {file.file for file in files}
    assert anew.verify_assets() > 0
    assert self_test(Prefix(anew)) < 1e-3
    assert without.manifest.info.exits == ()


def test_new_weights_that_nothing_is_known_of_have_none(bundle, tiny_encoder, windows, tmp_path):
    found = recompile(bundle, tiny_encoder.tensors, tmp_path / "n", generation=2, windows=windows[:2], reference=None)

    assert found.manifest.info.exits == ()


def test_there_are_none_without_recordings(tiny_encoder, options, tmp_path):
    plain = dataclasses.replace(options, calibrate=None, formats=("onnx",), precisions=("fp32",))

    assert compile_encoder(tiny_encoder, plain, tmp_path / "none").manifest.info.exits == ()


def test_an_exit_of_another_encoder_fails_the_self_test(bundle):
    far = np.full(bundle.manifest.info.encoder.embedding_dim, 0.5, "<f4").tobytes()
    wrong = with_exits(bundle, lambda info: msgspec.structs.replace(info, self_test=dict.fromkeys(info.self_test, far)))

    with pytest.raises(SelfTestError, match=r"exit at stem: its embedding is off by .*, allowed 0\.005"):
        self_test(Prefix(wrong))


def test_a_device_that_runs_up_to_one_cut_fetches_and_tests_its_exit_alone(bundle, tmp_path):
    blocks = [cut.name for cut in bundle.manifest.info.cuts].index("stem")
    files = bundle.manifest.device_files("onnx-fp32", blocks)
    assert [name for name in files if "exit" in name] == ["stem: exit"]

    part = tmp_path / "part"
    shutil.copytree(bundle.path, part, ignore=lambda folder, names: names if folder.endswith(ASSETS) else ())
    for file, _ in files.values():
        asset_path(part, file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(asset_path(bundle.path, file), asset_path(part, file))
    assert Engine(open_bundle(part), "onnx-fp32").ready() == 0.0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"cut": "waveform"}, "there is no such cut between"),
        ({"self_test": {}}, "self_test.onnx-fp16"),
        ({"agreement": {}}, "agreement.onnx-fp16: is missing"),
        ({"files": {}}, "files: not one for each format"),
    ],
)
def test_a_manifest_whose_exits_do_not_fit_is_refused_naming_the_field(bundle, change, reason):
    wrong = with_exits(
        bundle, lambda info: msgspec.structs.replace(info, **change) if info.cut == "stem" else info
    ).manifest

    with pytest.raises(BundleError, match=f"exits: .*{reason}") as refused:
        manifests.decode(manifests.encode(wrong), "m.json")
    assert len(str(refused.value).splitlines()) == 1


def test_damaged_weights_are_refused_in_one_line(bundle):
    cut = bundle.manifest.info.cuts[1]
    data = bytearray(bundle.read(bundle.manifest.info.exits[0].weights.file))

    with pytest.raises(BundleError, match=r"here: not an exit for cut stem .*; compile it again"):
        read_exit(bytes(data[:100]), cut, "here")
