import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from shapes import GOOD, make
from toys import Tiny

from runtime_edge.errors import BackendError, BundleError, CheckFailed, FormatError, UsageError
from runtime_edge.formats.bundle import open_bundle
from runtime_edge.formats.minisign import read_signature, verify
from runtime_edge.inference.prefix import Prefix
from streamsplit_compile.bundle.calibrate import calibration_set_for
from streamsplit_compile.bundle.compiler import (
    CompileOptions,
    changed_blocks,
    compile_encoder,
    recompile,
)
from streamsplit_compile.bundle.measure import Reference
from streamsplit_compile.cost.targets import load_target
from streamsplit_compile.encoder.encoders import from_module, load_encoder
from streamsplit_compile.encoder.segment import split
from streamsplit_compile.encoder.selection import cuts_of

pytestmark = pytest.mark.integration

OPTIONS = CompileOptions([load_target("rpi4")], cuts="stem,down,residual", calibration_windows=4)


def contents(path):
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def in_torch(module, window):
    with torch.inference_mode():
        return module(torch.from_numpy(np.array(window)[None])).numpy()[0]


def window(samples=1024, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, samples).astype(np.float32)


def tensors(module):
    return {name: value.detach().numpy() for name, value in module.state_dict().items()}


def windows_of(bundle):
    return calibration_set_for(bundle.manifest.info, None).windows


def renew(base, module, out, generation=2, **options):
    return recompile(
        base,
        tensors(module),
        out,
        **{"generation": generation, "windows": windows_of(base), "reference": None, **options},
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory, tiny_encoder):
    return compile_encoder(tiny_encoder, OPTIONS, tmp_path_factory.mktemp("base") / "bundle")


def retrained(names):
    """The tiny encoder with other values in some tensors."""
    module = Tiny()
    rng = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if any(name.startswith(prefix) for prefix in names) and value.dtype == torch.float32:
                value.add_(0.1 * torch.rand(value.shape, generator=rng))
    return module


def test_a_bundle_embeds_as_the_module_does(base):
    for seed in range(5):
        found = Prefix(base).embed(window(seed=seed))
        np.testing.assert_allclose(found, in_torch(Tiny(), window(seed=seed)), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "kind", [kind for kind in GOOD if kind.__name__ in ("FoldedBatch", "StaticBatch", "Mask", "NoGrad")]
)
def test_peculiar_graphs_compile(tmp_path, kind):
    module = make(kind)
    encoder = from_module(kind.__name__, {}, module, None)
    bundle = compile_encoder(encoder, dataclasses.replace(OPTIONS, cuts="2"), tmp_path / "bundle")
    sound = window(64)
    np.testing.assert_allclose(Prefix(bundle).embed(sound), in_torch(module, sound), atol=1e-4, rtol=0)
    assert max(bundle.manifest.info.parity["onnx-fp32"].max_abs_error) < 1e-4


def test_plain_onnxruntime_chains_the_files_of_a_variant(base):
    """The contract with those who use none of our code."""
    import json

    manifest = json.loads((base.path / "manifest.json").read_bytes())
    activation = window()[None]
    for block in manifest["additional_metadata"]["ssc"]["blocks"]:
        file = manifest["components"][block]["variants"]["onnx-fp32"]["executor_info"]["ssc"]["file"]
        path = base.path / "shared_assets" / file.replace(":", "-")
        (activation,) = onnxruntime.InferenceSession(path).run(None, {"input": activation})
    np.testing.assert_allclose(activation[0], in_torch(Tiny(), window()), atol=1e-4, rtol=0)


def test_the_manifest_says_what_was_compiled(base, tiny_encoder):
    info = base.manifest.info
    assert [cut.name for cut in info.cuts][:4] == ["waveform", "stem", "down", "residual"]
    assert info.blocks == ["block-00", "block-01", "block-02", "block-03"]
    assert (info.encoder.id, info.encoder.embedding_dim, info.generation) == ("toys:Tiny", 6, 1)
    assert (info.front_end.sample_rate, info.front_end.window_samples, info.front_end.hop_samples) == (4000, 1024, 512)
    assert all(0 < cost <= 10 for cost in info.targets["rpi4"].block_ms)
    assert all(0.99 < cut.agreement["float32"] <= 1 for cut in info.cuts)
    assert {len(cut.bytes) for cut in info.cuts} == {2, 3}


