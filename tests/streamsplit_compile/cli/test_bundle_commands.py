"""What `ssc compile` and `ssc verify` say of what was measured, and on what."""

import json

import numpy as np
import pytest
import soundfile

from runtime_edge.formats.bundle import open_bundle
from runtime_edge.inference.prefix import Prefix
from streamsplit_compile.bundle import parity
from streamsplit_compile.bundle.calibrate import calibration_set_for, collect_activations
from streamsplit_compile.bundle.compiler import CompileOptions, compile_encoder
from streamsplit_compile.bundle.parity import Prover
from streamsplit_compile.cli.main import main
from streamsplit_compile.cost.targets import load_target
from streamsplit_compile.encoder.segment import split
from streamsplit_compile.encoder.selection import cuts_of

pytestmark = pytest.mark.integration
RATE = 4000


def record(directory, level, seed):
    directory.mkdir()
    noise = np.random.default_rng(seed).uniform(-level, level, 8 * RATE)
    soundfile.write(directory / "noise.wav", noise, RATE, subtype="FLOAT")
    return directory


@pytest.fixture(scope="module")
def quiet(tmp_path_factory):
    return record(tmp_path_factory.mktemp("recorded") / "quiet", 0.001, 1)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory, tiny_encoder, quiet):
    """The tiny encoder in float32 and int8, calibrated on quiet recordings."""
    options = CompileOptions(
        [load_target("rpi4")], cuts="down", calibration_windows=4, calibrate=quiet, precisions=("fp32", "int8")
    )
    return compile_encoder(tiny_encoder, options, tmp_path_factory.mktemp("compiled") / "bundle")


def test_parity_is_that_of_windows_that_calibrated_nothing(compiled, tiny_encoder, quiet):
    info = compiled.manifest.info
    unseen = calibration_set_for(info, quiet).unseen
    segments = split(tiny_encoder.graph, cuts_of(tiny_encoder.graph.candidates, compiled.manifest, ""))
    for variant, stated in info.parity.items():
        activations = collect_activations(Prefix(compiled, variant), unseen)
        assert Prover(segments, unseen).prove(info.cuts, activations, lambda *_: None) == stated
        assert stated.windows == len(unseen) == 4
    first = info.parity["onnx-fp32"].cuts
    assert [cut.agreement for cut in info.cuts] == [
        {name: found.cosine_median for name, found in proved.wire.items()} for proved in first
    ]


def test_people_read_one_true_number(compiled, capsys):
    main(["inspect", str(compiled.path)])
    assert "calibrated on 4 windows of recordings; errors and agreement are of 4 others" in capsys.readouterr().out


def test_verify_warns_of_a_variant_below_its_threshold_on_the_recordings_given(
    compiled, quiet, tiny_file, tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(parity.COSINE_FLOORS, "int8", 0.999)  # a tiny encoder survives much
    command = ["verify", str(compiled.path), "--encoder", str(tiny_file), "--factory", "toys:Tiny"]
    main([*command, "--calibrate", str(quiet)])
    assert "warning" not in capsys.readouterr().err
    main([*command, "--calibrate", str(record(tmp_path / "loud", 0.9, 2))])
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert line.startswith("warning: onnx-int8: median cosine 0.99")
    assert "wanted 0.999" in line


def test_new_weights_without_recordings_are_said_to_be_measured_on_none(compiled, quiet, tiny_file, tmp_path, capsys):
    command = ["compile", str(tiny_file), "--factory", "toys:Tiny", "--base", str(compiled.path)]
    main([*command, "-o", str(tmp_path / "soundscape")])
    told = capsys.readouterr()
    assert "nothing was measured on recordings, but on a synthesised soundscape; give --calibrate" in told.err
    said = "calibrated on 4 windows of a synthesised soundscape; errors and agreement are of 4 others"
    assert said in " ".join(told.out.split())
    assert open_bundle(tmp_path / "soundscape").manifest.info.calibration.source == "soundscapes"

    main([*command, "-o", str(tmp_path / "unmeasured"), "--no-parity"])
    told = capsys.readouterr()
    assert "warning: nothing was measured of these weights: leave out --no-parity" in told.err
    assert "calibrated on 4 windows of a synthesised soundscape; nothing was measured" in " ".join(told.out.split())

    main([*command, "-o", str(tmp_path / "recorded"), "--calibrate", str(quiet)])
    told = capsys.readouterr()
    assert "nothing was measured" not in told.err + told.out
    assert open_bundle(tmp_path / "recorded").manifest.info.calibration.source == "recordings"


def test_bottlenecks_are_shown_by_width_with_what_they_cost_and_keep(tiny_file, tmp_path, capsys):
    tmp_path.joinpath("recordings").mkdir()
    noise = np.random.default_rng(5).uniform(-0.5, 0.5, 60 * RATE)
    soundfile.write(tmp_path / "recordings" / "noise.wav", noise, RATE, subtype="FLOAT")
    compiling = ["compile", str(tiny_file), "--factory", "toys:Tiny", "--targets", "rpi4", "--cuts", "down"]

    main([*compiling, "-o", str(tmp_path / "bundle"), "--calibrate", str(tmp_path / "recordings")])
    capsys.readouterr()
    main(["inspect", str(tmp_path / "bundle")])
    told = capsys.readouterr().out
    main(["inspect", str(tmp_path / "bundle"), "--json"])
    (bottleneck,) = json.loads(capsys.readouterr().out)["bottlenecks"]
    main([*compiling, "-o", str(tmp_path / "other"), "--calibrate", str(tmp_path / "recordings"), "--seed", "1"])
    capsys.readouterr()
    main(["diff", str(tmp_path / "bundle"), str(tmp_path / "other"), "--json"])
    changed = {row["block"] for row in json.loads(capsys.readouterr().out)["changed"]}

    assert "bottlenecks, closed form: payloads and embeddings" in told
    assert bottleneck["cut"] == "down"
    assert changed == {"down: bottleneck", "down: coding tables", "down: exit"}
    assert "exits: embeddings from the activation at a cut" in told
    for width in bottleneck["widths"]:
        assert f"{width['wire']['onnx-fp32']['cosine_median']:.4f}" in told


def test_bottlenecks_are_not_trained_without_recordings(tiny_file, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["compile", str(tiny_file), "--factory", "toys:Tiny", "-o", str(tmp_path / "bundle"), "--bottlenecks"])

    assert ended.value.code == 2
    assert "--bottlenecks: they are trained on recordings; give --calibrate DIR" in capsys.readouterr().err
