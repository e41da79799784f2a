"""The tiny encoder with all that a calibration gives its cuts."""

import pytest
import soundfile

from streamsplit_compile.bundle.calibrate import calibration_set_for
from streamsplit_compile.bundle.compiler import CompileOptions, compile_encoder
from streamsplit_compile.bundle.soundscape import soundscape
from streamsplit_compile.cost.targets import load_target


@pytest.fixture(scope="session")
def recordings(tmp_path_factory):
    """Two minutes of synthesised sound at the tiny encoder's rate."""
    path = tmp_path_factory.mktemp("recordings")
    soundfile.write(path / "room.wav", 0.9 * soundscape(120, 4000, 3), 4000)
    return path


@pytest.fixture(scope="session")
def options(recordings, signing_key):
    return CompileOptions(
        [load_target("rpi4")],
        cuts="stem,down",
        calibrate=recordings,
        formats=("onnx", "tflite"),
        precisions=("fp32", "fp16", "int8"),
        key=signing_key,
    )


@pytest.fixture(scope="session")
def bundle(tiny_encoder, options, tmp_path_factory):
    """Closed form, in both formats and three precisions."""
    return compile_encoder(tiny_encoder, options, tmp_path_factory.mktemp("bundles") / "pca")


@pytest.fixture(scope="session")
def windows(bundle):
    return calibration_set_for(bundle.manifest.info, None).windows
