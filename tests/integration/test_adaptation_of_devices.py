"""A server that adapts a device from the audio that it sends, and completes what the adapted device sends then."""

import harness
import msgspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from test_cascade import larger, undecided

from runtime_edge.formats import subjects
from runtime_edge.formats.records.adaptation import Adaptation
from runtime_edge.formats.records.envelope import open_record
from runtime_edge.formats.wire import decode_frame
from runtime_edge.inference.prefix import Prefix
from streamsplit_compile.bundle.compiler import CompileOptions, compile_encoder
from streamsplit_compile.cli.main import ssc
from streamsplit_compile.cost.targets import load_target
from streamsplit_compile.encoder.encoders import load_encoder


@pytest.fixture(scope="module")
def bundle(toy, tmp_path_factory):
    """The toy encoder, compiled so that it can be adapted."""
    options = CompileOptions([load_target("rpi4")], cuts="log_mel,one,two", adaptable=True, precisions=("int8",))
    path = tmp_path_factory.mktemp("adaptable") / "bundle"
    return compile_encoder(load_encoder(toy / "encoder.pt"), options, path)


def head_of(bundle):
    """A head of which the entropy depends on what it hears, so that there is something to learn."""
    return msgspec.structs.replace(undecided(bundle.manifest.info), temperature=0.3)


@pytest.fixture
def adapting(toy, bundle, tmp_path):
    """`adapting(*options)`: a server with a head for all devices."""
    started = []

    def start(*options):
        server = harness.Server(tmp_path, toy / "encoder.pt", bundle.path, "--no-training", *options)
        started.append(server)
        server.ask(lambda hub: hub.put_head(head_of(bundle), server.key, "rpi4", None))
        return server

    yield start
    for server in started:
        server.process.signal(9)


def adaptation_of(server, key):
    """What the broker has under a key, opened as a device does."""

    async def read(hub):
        bucket = await hub.stream.key_value(subjects.ADAPTATIONS)
        return (await bucket.get(key)).value

    record = open_record(server.ask(read), "adaptation", key, server.key.public, key)
    return Adaptation.from_json(record.body, key)


def adapted_toy(adaptation):
    """The encoder in torch, with the layers changed here."""
    model = harness.Toy()
    with torch.no_grad():
        for layer in adaptation.layers:
            norm = model.get_submodule(layer.name)
            scale, shift = map(torch.from_numpy, layer.arrays())
            norm.bias.copy_(scale * norm.bias + shift)
            norm.weight.mul_(scale)
    return model


def taught_by_hand(head, windows):
    """The encoder after TENT's published steps, written out, on what is sent: every eighth window judges instead."""
    model = harness.Toy()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    layers = [value.requires_grad_(True) for norm in (model.one[1], model.two[1]) for value in norm.parameters()]
    weights = torch.tensor(np.frombuffer(head.weights, "<f4").reshape(len(head.labels), -1)) / head.temperature
    steps = torch.optim.SGD(layers, lr=2.5e-3, momentum=0.9)
    heard = [window for place, window in enumerate(windows, 1) if place % 8]
    for start in range(0, len(heard) - 31, 32):
        logs = torch.log_softmax(model(torch.from_numpy(np.stack(heard[start : start + 32]))) @ weights.T, dim=1)
        steps.zero_grad()
        (-(logs.exp() * logs).sum(1)).mean().backward()
        steps.step()
    return model


def models_of(server, device):
    """The models that its frames name, in order."""
    return [header.model for frame in server.frames_of(device) for header, _ in decode_frame(frame)]


def play(tmp_path, server, source, *options, adapts=False):
    """A device that has heard all of a recording, and if it `adapts`, has been sent something meanwhile."""
    device = harness.Device(tmp_path, server, "pi-1", source, *options)
    try:
        if adapts:
            harness.until(lambda: server.status()["adaptation"]["sent"] > 0, "an adaptation")
        device.finish()
    finally:
        device.process.signal(9)
    return device


def test_a_signed_adaptation_comes_of_what_a_device_was_unsure_about(adapting, bundle, tmp_path):
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    harness.write_wav(recordings / "room.wav", 60.0, seed=40)
    file, _ = larger(tmp_path / "larger.pt")
    server = adapting("--larger", file, "--calibrate", recordings, "--adapt", "joint", "--adapt-least-s", "1")
    source = harness.write_wav(tmp_path / "audio.wav", 40.0, seed=41)
    options = ("--cascade", "1", "--events", "off", "--audio-format", "opus")
    device = harness.Device(tmp_path, server, "pi-1", source, *options)
    try:
        harness.until(lambda: server.status()["adaptation"]["sent"] > 0, "an adaptation")
    finally:
        device.process.signal(9)
    told = server.status()["adaptation"]
    assert told["windows"]["training"] >= 96
    assert told["bytes"] < 25_000 * told["sent"]
    adaptation = adaptation_of(server, "pi-1.rpi4")
    assert {layer.name for layer in adaptation.layers} <= {"one.1", "two.1"}
    for variant in ("onnx-fp32", "onnx-int8"):
        adaptation.check_fits(bundle.manifest, variant, "test")
        Prefix(bundle, variant, adaptation=adaptation).self_test()


