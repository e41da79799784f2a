"""A device that answers by itself and asks for help where it is unsure, and a server with a larger encoder."""

import warnings

import harness
import numpy as np
import torch
from click.testing import CliRunner

from runtime_edge.formats.records.head import Head
from runtime_edge.formats.wire import decode_frame
from streamsplit_compile.cli.main import ssc


def larger(path):
    """Another encoder for the same windows, with weights of its own."""
    model = harness.Toy()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(7)
        for parameter in model.projection.parameters():
            parameter.copy_(torch.randn_like(parameter))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about its own archives
        program = torch.export.export(model, (torch.zeros(1, harness.WINDOW),))
        torch.export.save(program, path.with_suffix(".pt2"))
    path.with_suffix(".pt2").rename(path)
    return path, model


def undecided(info):
    """A head whose scores hardly depend on the embedding: it is unsure of every window."""
    dim = info.encoder.embedding_dim
    return Head(
        encoder=info.encoder.id,
        embedding_dim=dim,
        generations=(1, 1),
        model=None,
        temperature=1.0,
        labels=("up", "down"),
        scores_by="softmax",
        thresholds=(0.4, 0.4),
        validation=None,
        created_by="test",
        bias=np.zeros(2, "<f4").tobytes(),
        weights=np.random.default_rng(0).normal(size=(2, dim)).astype("<f4").tobytes(),
    )


def test_a_larger_encoder_helps_where_the_device_is_unsure(start, toy, toy_bundle, toy_model, tmp_path):
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    harness.write_wav(recordings / "room.wav", 60.0, seed=40)
    file, model = larger(tmp_path / "larger.pt")
    server = start.server("--no-training", "--larger", file, "--calibrate", recordings)
    server.ask(lambda hub: hub.put_head(undecided(toy_bundle.manifest.info), server.key, "rpi4", None))
    source = harness.write_wav(tmp_path / "audio.wav", 6.0, seed=41)
    options = ("--cascade", "1", "--revise-above", "0", "--events", "off", "--deadline-ms", "60000")
    options += ("--audio-format", "flac")
    device = start.device(server, "pi-1", source, *options)
    report, results = device.finish(), device.results()
    frames = server.frames_of("pi-1")

    windows = harness.windows_of(source)
    first = [result for result in results if result["answer"] == "device"]
    final = [result for result in results if result["answer"] == "server"]
    assert [result["window"] for result in first] == list(range(len(windows)))
    revised = [result["window"] for result in final]
    assert len(revised) > 0.8 * len(windows), "all but what came before the head and what is the same to four digits"
    assert np.median(harness.cosines(first, windows, toy_model)) > 0.999
    assert {header.cut for frame in frames for header, _ in decode_frame(frame)} == {0}
    assert (report["windows_acked"] + report["windows_kept"], report["windows_lost"]) == (len(windows), 0)

    # What the server says, from the two encoders and a map that is fitted here.
    import soundfile

    audio = soundfile.read(recordings / "room.wav", dtype="float32")[0]
    heard = np.stack([audio[start:][: harness.WINDOW] for start in range(0, len(audio) - harness.WINDOW, harness.HOP)])
    with torch.inference_mode():
        given, own = model(torch.from_numpy(heard)).numpy(), toy_model(torch.from_numpy(heard)).numpy()
        asked, mine = (part(torch.from_numpy(windows[revised])).numpy() for part in (model, toy_model))
    scaled = (given - given.mean(0)) / given.std(0)
    weights = np.linalg.solve(scaled.T @ scaled + 100 * np.eye(16), scaled.T @ (own - own.mean(0)))
    mapped = (asked - given.mean(0)) / given.std(0) @ weights + own.mean(0)
    expected = mapped / np.linalg.norm(mapped, axis=1, keepdims=True) + 0.5 * mine
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    said = np.array([result["embedding"] for result in final])
    said /= np.linalg.norm(said, axis=1, keepdims=True)
    assert np.median((said * expected).sum(1)) > 0.999, "other windows of the same recording make nearly the same map"
    assert np.median((said * mine).sum(1)) < np.median((said * expected).sum(1))


def test_a_larger_encoder_that_cannot_help_is_refused_before_anything_starts(toy, tmp_path):
    arguments = ["server", "run", str(toy / "encoder.pt"), str(toy / "bundle"), "--state", str(tmp_path / "server")]
    said = CliRunner().invoke(ssc, [*arguments, "--larger", str(toy / "encoder.pt")])
    assert said.exit_code != 0
    assert str(said.exception).startswith("--larger: needs --calibrate")
