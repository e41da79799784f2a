"""Frames of adapted devices: whose adaptation may be used by whom, after a restart as well."""

import msgspec
import numpy as np
import pytest
import torch
from adapting import adapt

from runtime_edge.formats.wire import NO_MODEL
from runtime_server.adaptation.known_adaptations import KEPT, KnownAdaptations, fits


@pytest.fixture
def known(tmp_path, adaptable):
    return KnownAdaptations(tmp_path / "adaptations", adaptable)


@pytest.fixture
def adaptations(tiny_encoder, adaptable_bundle):
    """`(changed encoder, adaptation)` by seed."""
    return lambda seed=0: adapt(tiny_encoder.graph.module, adaptable_bundle, seed)


def test_frames_are_completed_with_the_adapted_weights_at_every_cut(known, adaptable, adaptations, windows):
    changed, adaptation = adaptations()
    known.add("pi-1.rpi4", adaptation)
    served = known.served(adaptable.newest, adaptation.number)
    assert (served.number, served.model_number) == (1, adaptation.number)
    with torch.inference_mode():
        expected, activation = changed(windows), windows
        for cut, segment in enumerate(served.model.segments):
            np.testing.assert_allclose(served.complete(cut, activation).numpy(), expected.numpy(), atol=1e-5)
            activation = segment(activation)
    assert known.served(adaptable.newest, adaptation.number) is served, "made once"
    compiled = adaptable.newest.complete(0, windows)
    assert not torch.allclose(compiled, expected, atol=1e-2), "which changes something"


def test_only_the_device_that_it_was_made_for_may_run_it_or_all_of_them(known, adaptations):
    own, shared = adaptations(1)[1], adaptations(2)[1]
    known.add("pi-1.rpi4", own)
    known.add("_all.rpi4", shared)
    numbers = own.number, shared.number
    assert [known.may_run("pi-1", number) for number in numbers] == [True, True]
    assert [known.may_run("pi-2", number) for number in numbers] == [False, True]
    assert not known.may_run("pi-1", 7)
    known.add("pi-2.rpi4", own)
    assert known.may_run("pi-2", own.number)
    assert known.may_run("pi-1", own.number)


def test_a_restart_knows_the_last_few(known, adaptable, adaptations, tmp_path):
    made = [adaptations(seed)[1] for seed in range(KEPT + 2)]
    for adaptation in made:
        known.add("pi-1.rpi4", adaptation)
    again = KnownAdaptations(tmp_path / "adaptations", adaptable)
    for one in (known, again):
        assert [one.may_run("pi-1", adaptation.number) for adaptation in made] == [False] * 2 + [True] * KEPT
        assert one.latest("pi-1.rpi4") == made[-1]
        assert one.latest("pi-2.rpi4") is None
    assert again.served(adaptable.newest, made[-1].number) is not None


def test_other_weights_than_it_was_made_for_do_not_complete(known, adaptable, adaptations):
    _, adaptation = adaptations()
    other = msgspec.structs.replace(adaptation, generation=2)
    known.add("pi-1.rpi4", other)
    assert (fits(adaptation, adaptable.newest), fits(other, adaptable.newest)) == (True, False)
    assert known.served(adaptable.newest, other.number) is None
    assert known.served(adaptable.newest, 12) is None


def test_one_that_takes_another_back_changes_no_weights(known, adaptable, adaptations):
    _, adaptation = adaptations()
    back = msgspec.structs.replace(adaptation, layers=(), self_tests={})
    known.add("pi-1.rpi4", adaptation)
    known.add("pi-1.rpi4", back)
    assert known.latest("pi-1.rpi4") == back
    assert not known.may_run("pi-1", back.number)
    assert known.may_run("pi-1", adaptation.number), "its frames may still be under way"


def test_a_damaged_file_is_named_and_the_others_are_read(known, adaptable, adaptations, tmp_path, caplog):
    for device in ("pi-1", "pi-2"):
        known.add(f"{device}.rpi4", adaptations()[1])
    path = tmp_path / "adaptations" / "pi-1.rpi4.json"
    path.write_bytes(path.read_bytes()[:-9])
    again = KnownAdaptations(tmp_path / "adaptations", adaptable)
    assert str(path) in caplog.text
    assert [again.latest(f"{device}.rpi4") is None for device in ("pi-1", "pi-2")] == [True, False]


def test_recipients_beyond_a_number_are_forgotten_with_their_files(known, adaptations, tmp_path, monkeypatch):
    monkeypatch.setattr("runtime_server.adaptation.known_adaptations.MAX_RECIPIENTS", 2)
    for device in ("pi-1", "pi-2", "pi-1", "pi-3"):
        known.add(f"{device}.rpi4", adaptations()[1])
    assert [known.latest(f"pi-{place}.rpi4") is None for place in (1, 2, 3)] == [False, True, False]
    assert sorted(path.name for path in (tmp_path / "adaptations").glob("*.json")) == [
        "pi-1.rpi4.json",
        "pi-3.rpi4.json",
    ]


def test_the_blocks_in_front_of_the_first_adapted_layer_are_as_compiled(known, adaptable, adaptations):
    everywhere = adaptations()[1]
    behind = msgspec.structs.replace(everywhere, layers=everywhere.layers[1:])
    known.add("pi-1.rpi4", everywhere)
    known.add("pi-2.rpi4", behind)
    generation = adaptable.newest

    def found(number):
        return [known.is_compiled(generation, number, cut) for cut in range(4)]

    assert found(NO_MODEL) == found(generation.model_number) == [True] * 4
    assert found(everywhere.number) == [True, False, False, False]
    assert found(behind.number) == [True, True, False, False]
    assert found(7) == [False] * 4, "of which nothing is known"
