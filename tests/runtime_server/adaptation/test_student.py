"""One recipient's windows: which train and which judge, when something is sent, what happens to what is bad."""

import numpy as np
import pytest
import torch
from adapting import adapt
from toys import Tiny

from runtime_edge.inference.prefix import Prefix
from runtime_server.adaptation.adaptation_judge import LabelledWindows
from runtime_server.adaptation.make_method import method_maker
from runtime_server.adaptation.student import HELD_OUT, LEAST_JUDGES, Student
from streamsplit_compile.encoder.segment import run_segments

ENOUGH = HELD_OUT * LEAST_JUDGES


class Moving:
    """A method that moves every layer in the same way, and notes what it is given."""

    def __init__(self, classifier, by, given):
        self.classifier, self.by, self.given = classifier, by, given

    def update(self, windows):
        self.given.append(windows)
        with torch.no_grad():
            for name, value in self.classifier.adaptable().items():
                value.add_(self.by(value) if name.endswith("bias") else 0)


def noise(value):
    return 30 * torch.randn(value.shape, generator=torch.Generator().manual_seed(len(value)))


@pytest.fixture
def student(taught, tiny_encoder, recipient):
    """`student(by, sent)`: moved by `by` with every step; `student.given` is what trains it. `known`: some sounds."""

    def make(by, sent=(), known=None, start=0):
        given, made = [], []

        def method(generation, whose, classifier, labelled, start):
            made.append((generation.number, whose))
            return Moving(classifier, by, given)

        new = Student(recipient, taught.newest, tiny_encoder.graph, method, known, sent, 60.0, start)
        new.given, new.made = given, made
        return new

    return make


@pytest.fixture
def many():
    """(512, 1024) windows."""
    return torch.from_numpy(np.random.default_rng(5).standard_normal((512, 1024)).astype(np.float32))


def heard(student, windows, now=0.0):
    """What is sent after which window."""
    found = {}
    for place, window in enumerate(windows):
        student.hear(window[None])
        if (adaptation := student.attempt(now)) is not None:
            found[place] = adaptation
    return found


