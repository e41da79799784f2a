"""The extra `compile`: what the guide and the page on the splitter do with an encoder, a bundle and its tables."""

import shutil

import numpy as np
import pytest
from documented import ROOT
from installed import embedding_error

from runtime_edge.formats.bundle import open_bundle
from runtime_edge.formats.minisign import read_public_key
from streamsplit_compile.cli.splitter_commands import read_table

EXTRAS = "compile"
BRINGS = {"compile", "edge", "audio"}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def write_trace(path, seconds=900):
    """A link that gets worse and better, as `--traces` reads it."""
    path.parent.mkdir()
    lines = ["time_s,bandwidth_mbps,rtt_ms,cpu"]
    lines += [f"{second},{2 + np.sin(second / 60):.3f},60,0.2" for second in range(seconds)]
    path.write_text("\n".join(lines) + "\n")


def test_an_encoder_is_compiled_verified_and_compiled_again(terminal):
    here = terminal.directory
    assert "resnet18" in terminal.types("ssc encoder list")
    assert "random" in terminal.types("ssc encoder new resnet18 -o encoder.pt")
    terminal.types("ssc key new -o signing.key")
    key = read_public_key(here / "signing.pub")
    terminal.types("ssc compile encoder.pt --targets rpi4,m2 -o bundle/ --calibrate recordings/ --key signing.key")
    bundle = open_bundle(here / "bundle", key)
    assert set(bundle.manifest.info.targets) == {"rpi4", "m2"}
    assert (here / "bundle.html").exists()
    shown = terminal.types("ssc inspect bundle/")
    assert all(cut.name in shown for cut in bundle.manifest.info.cuts)
    terminal.types("ssc verify bundle/ --encoder encoder.pt --pub signing.pub")

    assert "m2 over lte: " in terminal.types("ssc advise bundle/ --targets rpi4,m2 --link lte")

    here_too = ("bench", "device", here / "bundle", "--target", "rpi4", "--meter", "none", "--runs", "2", "-o")
    terminal.environment.ssc(*here_too, here / "device.json")
    terminal.types("ssc compile encoder.pt --targets rpi4,m2 --profile device.json -o measured/")
    assert open_bundle(here / "measured").manifest.info.targets["rpi4"].provenance == "measured"

    terminal.environment.python(OTHER_WEIGHTS, here / "encoder.pt", here / "new.pt")
    terminal.types("ssc compile new.pt --base bundle/ -o bundle-2/")
    assert open_bundle(here / "bundle-2").manifest.info.generation == 2
    assert "patch" in terminal.types("ssc diff bundle/ bundle-2/")


def test_the_page_on_extending_has_an_encoder_that_compiles(terminal):
    page, here = (ROOT / "docs" / "extend.md").read_text(), terminal.directory
    (here / "own_encoder.py").write_text(page.split("```python\n")[1].split("```")[0])
    terminal.environment.python(OWN_WEIGHTS, here)
    terminal.types("ssc compile weights.pt --factory own_encoder:OwnEncoder --targets rpi4 -o own-bundle/")
    assert "log_mel" in [cut.name for cut in open_bundle(here / "own-bundle").manifest.info.cuts]
    terminal.types("ssc verify own-bundle/ --encoder weights.pt --factory own_encoder:OwnEncoder")


OWN_WEIGHTS = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from own_encoder import OwnEncoder
torch.save(OwnEncoder().state_dict(), sys.argv[1] + "/weights.pt")
"""


def test_a_sub_model_is_derived_for_a_board_and_compiled(terminal):
    here = terminal.directory
    terminal.environment.ssc("encoder", "new", "mobilenet_v3_small", "-o", here / "encoder.pt")
    assert "features.11" in terminal.types("ssc modules encoder.pt --recordings recordings/")
    said = terminal.types(
        "ssc derive encoder.pt --target rpi-zero-2w --budget-ms 9 --recordings recordings/ -o small.pt"
    )
    assert "in place of" in said
    terminal.types("ssc compile small.pt --targets rpi-zero-2w -o small-bundle/ --calibrate recordings/")
    assert (here / "small.pt").stat().st_size < (here / "encoder.pt").stat().st_size


def test_a_board_of_ones_own_is_compiled_for_and_advised_on(terminal):
    here = terminal.directory
    terminal.environment.ssc("encoder", "new", "mobilenet_v3_small", "-o", here / "encoder.pt")
    copied = (ROOT / "streamsplit_compile" / "cost" / "targets" / "rpi4.toml").read_text()
    (here / "my-board.toml").write_text(copied.replace('name = "rpi4"', 'name = "my-board"'))
    terminal.types("ssc compile encoder.pt --targets my-board.toml,m2 -o my-bundle/")
    assert "my-board over lte: " in terminal.types("ssc advise my-bundle/ --targets my-board.toml --link lte")


OTHER_WEIGHTS = """
import sys, torch
encoder = torch.load(sys.argv[1], weights_only=True)
for tensor in encoder["state_dict"].values():
    if tensor.is_floating_point():
        tensor.mul_(1.01)
torch.save(encoder, sys.argv[2])
"""


def test_a_bundle_compiled_there_embeds_as_the_encoder_does(toy_terminal, toy_model, tmp_path):
    environment, here = toy_terminal.environment, toy_terminal.directory
    shutil.rmtree(here / "bundle")
    environment.ssc("compile", here / "encoder.pt", "--targets", "rpi4", "--cuts", "one,two", "-o", here / "bundle")
    assert embedding_error(environment, here / "bundle", toy_model, tmp_path) <= 1e-4


def test_tables_are_trained_judged_and_explained(toy_terminal):
    terminal, here = toy_terminal, toy_terminal.directory
    profile = here / "profile.json"
    terminal.environment.ssc("profile", here / "bundle", "--target", "rpi4", "-o", profile)
    write_trace(here / "traces" / "walk.csv")
    for command in (
        "ssc splitter train bundle/ --target rpi4 --profile profile.json -o table.json",
        "ssc splitter train bundle/ --target rpi4 --traces lte,wifi -o table.json",
        "ssc splitter train bundle/ --target rpi4 -o table.json",
        "ssc splitter train bundle/ --target rpi4 --traces traces/ --max-mb-per-hour 40 -o table.json",
        "ssc splitter train bundle/ --target rpi4 --traces lte --link lte -o table.json",
        "ssc splitter train bundle/ --target rpi4 --audio-format pcm16-stream -o table.json",
    ):
        (here / "table.json").unlink(missing_ok=True)
        terminal.types(command)
        assert read_table(here / "table.json").target == "rpi4"
    assert "optimum" in terminal.types("ssc splitter eval table.json")
    explained = terminal.types(
        "ssc splitter explain table.json --at bandwidth_mbps=2,cpu=0.3,rtt_ms=60,uncertainty=0.4"
    )
    assert "log_mel" in explained

    device = ["edge", "run", "--bundle", here / "bundle", "--state", here / "state", "--source", here / "file.wav"]
    terminal.environment.ssc(*device, "--no-realtime", "--results", here / "results.jsonl")
    windows = len((here / "results.jsonl").read_text().splitlines())
    assert f"{windows} windows" in terminal.types("ssc splitter replay results.jsonl table.json")
