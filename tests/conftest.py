"""Bundles that several tests read: compiled once from real encoders, never changed in place."""

import shutil
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# A busy machine is slow, not wrong; what hangs is ended by pytest-timeout.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

sys.path.insert(0, str(Path(__file__).parent / "data"))  # for `--factory toys:Tiny`

INTEGRATION = Path(__file__).parent / "integration"
DEAR = {"broker", "play", "resnet_bundle", "resnet_encoder"}
"""Fixtures that start a program or compile a real encoder."""


def pytest_collection_modifyitems(items):
    """What `make check` leaves out by itself; files that take long for another reason say so in their `pytestmark`."""
    for item in items:
        if INTEGRATION in item.path.parents or DEAR.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.integration)


@pytest.fixture(scope="session")
def signing_key():
    from runtime_edge.formats.minisign import SecretKey

    return SecretKey(bytes(range(8)), bytes(range(32)))


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory):
    """A plain state_dict of `toys:Tiny`."""
    import torch
    from toys import Tiny

    path = tmp_path_factory.mktemp("tiny") / "tiny.pt"
    torch.save(Tiny().state_dict(), path)
    return path


@pytest.fixture(scope="session")
def tiny_encoder(tiny_file):
    from streamsplit_compile.encoder.encoders import load_encoder

    return load_encoder(tiny_file, "toys:Tiny")


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory, tiny_encoder, signing_key):
    """The tiny encoder in four blocks, for two targets, signed. A `Bundle`; copy its directory to change it."""
    from streamsplit_compile.bundle.compiler import CompileOptions, compile_encoder
    from streamsplit_compile.cost.targets import load_target

    options = CompileOptions(
        [load_target("rpi4"), load_target("m2")], cuts="stem,down,residual", calibration_windows=4, key=signing_key
    )
    return compile_encoder(tiny_encoder, options, tmp_path_factory.mktemp("bundles") / "small")


@pytest.fixture
def bundle_copy(small_bundle, tmp_path):
    """A directory with the small bundle's files, to be damaged."""
    return Path(shutil.copytree(small_bundle.path, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def resnet_file(tmp_path_factory):
    """A checkpoint as `ssc encoder new resnet18` writes it."""
    from streamsplit_compile.encoder.encoders import new_encoder, save_checkpoint

    path = tmp_path_factory.mktemp("resnet") / "encoder.pt"
    save_checkpoint("resnet18", {}, new_encoder("resnet18")[0], path)
    return path


@pytest.fixture(scope="session")
def resnet_encoder(resnet_file):
    from streamsplit_compile.encoder.encoders import load_encoder

    return load_encoder(resnet_file)


@pytest.fixture(scope="session")
def resnet_bundle(tmp_path_factory, resnet_encoder):
    """ResNet-18 with the automatic cuts, for one target, not signed."""
    from streamsplit_compile.bundle.compiler import CompileOptions, compile_encoder
    from streamsplit_compile.cost.targets import load_target

    options = CompileOptions([load_target("rpi4")], calibration_windows=4)
    return compile_encoder(resnet_encoder, options, tmp_path_factory.mktemp("bundles") / "resnet")
