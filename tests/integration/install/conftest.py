"""Environments with the wheel and some extras; a module that names `EXTRAS` shares one among its tests."""

import shutil

import harness
import pytest
import sounds
from installed import Environment, Terminal, brought, build_wheel


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture
def install(wheel, tmp_path):
    """`install(extras)` makes an environment; it is removed after the test."""
    made = []

    def install(extras=""):
        made.append(Environment.made(tmp_path / "environment", wheel, extras))
        return made[-1]

    yield install
    for environment in made:
        environment.remove()


@pytest.fixture(scope="module")
def environment(request, wheel, tmp_path_factory):
    """With the module's `EXTRAS`, which bring `BRINGS` and nothing else."""
    made = Environment.made(tmp_path_factory.mktemp("environment") / "ssc", wheel, request.module.EXTRAS)
    assert brought(made) == request.module.BRINGS
    yield made
    made.remove()


@pytest.fixture
def terminal(request, environment, tmp_path):
    """In a directory with the recordings that the pages speak of."""
    directory = tmp_path / "here"
    recordings = directory / "recordings"
    recordings.mkdir(parents=True)
    for seed in range(2):
        harness.write_wav(recordings / f"{seed}.wav", 6.0, seed=seed)
    shutil.copy(recordings / "0.wav", directory / "file.wav")
    sounds.write_clips(directory / "clips")
    return Terminal(environment, request.module.EXTRAS, directory)


@pytest.fixture
def toy_terminal(terminal, toy):
    """The same with a small `encoder.pt`, and `bundle/` compiled from it."""
    shutil.copy(toy / "encoder.pt", terminal.directory)
    shutil.copytree(toy / "bundle", terminal.directory / "bundle")
    return terminal