def test_compiling_again_in_another_process_gives_the_same_bytes(base, tmp_path, tiny_file):

    environment = {**os.environ, "PYTHONHASHSEED": "3", "PYTHONPATH": str(Path(sys.modules["toys"].__file__).parent)}
    command = [sys.executable, "-m", "streamsplit_compile.cli.main", "compile", str(tiny_file)]
    command += ["--factory", "toys:Tiny", "--targets", "rpi4", "--cuts", "stem,down,residual", "--windows", "4"]
    code = "import sys; from streamsplit_compile.cli.main import main; main(sys.argv[1:])"
    command[1:3] = ["-c", code]
    done = subprocess.run(
        [*command, "-o", "bundle"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "bundle") == contents(base.path)


def test_the_key_signs_the_manifest_with_its_generation(small_bundle, signing_key):
    signature = read_signature(small_bundle.path / "manifest.json.minisig")
    data = (small_bundle.path / "manifest.json").read_bytes()
    assert verify(data, signature, signing_key.public) == "generation:1 encoder:toys:Tiny"


def test_seed_and_generation_are_those_asked_for(tmp_path, tiny_encoder):
    options = dataclasses.replace(OPTIONS, seed=5, generation=7, cuts="1")
    info = compile_encoder(tiny_encoder, options, tmp_path / "bundle").manifest.info
    assert (info.generation, info.calibration.seed, len(info.blocks)) == (7, 5, 1)


@pytest.mark.parametrize("cuts", ["nothing", "0", "99"])
def test_cuts_that_do_not_exist_leave_nothing_behind(tmp_path, tiny_encoder, cuts):
    with pytest.raises(UsageError, match="--cuts"):
        compile_encoder(tiny_encoder, dataclasses.replace(OPTIONS, cuts=cuts), tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


class Growing(Tiny):
    """Depends on the other windows of a batch, so a device and a server cannot agree."""

    def forward(self, waveform):
        return super().forward(waveform) + waveform.mean()


def test_an_encoder_that_mixes_windows_is_refused_and_nothing_is_written(tmp_path):
    encoder = from_module("growing", {}, Growing(), None)
    with pytest.raises(CheckFailed, match=r"cut .*: prefix and suffix are off by .*, allowed 1e-04"):
        compile_encoder(encoder, dataclasses.replace(OPTIONS, cuts="1"), tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_whose_weights_are_not_finite_is_refused(tmp_path):
    module = Tiny()
    with torch.no_grad():
        module.head.bias[0] = torch.nan
    with pytest.raises(CheckFailed, match="NaN or infinite"):
        compile_encoder(
            from_module("nan", {}, module, None), dataclasses.replace(OPTIONS, cuts="1"), tmp_path / "bundle"
        )
    assert list(tmp_path.iterdir()) == []


def test_what_is_in_the_way_is_refused_and_stays(tmp_path, tiny_encoder):
    options = dataclasses.replace(OPTIONS, cuts="1")
    full, file = tmp_path / "full", tmp_path / "file"
    full.mkdir()
    (full / "thesis.txt").write_text("years of work")
    file.write_text("a file")
    for out in (full, file):
        with pytest.raises(UsageError, match=f"{out}: exists and is not a bundle; choose another -o"):
            compile_encoder(tiny_encoder, options, out)
    with pytest.raises(UsageError, match=str(file)):
        compile_encoder(tiny_encoder, options, file / "bundle")
    assert (full / "thesis.txt").read_text() == "years of work"
    assert {path.name for path in tmp_path.iterdir()} == {"full", "file"}


def test_an_empty_directory_is_filled_and_an_older_bundle_replaced(tmp_path, tiny_encoder, monkeypatch):
    options = dataclasses.replace(OPTIONS, cuts="1")
    out = tmp_path / "bundle"
    out.mkdir()
    first = compile_encoder(tiny_encoder, options, out)
    (out / "stray").write_text("gone with the old bundle")
    second = compile_encoder(tiny_encoder, dataclasses.replace(options, generation=2), out)
    assert (first.manifest.info.generation, second.manifest.info.generation) == (1, 2)
    assert not (out / "stray").exists()
    assert {path.name for path in tmp_path.iterdir()} <= {"bundle", "bundle.html"}
    monkeypatch.chdir(tmp_path)
    compile_encoder(tiny_encoder, options, Path("relative"))
    open_bundle(Path("relative")).verify_assets()


def test_the_directory_one_is_in_is_refused(tmp_path, tiny_encoder, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for out in (Path("."), tmp_path / "here"):
        with pytest.raises(UsageError, match="cannot take the place of the directory you are in"):
            compile_encoder(tiny_encoder, dataclasses.replace(OPTIONS, cuts="1"), out)


@pytest.mark.parametrize(
    ("names", "blocks"),
    [
        (["head"], {"block-03"}),
        (["stem"], {"block-00"}),
        (["down.1"], {"block-01"}),
        (["residual", "stem"], {"block-00", "block-02"}),
        ([], set()),
    ],
)
def test_recompiling_changes_only_the_touched_blocks(base, tmp_path, names, blocks):
    module = retrained(names)
    new = renew(base, module, tmp_path / "new")
    assert set(changed_blocks(base.manifest, new.manifest)) == blocks
    for block in set(base.manifest.info.blocks) - blocks:
        assert new.manifest.components[block] == base.manifest.components[block]
    np.testing.assert_allclose(Prefix(new).embed(window()), in_torch(module, window()), atol=1e-4, rtol=0)
    assert new.manifest.info.generation == 2
    assert new.manifest.info.parity == {}, "the base's numbers are not those of new weights"
    new.verify_assets()
    Prefix(new).self_test()


def test_recompiling_everything_equals_a_full_compile(base, tmp_path):
    module = retrained(["stem", "down", "residual", "head"])
    torch.save(module.state_dict(), tmp_path / "new.pt")
    encoder = load_encoder(tmp_path / "new.pt", "toys:Tiny")
    unseen = calibration_set_for(base.manifest.info, None).unseen
    reference = Reference(split(encoder.graph, cuts_of(encoder.graph.candidates, base.manifest, "base")), unseen)
    new = renew(base, module, tmp_path / "new", reference=reference)
    full = compile_encoder(encoder, dataclasses.replace(OPTIONS, generation=2), tmp_path / "full")
    assert new.manifest.components == full.manifest.components
    assert np.array_equal(Prefix(new).embed(window()), Prefix(full).embed(window()))
    mine, theirs = new.manifest.info, full.manifest.info
    assert mine.encoder == theirs.encoder
    assert mine.self_test == theirs.self_test
    assert mine.parity == theirs.parity
    assert [cut.shape for cut in mine.cuts] == [cut.shape for cut in theirs.cuts]
    for one, other in zip(mine.cuts[:-1], theirs.cuts[:-1], strict=True):
        assert one == other


def test_recompiling_measures_the_scales_behind_what_changed(base, tmp_path):
    module = Tiny()
    with torch.no_grad():
        module.residual.bn.weight *= 40
    new = renew(base, module, tmp_path / "new")
    changed = [
        one.name
        for one, other in zip(base.manifest.info.cuts, new.manifest.info.cuts, strict=True)
        if one.int8 != other.int8
    ]
    assert changed == ["residual"]


def test_recompiling_twice_gives_the_same_bytes(base, tmp_path):
    module = retrained(["head"])
    assert contents(renew(base, module, tmp_path / "a").path) == contents(renew(base, module, tmp_path / "b").path)


def test_a_recompiled_bundle_can_be_recompiled(base, tmp_path):
    first = renew(base, retrained(["head"]), tmp_path / "first")
    back = renew(first, Tiny(), tmp_path / "back", generation=3)
    assert back.manifest.components == base.manifest.components
    assert back.manifest.info.encoder == base.manifest.info.encoder


def test_a_bundle_can_be_renewed_in_its_place(base, tmp_path):
    import shutil

    place = open_bundle(Path(shutil.copytree(base.path, tmp_path / "bundle")))
    new = renew(place, retrained(["head"]), tmp_path / "bundle")
    assert new.manifest.info.generation == 2
    new.verify_assets()
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_the_generation_must_grow(base, tmp_path):
    for generation in (0, 1):
        with pytest.raises(BundleError, match=f"generation {generation} does not follow 1 of "):
            renew(base, Tiny(), tmp_path / "new", generation=generation)
    assert list(tmp_path.iterdir()) == []


def test_weights_of_another_encoder_are_refused_by_tensor_and_nothing_is_written(base, tmp_path):
    known = tensors(Tiny())
    missing = {name: value for name, value in known.items() if name != "head.bias"}
    reshaped = {**known, "head.bias": np.zeros(7, np.float32)}
    for wrong in (missing, reshaped, {}):
        with pytest.raises(FormatError, match=r"head\.bias|stem\.0\.(weight|bias)"):
            recompile(base, wrong, tmp_path / "new", generation=2, windows=windows_of(base), reference=None)
        assert list(tmp_path.iterdir()) == []


def test_weights_that_do_not_reproduce_the_reference_are_refused(base, tmp_path, tiny_encoder):
    reference = Reference(split(tiny_encoder.graph, cuts_of(tiny_encoder.graph.candidates, base.manifest, "base")))
    with pytest.raises(CheckFailed, match="prefix and suffix are off"):
        renew(base, retrained(["head"]), tmp_path / "new", reference=reference)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["stem.0.weight", "head.bias"])
def test_weights_that_are_not_finite_are_refused(base, tmp_path, name):
    module = Tiny()
    with torch.no_grad():
        module.get_parameter(name)[0] = torch.nan
    with pytest.raises(CheckFailed, match="NaN or infinite"):
        renew(base, module, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_recompiling_signs_manifest_and_tables_anew(small_bundle, tmp_path, signing_key):
    opened = open_bundle(small_bundle.path, signing_key.public)
    renew(opened, retrained(["head"]), tmp_path / "new", key=signing_key)
    new = open_bundle(tmp_path / "new", signing_key.public)
    assert new.signed_by == "generation:2 encoder:toys:Tiny"
    for target in ("rpi4", "m2"):
        assert new.table(target) == opened.table(target)


def test_a_damaged_base_is_refused(base, tmp_path):
    import shutil

    copy = Path(shutil.copytree(base.path, tmp_path / "copy"))
    for kind in ("onnx.graph", "model.onnx"):
        path = next(copy.glob(f"shared_assets/*/{kind}"))
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(BundleError, match=re.escape(str(path))):
            renew(open_bundle(copy), Tiny(), tmp_path / "new")
        path.write_bytes(data)
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_nothing_is_left_behind_when_a_block_is_refused(tmp_path, tiny_encoder, monkeypatch):
    def refuse(*_):
        raise BackendError("no runtime today")

    monkeypatch.setattr(Prefix, "load", refuse)
    with pytest.raises(BackendError, match="no runtime today"):
        compile_encoder(tiny_encoder, dataclasses.replace(OPTIONS, cuts="1"), tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_files_carry_the_front_end_for_other_runtimes(resnet_bundle):
    import onnx

    block = resnet_bundle.manifest.info.blocks[0]
    model = onnx.load_from_string(resnet_bundle.block_bytes(block, "onnx-fp32"))
    found = {item.key: item.value for item in model.metadata_props}
    assert found["sample_rate"] == "16000"
    assert found["ssc.encoder"] == "resnet18"
    assert found["n_mels"] == "128"