def test_what_the_adapted_device_sends_is_completed_with_its_weights_after_a_restart_too(adapting, bundle, tmp_path):
    server = adapting("--adapt", "tent", "--adapt-least-s", "3600")
    server.put_table(harness.always(bundle, "rpi4", "waveform"))
    source = harness.write_wav(tmp_path / "audio.wav", 40.0, seed=41)
    device = play(tmp_path, server, source, adapts=True)
    adaptation = adaptation_of(server, "pi-1.rpi4")
    early = server.status()["adaptation"]["windows"]["unused"]  # before the server had found the device's head
    by_hand = taught_by_hand(head_of(bundle), harness.windows_of(source)[early : early + 128])
    found = adapted_toy(adaptation)
    for name in ("one.1", "two.1"):
        for part, rounding in (("weight", 2**-10), ("bias", 1e-5)):  # sent as float16, the weight as a factor near 1
            mine, theirs = (model.get_parameter(f"{name}.{part}").detach() for model in (found, by_hand))
            torch.testing.assert_close(mine, theirs, rtol=0.0, atol=rounding)
    moved = by_hand.two[1].bias.detach() - harness.Toy().two[1].bias.detach()
    assert moved.abs().max() > 5e-3, "there was something to find"
    models = models_of(server, "pi-1")
    assert set(models[-10:]) == {adaptation.number}
    assert set(models[:100]) != {adaptation.number}
    check(device.results()[-10:], source, adaptation)
    assert "foreign" not in server.status()["counters"]

    # Behind a cut as well, where the device has run its own adapted blocks.
    harness.restart(server)
    server.put_table(harness.always(bundle, "rpi4", "one"))
    short = harness.write_wav(tmp_path / "short.wav", 5.0, seed=42)
    results = play(tmp_path, server, short).results()
    assert {result["cut"] for result in results[-10:]} == {"one"}
    assert set(models_of(server, "pi-1")[-10:]) == {adaptation.number}
    check(results[-10:], short, adaptation)
    assert "foreign" not in server.status()["counters"]


def test_a_device_that_never_sends_audio_is_adapted_behind_its_privacy_floor(adapting, bundle, tmp_path):
    server = adapting("--adapt", "tent", "--adapt-least-s", "3600")
    server.put_table(harness.always(bundle, "rpi4", "one"))
    source = harness.write_wav(tmp_path / "audio.wav", 40.0, seed=43)
    device = play(tmp_path, server, source, "--min-cut", "one", adapts=True)
    adaptation = adaptation_of(server, "pi-1.rpi4")
    assert {layer.name for layer in adaptation.layers} == {"two.1"}
    moved = adaptation.layers[0].arrays()[1]
    assert np.abs(moved).max() > 1e-3, "there was something to find"
    cuts = {header.cut for frame in server.frames_of("pi-1") for header, _ in decode_frame(frame)}
    assert cuts == {2}, "log_mel, one"
    assert models_of(server, "pi-1")[-1] == adaptation.number
    check(device.results()[-10:], source, adaptation)
    assert "foreign" not in server.status()["counters"]


def check(results, source, adaptation):
    """The results are those of the adapted encoder, and not of the compiled one."""
    windows = harness.windows_of(source)
    assert {result["answer"] for result in results} == {"server"}
    mine = harness.cosines(results, windows, adapted_toy(adaptation))
    assert mine.min() > 0.999
    assert np.median(mine) > np.median(harness.cosines(results, windows, harness.Toy()))


def test_what_a_server_cannot_adapt_is_named_before_it_starts(toy, toy_bundle, bundle, tmp_path):
    def said(given, *options):
        where = [str(toy / "encoder.pt"), str(given.path), "--state", str(tmp_path / "server")]
        return str(CliRunner().invoke(ssc, ["server", "run", *where, *options]).exception)

    assert said(toy_bundle, "--adapt", "tent").endswith("cannot be adapted; compile it with --adaptable")
    assert said(bundle, "--adapt", "cema").startswith("--adapt cema: needs a teacher; give --larger")
    assert not (tmp_path / "server").exists()
