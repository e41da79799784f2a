"""What a device may send that still trains: what sound can make, however quiet calibration was."""

import pytest
import torch
from msgspec.structs import replace

from runtime_server.suffix.activation_limits import activation_limits


def test_what_devices_make_of_sound_is_in_range_and_what_is_far_from_it_or_no_number_is_not(
    generations, small_bundle, sounds, activation
):
    generation = generations.newest
    for cut in small_bundle.manifest.info.cuts:
        heard = torch.stack([torch.from_numpy(activation(sound, cut.index)) for sound in sounds])
        assert all(generation.in_range(cut.index, heard)), cut.name
        largest = float(heard.abs().max())
        for value in (30 * largest, -30 * largest, float("nan"), float("inf"), -float("inf")):
            spiked = heard.clone()
            spiked[1].view(-1)[-1] = value
            assert generation.in_range(cut.index, spiked) == [place != 1 for place in range(len(heard))], value


@pytest.mark.parametrize("at", [1, 4])
def test_a_range_that_calibration_saw_counts_beside_what_is_made_here(generations, small_bundle, at):
    info, segments = small_bundle.manifest.info, generations.newest.model.segments
    limits = activation_limits(info, segments)
    wide = replace(info.cuts[at].int8, scale=(1000 * info.cuts[at].int8.arrays(info.cuts[at].shape)[0]).tobytes())
    cuts = [replace(cut, int8=wide) if cut.index == at else replace(cut, int8=None) for cut in info.cuts]
    found = activation_limits(replace(info, cuts=cuts), segments)
    assert found[at].largest > 50 * limits[at].largest
    elsewhere = [place for place in range(len(limits)) if place != at]
    assert [found[i].largest for i in elsewhere] == pytest.approx([limits[i].largest for i in elsewhere], rel=0.5)
    assert [limit.rms for limit in found] == [limit.rms for limit in limits]
    assert found[0].largest == 4.0, "a waveform has a full scale"


def test_an_activation_may_be_large_in_places_and_not_everywhere(generations, sounds, activation):
    limit = generations.newest.in_range
    heard = torch.from_numpy(activation(sounds[0], 1))
    most = float(heard.abs().max())
    while limit(1, torch.full_like(heard, most)[None]) == [True]:
        most *= 1.1
    spiked = heard.clone()
    spiked.view(-1)[0] = most
    assert limit(1, torch.stack([spiked, torch.full_like(heard, most)])) == [True, False]
