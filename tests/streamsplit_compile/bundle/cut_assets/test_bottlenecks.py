"""From recordings to embeddings: compiled bottlenecks, a device's frames, and what a server makes of them."""

import dataclasses
import shutil

import msgspec
import numpy as np
import pytest
import soundfile
import torch
from toys import Tiny

from runtime_edge.errors import BundleError, FrameError, SelfTestError
from runtime_edge.formats import manifest as manifests
from runtime_edge.formats.bundle import ASSETS, Bundle, asset_path, open_bundle
from runtime_edge.formats.model_id import model_number
from runtime_edge.formats.records.table import LOCAL
from runtime_edge.formats.wire import FrameHeader, decode_frame
from runtime_edge.inference.cut_assets.bottleneck import LoadedBottleneck
from runtime_edge.inference.cut_assets.loaded import self_test
from runtime_edge.inference.engine import Engine
from runtime_edge.inference.prefix import Prefix
from runtime_edge.policy.splitter import Splitter
from runtime_server.suffix.generations import Generations, cut_model
from streamsplit_compile.bundle.calibrate import calibration_set_for
from streamsplit_compile.bundle.compiler import CompileOptions, bundle_variants, compile_encoder, recompile
from streamsplit_compile.bundle.measure import Reference
from streamsplit_compile.bundle.soundscape import soundscape
from streamsplit_compile.cost.targets import load_target

pytestmark = pytest.mark.integration


def with_bottlenecks(bundle, change):
    """The same bundle in memory, its bottlenecks changed."""
    info = msgspec.structs.replace(
        bundle.manifest.info, bottlenecks=tuple(map(change, bundle.manifest.info.bottlenecks))
    )
    metadata = msgspec.structs.replace(bundle.manifest.additional_metadata, ssc=info)
    manifest = msgspec.structs.replace(bundle.manifest, additional_metadata=metadata)
    return Bundle(bundle.path, manifest, bundle.digest, bundle.signed_by, bundle.trusted)


def test_every_inner_cut_has_one_with_files_for_each_format_and_figures_for_each_variant(bundle, signing_key):
    assert [info.cut for info in bundle.manifest.info.bottlenecks] == ["stem", "down"]
    variants = set(bundle_variants(bundle.manifest))
    assert len(variants) == 6
    for info in bundle.manifest.info.bottlenecks:
        assert set(info.files) == {"onnx", "tflite"}
        assert info.fitted_by == "pca"
        for width in info.widths:
            assert set(width.wire) == variants
            assert 0 < width.bytes <= width.bytes_p99 <= width.width * info.positions
        sizes = [width.bytes for width in info.widths]
        assert sizes == sorted(sizes)
        assert info.widths[-1].wire["onnx-fp32"].cosine_median > 0.97
    opened = open_bundle(bundle.path, signing_key.public)
    assert opened.verify_assets() > 0


def test_what_a_device_ships_at_a_width_is_finished_by_the_server_as_the_manifest_says(bundle, tiny_encoder, windows):
    generation = Generations(tiny_encoder.graph).add(bundle, tiny_encoder.tensors)
    exact = torch.from_numpy(windows)
    expected = tiny_encoder.graph.module(exact).detach().numpy()
    for variant in bundle_variants(bundle.manifest):
        engine = Engine(bundle, variant)
        engine.ready()
        for info in bundle.manifest.info.bottlenecks:
            cut, widest = bundle.manifest.cut_named(info.cut).index, info.widths[-1]
            found, plain = [], 0
            for number, window in enumerate(windows):
                step = engine.run(window, number, 1, cut, 0.5, finish=False, width=widest.width)
                ((header, payload),) = decode_frame(step.frame)
                assert (header.width, step.encoding) == (widest.width, "int8")
                assert generation.made(header)
                found.append(generation.complete(cut, torch.from_numpy(generation.decode(header, payload))))
                plain += len(engine.run(window, number, 1, cut, 0.5, finish=False).frame) > len(step.frame)
            cosines = (torch.cat(found).numpy() * expected).sum(1)
            assert np.median(cosines) > widest.wire[variant].cosine_median - 0.1
            assert plain == len(windows)


