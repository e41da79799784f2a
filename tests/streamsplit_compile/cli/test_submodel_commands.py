"""`ssc modules` and `ssc derive`, up to a bundle of what they write."""

import json

import pytest
from click.testing import CliRunner

from runtime_edge.errors import FormatError, UsageError
from runtime_edge.formats.bundle import open_bundle
from runtime_edge.inference.profile import measure_profile
from streamsplit_compile.bundle.compiler import CompileOptions, compile_encoder
from streamsplit_compile.cli.compile_commands import new
from streamsplit_compile.cli.submodel_commands import derive_, modules
from streamsplit_compile.cost.targets import load_target
from streamsplit_compile.encoder.encoders import load_encoder, load_module

pytestmark = [pytest.mark.integration, pytest.mark.slow]
NARROW = '{"width": 0.25, "front_end": {"n_mels": 32, "window_samples": 8000, "hop_samples": 4000}}'


def run(command, *arguments):
    return CliRunner().invoke(command, list(map(str, arguments)), catch_exceptions=False)


@pytest.fixture(scope="module")
def encoder_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("encoder") / "encoder.pt"
    assert run(new, "mobilenet_v3_small", "--encoder-config", NARROW, "-o", path).exit_code == 0
    return path


def test_groups_are_shown_with_cost_and_importance(encoder_file):
    done = run(modules, encoder_file, "--count", 16)
    assert done.exit_code == 0
    assert "priced for rpi4" in done.output
    assert "not possible" in done.output
    assert "give --recordings" in done.output
    found = json.loads(run(modules, encoder_file, "--count", 16, "--json").stdout)
    last = found["layers"][-1]
    assert last["layer"] == "features.11"
    assert len(last["ms"]) == len(last["losses"]) == len(last["importance"]) + 1
    assert sorted(last["ranking"]) == list(range(len(last["importance"])))


def test_a_sub_model_fits_its_budget_compiles_and_is_derived_from_again(encoder_file, tmp_path):
    out, again = tmp_path / "small.pt", tmp_path / "smaller.pt"
    whole = json.loads(run(modules, encoder_file, "--count", 16, "--json").stdout)
    budget = 0.85 * (whole["fixed_ms"] + sum(one["ms"][-1] for one in whole["layers"]))
    done = run(derive_, encoder_file, "--budget-ms", budget, "--count", 16, "--steps", 1, "-o", out, "--json")
    said = json.loads(done.stdout)
    assert said["ms"] <= budget < said["whole_ms"]
    assert said["weight_bytes"] < said["whole_weight_bytes"]
    found = load_module(out)
    assert found.config["inner"] == {name: len(channels) for name, channels in said["kept"].items()}
    assert found.untrained
    bundle = compile_encoder(load_encoder(out), CompileOptions(targets=[load_target("rpi4")]), tmp_path / "bundle")
    assert max(bundle.manifest.info.parity["onnx-fp32"].max_abs_error) < 1e-4
    shown = run(derive_, out, "--bytes", int(0.9 * said["weight_bytes"]), "--count", 16, "-o", again)
    assert "in place of" in shown.output
    assert load_module(again).config["inner"].keys() >= {name for name, own in said["kept"].items() if own}


def test_measured_blocks_replace_the_prediction(encoder_file, tmp_path):
    target, bundle = load_target("rpi4"), tmp_path / "bundle"
    compile_encoder(load_encoder(encoder_file), CompileOptions(targets=[target]), bundle)
    profile = measure_profile(open_bundle(bundle), "rpi4", runs=1)
    file, total = tmp_path / "profile.json", sum(profile.block_ms)
    file.write_bytes(profile.to_json())
    given = ["--profile", file, "--bundle", bundle, "--count", 16]
    found = json.loads(run(modules, encoder_file, *given, "--json").stdout)
    assert found["fixed_ms"] + sum(one["ms"][-1] for one in found["layers"]) == pytest.approx(total, rel=1e-6)
    out = tmp_path / "small.pt"
    done = run(derive_, encoder_file, *given, "--bytes", 10**9, "-o", out)
    assert "times as measured" in done.output
    for arguments, said in (
        (["--profile", file], "--profile needs --bundle"),
        (["--bundle", bundle], "--bundle needs --profile"),
        ([*given, "--target", "m2"], r"profile\.json: it is of rpi4, not of --target m2"),
    ):
        with pytest.raises(UsageError, match=said):
            run(modules, encoder_file, "--count", 16, *arguments)
    with pytest.raises(UsageError, match="it has other weights than"):
        run(modules, out, *given)


def test_what_cannot_be_derived_is_refused_in_one_line(encoder_file, tmp_path):
    out = tmp_path / "small.pt"
    done = CliRunner().invoke(derive_, [str(encoder_file), "-o", str(out)])
    assert "give --budget-ms, --memory-mb or --bytes" in done.output
    with pytest.raises(UsageError, match=r"--budget-ms 0\.001: at least"):
        run(derive_, encoder_file, "--budget-ms", 0.001, "--count", 16, "-o", out)
    with pytest.raises(UsageError, match="no such file"):
        run(modules, tmp_path / "missing.pt")
    (tmp_path / "other.pt").write_bytes(encoder_file.read_bytes()[:100])
    with pytest.raises(FormatError, match=r"other\.pt"):
        run(modules, tmp_path / "other.pt")
    assert not out.exists()
