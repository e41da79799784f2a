"""What is trained computes what the compiled encoders do, and changing it changes no other."""

from dataclasses import replace

import msgspec
import numpy as np
import torch
from torch.nn import functional
from toys import Tiny

from runtime_server.adaptation.trained_encoders import TrainedEncoder, teacher
from streamsplit_compile.encoder.graph import EncoderGraph


def test_a_copy_is_the_encoder_and_has_weights_of_its_own(tiny_encoder, windows):
    one, other = TrainedEncoder(tiny_encoder.graph), TrainedEncoder(tiny_encoder.graph)
    with torch.no_grad():
        expected = Tiny()(windows)
        torch.testing.assert_close(one(windows), expected, atol=1e-5, rtol=0)
        one.get_parameter(f"{TrainedEncoder.LAYERS}stem.1.weight").mul_(2)
        assert not torch.allclose(one(windows), expected, atol=1e-3)
        torch.testing.assert_close(other(windows), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(tiny_encoder.graph.module(windows), expected, atol=1e-5, rtol=0)


def test_an_encoder_for_one_window_at_a_time_runs_window_by_window(tiny_encoder, windows):
    graph = tiny_encoder.graph
    one_by_one = TrainedEncoder(EncoderGraph(graph.module, graph.candidates, dynamic_batch=False))
    with torch.no_grad():
        torch.testing.assert_close(one_by_one(windows), Tiny()(windows), atol=1e-5, rtol=0)


def test_a_teacher_is_the_larger_encoder_its_map_and_the_head(larger, taught, recipient, windows):
    aligned = taught.newest.larger
    made = teacher(larger.graph, aligned, recipient.head)
    with torch.no_grad():
        mapped = functional.normalize((Tiny(7)(windows) - aligned.mean) @ aligned.weights + aligned.bias, dim=1)
        scores = made(windows).softmax(1).numpy()
    np.testing.assert_allclose(scores, recipient.head.scores(mapped.numpy()), atol=1e-4)
    assert {name.split(".")[-2] for name in made.adaptable()} == {"1", "bn"}, "its norms alone can be trained"
    loss = made(windows).square().mean()
    assert all(slope is not None for slope in torch.autograd.grad(loss, list(made.adaptable().values())))


def test_a_teacher_with_a_head_of_its_own_answers_by_that_in_the_order_of_the_devices_head(
    larger, taught, recipient, windows
):
    own = msgspec.structs.replace(
        recipient.head, labels=("d", "c", "b", "a", "e"), weights=np.arange(30, dtype="<f4").tobytes(),
        bias=np.arange(5, dtype="<f4").tobytes(), thresholds=(0.5,) * 5, temperature=2.0,
    )  # fmt: skip
    aligned = replace(taught.newest.larger, head=own)
    made = teacher(larger.graph, aligned, recipient.head)
    with torch.no_grad():
        embeddings = Tiny(7)(windows)
        expected = own.logits(embeddings.numpy())[:, [3, 2, 1, 0]]
        np.testing.assert_allclose(made(windows).numpy(), expected / 2.0, atol=1e-3)
    np.testing.assert_allclose(aligned.logits(windows, recipient.head).numpy(), expected, atol=1e-3)
    stranger = msgspec.structs.replace(recipient.head, labels=("a", "b", "c", "x"))
    assert aligned.places(stranger) is None
    mapped = recipient.head.logits(aligned.mapped(embeddings).numpy())
    np.testing.assert_allclose(aligned.logits(windows, stranger).numpy(), mapped, atol=1e-4)
