"""What `make wheel` builds, and how it gets on with a `models` package of the user's own."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from installed import build_wheel
from packaging.requirements import Requirement

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

REPOSITORY = Path(__file__).parents[2]
PACKAGES = ["runtime_edge", "runtime_server", "streamsplit_compile", "models/streamsplit_models"]
NET = """\
import torch

def build():
    import models.size  # only now, as many a repository does
    module = torch.nn.Linear(16000, models.size.WIDTH)
    module.window_samples = module.sample_rate = 16000
    return module
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Path:
    """An environment with the wheel, not the checkout; what it depends on is borrowed from this Python's."""
    directory = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", directory], check=True, timeout=300)
    python = directory / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(pip, check=True, timeout=300)
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(subprocess.check_output([python, "-c", where], text=True, timeout=60).strip())
    # A path file in a directory that comes by a path file is not read: not the checkout's either.
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    return directory / "bin"


def test_the_wheel_holds_the_four_packages_and_nothing_else(wheel):
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *PACKAGES]
    try:
        files = subprocess.check_output(listed, cwd=REPOSITORY, text=True, stderr=subprocess.DEVNULL).split()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    expected = {name.removeprefix("models/") for name in files if (REPOSITORY / name).exists()}
    names = zipfile.ZipFile(wheel).namelist()
    information = {name for name in names if name.startswith("streamsplit_audio-")}
    assert set(names) - information == expected
    assert {"LICENSE", "METADATA", "entry_points.txt"} <= {Path(name).name for name in information}
    packages = [Path(package).name for package in PACKAGES]
    assert {f"{package}/py.typed" for package in packages} <= expected
    assert "streamsplit_compile/cost/targets/rpi4.toml" in expected


def test_what_measures_and_draws_is_behind_an_extra_of_its_own_and_not_part_of_a_servers(wheel):
    with zipfile.ZipFile(wheel) as file:
        (name,) = (name for name in file.namelist() if name.endswith("METADATA"))
        metadata = message_from_bytes(file.read(name))
        entries = file.read(name.replace("METADATA", "entry_points.txt")).decode()
    requirements = [Requirement(text) for text in metadata.get_all("Requires-Dist")]

    def needed(extra: str) -> set[str]:
        chosen = [one for one in requirements if one.marker and one.marker.evaluate({"extra": extra})]
        own = {name for one in chosen if one.name == metadata["Name"] for name in one.extras}
        return {one.name for one in chosen}.union(*map(needed, own))

    assert "torch" in needed("server")
    assert {"matplotlib", "scikit-learn"} & needed("server") == set()
    assert {"matplotlib", "torch"} < needed("demo") < needed("bench")
    assert {"bench = runtime_server.lab:COMMANDS", "demo = runtime_server.demo:COMMANDS"} <= set(entries.splitlines())


def test_demo_and_bench_name_the_extra_that_they_lack(environment, tmp_path):
    code = (
        "import sys; sys.modules |= dict.fromkeys(['matplotlib', 'sklearn'])\n"
        "from streamsplit_compile.cli.main import main; main(sys.argv[1:])"
    )
    for command, extra in (["demo"], "demo"), (["bench", "run", "lte"], "bench"):
        line = [environment / "python", "-c", code, *command]
        done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=200)
        assert done.returncode == 2, done.stderr
        assert f"[{extra}]" in done.stderr


def test_the_same_sources_give_the_same_bytes(wheel, tmp_path):
    assert build_wheel(tmp_path).read_bytes() == wheel.read_bytes()


@pytest.fixture(params=["a package", "a folder without __init__.py"])
def project(request, tmp_path) -> Path:
    """A user's directory with a `models` of its own."""
    models = tmp_path / "project" / "models"
    (models / "mn").mkdir(parents=True)
    (models / "mn" / "model.py").touch()
    (models / "net.py").write_text(NET)
    (models / "size.py").write_text("WIDTH = 8\n")
    if request.param == "a package":
        (models / "__init__.py").touch()
    return models.parent


@pytest.mark.parametrize("place", ["working directory", "PYTHONPATH"])
def test_a_models_of_the_users_own_is_no_hindrance(environment, project, tmp_path, place):
    import torch

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if place == "PYTHONPATH":
        variables["PYTHONPATH"] = str(project)
    cwd = elsewhere if place == "PYTHONPATH" else project
    torch.save(torch.nn.Linear(16000, 8).state_dict(), cwd / "net.pt")

    def run(*command: str, status: int = 0) -> str:
        line = [environment / command[0], *command[1:]]
        done = subprocess.run(line, cwd=cwd, env=variables, capture_output=True, text=True, timeout=200)
        assert done.returncode == status, done.stderr
        return done.stdout + done.stderr

    origin = run("python", "-c", "import streamsplit_compile, streamsplit_models as m; print(m.__file__)")
    assert Path(origin.strip()).is_relative_to(environment.parent)
    assert "resnet18" in run("ssc", "encoder", "new", "resnet18", "-o", "encoder.pt")
    assert run("python", "-m", "streamsplit_compile", "--version") == run("ssc", "--version")
    run("ssc", "compile", "net.pt", "--factory", "models.net:build", "--targets", "rpi4", "-o", "bundle")
    assert (cwd / "bundle" / "manifest.json").exists()
    message = run("python", "-m", "runtime_server", "encoder.pt", "nowhere", "--state", "state", status=2)
    assert "ssc: nowhere" in message