def test_hostile_frames_with_widths_are_refused_in_one_line(bundle, tiny_encoder):
    generation = Generations(tiny_encoder.graph).add(bundle, tiny_encoder.tensors)

    def refusal(cut, width, payload, encoding=2, compressed=True):
        header = FrameHeader(7, 1, 1, cut, encoding, compressed, 0.5, width, generation.model_number)
        with pytest.raises(FrameError) as refused:
            generation.decode(header, payload)
        assert len(str(refused.value).splitlines()) == 1
        return str(refused.value)

    assert "width 8, this bundle has no such bottleneck at waveform" in refusal(0, 8, b"")
    assert "width 60000, this bundle has no such bottleneck at stem" in refusal(1, 60000, b"")
    assert "cut 9" in refusal(9, 8, b"")
    assert "a latent in float32; all are int8" in refusal(1, 8, b"", encoding=0)
    assert "1000000 bytes" in refusal(1, 8, bytes(1_000_000))
    assert "1000000 bytes" in refusal(1, 8, bytes(1_000_000), compressed=False)
    assert "before its last value" in refusal(1, 8, b"\0\0\0")


def test_tables_price_the_widths_that_nothing_beats(bundle):
    table = bundle.table("rpi4")
    widths = [action for action in table.costs if action.width and action.answer == "server"]

    assert widths
    for action in widths:
        info = bundle.manifest.bottleneck(action.cut)
        (width,) = (found for found in info.widths if found.width == action.width)
        assert (action.name, action.encoding) == (f"{action.cut}/{action.width}", "int8")
        assert width.bytes < action.bytes < width.bytes + 60
        assert list(action.quality) == width.wire["onnx-fp32"].by_uncertainty
        plain = next(found for found in table.costs if found.name == action.cut)
        assert action.device_ms > plain.device_ms


def test_a_splitter_chooses_only_widths_that_the_bundle_has(bundle):
    table, names = bundle.table("rpi4"), [cut.name for cut in bundle.manifest.info.cuts]
    widths = [place for place, action in enumerate(table.costs) if action.width and action.answer == "server"]
    chosen = widths[-1]
    action = table.costs[chosen]
    q = tuple(tuple(float(place == chosen) for place in range(len(table.costs))) for _ in table.q)
    always = msgspec.structs.replace(table, q=q, probe_rate=0.0)

    found = Splitter(always, names, widths=bundle.manifest.widths).choose(0.5, 0.1, 1.0, 80.0)
    masked = Splitter(always, names).choose(0.5, 0.1, 1.0, 80.0)
    swapped = Splitter(always, names)
    swapped.swap(always, bundle.manifest.widths)

    assert (found.cut, found.width) == (action.cut, action.width)
    assert masked.width == 0
    assert swapped.choose(0.5, 0.1, 1.0, 80.0).width == action.width
    assert Splitter(always, names, min_cut_index=len(names) - 1).choose(0.5, 0.1, 1.0, 80.0).cut in (names[-1], LOCAL)


def test_new_weights_keep_what_still_holds_and_withdraw_the_rest(bundle, tiny_encoder, options, windows, tmp_path):
    calibration = calibration_set_for(bundle.manifest.info, options.calibrate)

    def released(tensors, name):
        reference = Reference(cut_model(tiny_encoder.graph, bundle, tensors).segments, calibration.unseen)
        return recompile(
            bundle, tensors, tmp_path / name, generation=2, windows=calibration.windows, reference=reference
        ).manifest

    before = tiny_encoder.tensors
    same = released(before, "same")
    other = released({**before, "head.weight": np.ascontiguousarray(before["head.weight"][::-1])}, "other")
    # Other channels, and embeddings around 0, which tell every difference.
    whole = Tiny()
    with torch.no_grad():
        middle = whole.residual(whole.down(whole.stem(torch.from_numpy(windows)[:, None]))).mean((0, 2)).numpy()
    stem = np.ascontiguousarray(before["stem.0.weight"][::-1])
    turned = released({**before, "stem.0.weight": stem, "head.bias": -before["head.weight"] @ middle}, "turned")

    assert same.widths == bundle.manifest.widths
    assert [info.files for info in other.info.bottlenecks] == [info.files for info in bundle.manifest.info.bottlenecks]
    assert sum(map(len, turned.widths.values())) < sum(map(len, same.widths.values()))
    assert model_number(turned) != model_number(same)


def test_new_weights_that_nothing_is_known_of_have_none(bundle, tiny_encoder, windows, tmp_path):
    found = recompile(
        bundle, tiny_encoder.tensors, tmp_path / "next", generation=2, windows=windows[:2], reference=None
    )

    assert found.manifest.info.bottlenecks == ()