def test_one_window_in_eight_judges_and_never_trains(student, many):
    one = student(lambda value: 0.01)
    heard(one, many[:300])
    trained = torch.cat(one.given)
    judging = torch.arange(300) % HELD_OUT == HELD_OUT - 1
    torch.testing.assert_close(trained, many[:300][~judging][: len(trained)], rtol=0, atol=0)
    assert len(trained) == 256
    assert one.counts == {"training": 256, "judging": 300 // HELD_OUT}


def test_an_adaptation_comes_once_there_is_enough_to_judge_by_and_then_only_at_intervals(student, many):
    one = student(lambda value: 0.01)
    (place,) = heard(one, many[:400], now=100.0)
    assert place == ENOUGH - 1
    assert heard(one, many[400:440], now=159.0) == {}
    (again,) = heard(one, many[440:480], now=161.0).values()
    assert again.layers


def test_what_is_sent_is_what_was_trained(student, many, adaptable_bundle):
    one = student(lambda value: 0.01)
    ((place, adaptation),) = heard(one, many[:200]).items()
    steps = (place + 1 - (place + 1) // HELD_OUT) // 32
    assert {layer.name for layer in adaptation.layers} == {"stem.1", "down.1", "residual.bn"}
    for layer in adaptation.layers:
        scale, shift = layer.arrays()
        np.testing.assert_allclose(scale, 1.0)
        np.testing.assert_allclose(shift, 0.01 * steps, rtol=1e-3)
    Prefix(adaptable_bundle, "onnx-fp32", adaptation=adaptation).self_test()


def test_nothing_is_sent_where_nothing_has_changed(student, many):
    assert heard(student(lambda value: 0.0), many) == {}
    one = student(lambda value: 0.01)
    assert len(heard(one, many[:ENOUGH])) == 1
    assert one.attempt(1e6) is None, "no step since"


@pytest.fixture
def known(recipient):
    """Sounds that are labelled as the compiled encoder labels them, so that hardly any change is good."""
    windows = torch.from_numpy(np.random.default_rng(9).standard_normal((64, 1024)).astype(np.float32))
    with torch.no_grad():
        truth = recipient.head.scores(Tiny()(windows).numpy()).argmax(1)
    return LabelledWindows(windows.numpy(), truth)


def test_what_is_worse_is_refused_and_training_goes_on_from_what_devices_have(student, many, known):
    moves = iter([noise] * 3 + [lambda value: 0.0] * 50)
    one = student(lambda value: next(moves)(value), known=known)
    assert heard(one, many[:ENOUGH]) == {}
    assert one.counts["refused"] == 1
    assert len(one.made) == 2, "a new method"
    assert heard(one, many[ENOUGH:], now=61.0) == {}, "the layers are as devices have them: nothing to send"
    assert one.counts["refused"] == 1
    assert one.counts["withdrawn"] == 0


def test_what_devices_have_is_taken_back_if_it_is_worse_than_the_compiled_weights(
    student, many, known, tiny_encoder, adaptable_bundle
):
    sent = adapt(tiny_encoder.graph.module, adaptable_bundle, seed=4)[1].layers
    one = student(noise, sent=sent, known=known)
    (adaptation,) = heard(one, many[:ENOUGH]).values()
    assert (adaptation.layers, adaptation.self_tests) == ((), {})
    assert one.counts["withdrawn"] == 1
    adaptation.check_fits(adaptable_bundle.manifest, "onnx-fp32", "test")


def test_a_method_begins_at_the_compiled_layers_and_trains_from_those_that_devices_have(
    taught, tiny_encoder, recipient, many, adaptable_bundle
):
    sent, began, trained = adapt(tiny_encoder.graph.module, adaptable_bundle)[1].layers, [], []

    class Noting:
        def __init__(self, generation, whose, classifier, labelled, start):
            self.classifier = classifier
            began.append(self.weight())

        def weight(self):
            return self.classifier.adaptable()["graph.stem.1.weight"].detach().clone().numpy()

        def update(self, windows):
            trained.append(self.weight())

    one = Student(recipient, taught.newest, tiny_encoder.graph, Noting, None, sent, 0.0)
    heard(one, many[:40])
    compiled = tiny_encoder.tensors["stem.1.weight"]
    np.testing.assert_allclose(began, [compiled])
    np.testing.assert_allclose(trained, [compiled * sent[0].arrays()[0]], rtol=1e-6)


@pytest.mark.parametrize(("name", "start"), [("cema", 0), ("joint", 0), ("joint", 1)])
def test_a_taught_method_trains_and_sends(name, start, taught, larger, tiny_encoder, recipient, many, adaptable_bundle):
    make = method_maker(name, larger, 0)
    one = Student(recipient, taught.newest, tiny_encoder.graph, make, None, (), 0.0, start)
    found = heard(one, at_cut(taught, start, many))
    assert found
    assert one.counts["training"] == 448
    for adaptation in found.values():
        adaptation.check_fits(adaptable_bundle.manifest, "onnx-fp32", "test")
        Prefix(adaptable_bundle, "onnx-fp32", adaptation=adaptation).self_test()


def at_cut(generations, cut, windows):
    """What devices send at a cut."""
    with torch.no_grad():
        return run_segments(generations.newest.model.segments[:cut], windows) if cut else windows


def test_of_a_device_that_sends_no_audio_what_is_behind_its_cut_is_trained(student, taught, many, adaptable_bundle):
    activations = at_cut(taught, 1, many[:128])
    one = student(lambda value: 0.01, start=1)
    (found,) = heard(one, activations).values()
    training = torch.arange(128) % HELD_OUT != HELD_OUT - 1
    torch.testing.assert_close(torch.cat(one.given), activations[training][:96], rtol=0, atol=0)
    assert {layer.name for layer in found.layers} == {"down.1", "residual.bn"}
    assert {layer.block for layer in found.layers} <= set(adaptable_bundle.manifest.info.blocks[1:])
    for layer in found.layers:
        scale, shift = layer.arrays()
        np.testing.assert_array_equal(scale, 1)
        np.testing.assert_allclose(shift, 0.03, rtol=1e-3, err_msg="three steps")
    assert set(found.self_tests) == {"onnx-fp32", "onnx-fp16", "onnx-int8"}
    Prefix(adaptable_bundle, "onnx-fp32", adaptation=found).self_test()


def test_where_nothing_can_be_adapted_behind_a_cut_windows_are_counted(taught, tiny_encoder, recipient, many):
    one = Student(recipient, taught.newest, tiny_encoder.graph, method_maker("tent", None, 0), None, (), 0.0, 3)
    assert not heard(one, at_cut(taught, 3, many[:40]))
    assert one.counts == {"unused": 40}
