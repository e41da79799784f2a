"""What a program may import, with its signatures: a change here is a change for users, and stands in CHANGELOG."""

import inspect
from importlib.metadata import version
from typing import Literal, get_args, get_origin, get_type_hints

import pytest

import runtime_edge
import runtime_server
import streamsplit_compile
import streamsplit_models
from runtime_edge.api import EdgeEncoder
from runtime_edge.config import DeviceConfig
from runtime_edge.run_settings import RunSettings
from runtime_server.serving.serve_settings import ServeSettings
from runtime_server.serving.server_settings import ServerSettings
from streamsplit_compile.cost.radios import DEFAULT_LINK

PACKAGES = (runtime_edge, runtime_server, streamsplit_compile, streamsplit_models)
SIGNATURES = {
    "runtime_edge.open": "(path, pub=None, variant='auto', threads=1, head=None, exit=None)",
    "runtime_edge.run": "(source, on_result, **settings)",
    "runtime_server.serve": "(encoder, bundle, on_started=None, *, factory=None, sample_rate=None, front_end=None, "
    "unsafe_load=False, **settings)",
    "runtime_server.train_head": "(clips, bundle, out=None, *, gate_db=-60.0, seed=0, key=None, progress=None)",
    "streamsplit_compile.advise": "(bundle, targets=None, link='wifi', profile=None)",
    "streamsplit_compile.compile": "(encoder, out, *, targets=('rpi4', 'm2'), cuts='auto', formats=('onnx',), "
    "precisions=('fp32',), calibrate=None, windows=16, bottlenecks=False, link='wifi', profile=None, seed=0, "
    "generation=1, keep_norms=False, adaptable=False, key=None, factory=None, sample_rate=None, front_end=None, "
    "unsafe_load=False, progress=None)",
}
MODULES = ["PRESETS", "Encoder", "FrontEnd", "GlobalAveragePool", "GlobalMaxPool", "LogMel", "Normalize", "Waveform",
           "input_norm"]  # fmt: skip


def signature(function):
    """Names and defaults, without types."""
    found = inspect.signature(function)
    bare = [part.replace(annotation=part.empty) for part in found.parameters.values()]
    return str(found.replace(parameters=bare, return_annotation=found.empty))


def test_the_public_functions_and_their_signatures_are_these():
    found = {
        f"{package.__name__}.{name}": signature(getattr(package, name))
        for package in PACKAGES
        for name in package.__all__
        if inspect.isfunction(getattr(package, name)) and package is not streamsplit_models
    }
    assert found == SIGNATURES


def test_every_package_says_what_is_public():
    names = {package.__name__: package.__all__ for package in PACKAGES}
    assert names == {
        "runtime_edge": ["RunSettings", "__version__", "open", "run"],
        "runtime_server": ["ServeSettings", "__version__", "serve", "train_head"],
        "streamsplit_compile": ["__version__", "advise", "compile"],
        "streamsplit_models": MODULES,
    }
    for package in PACKAGES:
        for name in package.__all__:
            assert getattr(package, name).__doc__, f"{package.__name__}.{name}"
    assert {package.__version__ for package in PACKAGES[:3]} == {version("streamsplit-audio")}


def test_what_an_open_encoder_has_is_this():
    assert [name for name in dir(EdgeEncoder) if not name.startswith("_")] == ["classify", "embed", "labels"]
    assert signature(EdgeEncoder.embed) == signature(EdgeEncoder.classify) == "(self, audio, sample_rate=None)"


@pytest.mark.parametrize(("typed", "declared"), [(RunSettings, DeviceConfig), (ServeSettings, ServerSettings)])
def test_the_settings_of_a_call_are_those_of_the_command(typed, declared):
    given, real = get_type_hints(typed), get_type_hints(declared)
    real.pop("source", None)
    assert list(given) == list(real)
    assert typed.__required_keys__ == frozenset()
    for name, hint in given.items():
        assert kinds(hint) == kinds(real[name]), name


def kinds(hint):
    """The types of a hint by their names: a path may be given as text, and several as any sequence."""
    if get_origin(hint) is Literal:
        return set(get_args(hint))
    if get_args(hint) and (get_origin(hint) is tuple or "Sequence" in str(hint)):
        return {"several texts"}
    if get_origin(hint) is not None and "PathLike" in str(get_origin(hint)):
        return {"path"}
    if not get_args(hint):
        return {"path" if hint.__name__ == "Path" else hint.__name__}
    found = set().union(*map(kinds, get_args(hint)))
    return found - {"str"} if "path" in found else found


def test_the_usual_link_is_the_compilers():
    for call in (streamsplit_compile.compile, streamsplit_compile.advise):
        assert inspect.signature(call).parameters["link"].default == DEFAULT_LINK