def test_there_are_none_without_recordings_or_with_too_few(tiny_encoder, tmp_path):
    plain = CompileOptions([load_target("rpi4")], cuts="stem", calibration_windows=4)
    soundfile.write(tmp_path / "short.wav", soundscape(4, 4000, 0), 4000)
    said = []

    none = compile_encoder(tiny_encoder, plain, tmp_path / "none")
    short = dataclasses.replace(plain, calibrate=tmp_path / "short.wav")
    few = compile_encoder(tiny_encoder, short, tmp_path / "few", notice=said.append)

    assert none.manifest.info.bottlenecks == few.manifest.info.bottlenecks == ()
    assert any("no bottlenecks: the recordings are too short" in line for line in said)


def test_trained_ones_say_so_and_leave_no_checkpoints(tiny_encoder, options, tmp_path):
    trained = compile_encoder(
        tiny_encoder,
        dataclasses.replace(options, formats=("onnx",), precisions=("fp32",), bottleneck_steps=3),
        tmp_path / "b",
    )

    assert {(info.fitted_by, info.steps) for info in trained.manifest.info.bottlenecks} == {("training", 3)}
    assert all(value.requires_grad for value in tiny_encoder.graph.module.parameters()), "it can go on learning"
    assert {path.name for path in tmp_path.iterdir()} == {"b", "b.html"}


def test_a_bottleneck_of_another_encoder_fails_the_self_test(bundle):
    far = np.full(bundle.manifest.info.bottlenecks[0].shape[1], 50.0, "<f4").tobytes()
    wrong = with_bottlenecks(
        bundle, lambda info: msgspec.structs.replace(info, self_test=dict.fromkeys(info.self_test, far))
    )

    assert self_test(Prefix(bundle)) < 1e-3
    with pytest.raises(SelfTestError, match=r"bottleneck at stem: its latent is off by .* steps, allowed 0\.1"):
        self_test(Prefix(wrong))


def test_a_device_that_runs_up_to_one_cut_fetches_and_tests_its_bottleneck_alone(bundle, tmp_path):
    blocks = [cut.name for cut in bundle.manifest.info.cuts].index("stem")
    files = bundle.manifest.device_files("onnx-fp32", blocks)
    assert [name for name in files if "bottleneck" in name] == ["stem: bottleneck"]
    assert len(bundle.manifest.device_files("onnx-fp32", 0)) == 0

    part = tmp_path / "part"
    shutil.copytree(bundle.path, part, ignore=lambda folder, names: names if folder.endswith(ASSETS) else ())
    for file, _ in files.values():
        asset_path(part, file).parent.mkdir(parents=True)
        shutil.copy(asset_path(bundle.path, file), asset_path(part, file))
    assert self_test(Prefix(open_bundle(part))) == 0.0
    assert Engine(open_bundle(part), "onnx-fp32").ready() == 0.0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"cut": "waveform"}, "there is no such cut between"),
        ({"cut": "elsewhere"}, "there is no such cut between"),
        ({"shape": (1, 4096, 2, 2)}, "at most 4096 values"),
        ({"widths": ()}, "widths"),
        ({"self_test": {}}, "self_test.onnx-fp16"),
        ({"files": {}}, "files: not one for each format"),
    ],
)
def test_a_manifest_whose_bottlenecks_do_not_fit_is_refused_naming_the_field(bundle, change, reason):
    first = bundle.manifest.info.bottlenecks[0].cut
    wrong = with_bottlenecks(
        bundle, lambda info: msgspec.structs.replace(info, **change) if info.cut == first else info
    ).manifest

    with pytest.raises(BundleError, match=reason) as refused:
        manifests.decode(manifests.encode(wrong), "m.json")
    assert len(str(refused.value).splitlines()) == 1


def test_with_noise_a_device_ships_something_else_each_time_and_figures_know(tiny_encoder, options, bundle, tmp_path):
    noisy = dataclasses.replace(options, formats=("onnx",), precisions=("fp32",), cuts="down", latent_noise=4.0)
    loud = compile_encoder(tiny_encoder, noisy, tmp_path / "loud")
    (info,) = loud.manifest.info.bottlenecks
    device = LoadedBottleneck(Prefix(loud), info)

    shipped = [device.codec.decode(*device.encode(info.shape[1]), info.shape[1]) for _ in range(2)]
    latent = device.latent()

    assert info.noise == 4.0
    assert not np.array_equal(*shipped)
    assert np.std(shipped[0] - latent) == pytest.approx(4.0, rel=0.3)
    plain = next(one for one in bundle.manifest.info.bottlenecks if one.cut == "down")
    assert info.widths[-1].wire["onnx-fp32"].cosine_median < plain.widths[-1].wire["onnx-fp32"].cosine_median
    assert info.widths[-1].bytes > plain.widths[-1].bytes
    assert self_test(Prefix(loud)) < 1e-3
