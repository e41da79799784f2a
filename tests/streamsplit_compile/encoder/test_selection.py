import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_edge.errors import BundleError, UsageError
from streamsplit_compile.encoder.graph import Candidate
from streamsplit_compile.encoder.selection import cuts_of, select_cuts, why_useless, with_early_cuts, worthwhile_blocks


def candidates(count, boundaries=()):
    last = count - 1
    return [Candidate(i, f"node{i}", f"cut{i}", (1, 8), i in boundaries or i in (0, last)) for i in range(count)]


@st.composite
def encoders(draw):
    """Candidates, the work up to each of them and what each ships."""
    count = draw(st.integers(2, 12))
    boundaries = draw(st.sets(st.integers(1, count)))
    blocks = draw(st.lists(st.integers(0, 1000), min_size=count - 1, max_size=count - 1))
    work = [sum(blocks[:index]) for index in range(count)]
    sizes = draw(st.lists(st.integers(1, 10**6), min_size=count, max_size=count))
    return candidates(count, boundaries), work, sizes


@given(encoders(), st.sampled_from(["auto", "all", "1", "cut1", "cut1,cut1", ""]))
def test_cuts_start_with_the_waveform_and_end_with_the_embedding(encoder, spec):
    known, work, sizes = encoder
    found = select_cuts(known, spec, work, sizes)
    assert found[0] is known[0]
    assert found[-1] is known[-1]
    positions = [candidate.position for candidate in found]
    assert positions == sorted(set(positions))


@given(encoders())
def test_auto_ships_less_at_each_later_cut_or_is_the_embedding(encoder):
    known, work, sizes = encoder
    found = select_cuts(known, "auto", work, sizes)
    shipped = [sizes[candidate.position] for candidate in found[:-1]]
    assert shipped == sorted(shipped, reverse=True)
    assert len(set(shipped)) == len(shipped)


@given(encoders())
def test_no_block_of_auto_is_too_light_for_a_session_but_a_front_end(encoder):
    known, work, sizes = encoder
    positions = [candidate.position for candidate in select_cuts(known, "auto", work, sizes)]
    if len(positions) > 2 and work[-1]:
        shares = [(work[b] - work[a]) / work[-1] for a, b in itertools.pairwise(positions)]
        assert min(shares[1:]) >= 0.01 or len(positions) == 3
        assert shares[0] >= 0.01 or sizes[positions[1]] < sizes[0] / 2


@given(encoders(), st.integers(2, 12))
def test_auto_keeps_a_heavy_front_end_only_among_the_blocks_that_are_worthwhile(encoder, limit):
    known, work, sizes = encoder
    work = [0, *(1000 + index for index in range(len(known) - 1))]
    assert len(select_cuts(known, "auto", work, sizes, limit)) - 1 <= limit


@given(encoders(), st.integers(2, 12))
def test_auto_keeps_a_cut_that_halves_the_audio_for_next_to_nothing(encoder, limit):
    known, work, sizes = encoder
    front = [index for index in range(1, len(known) - 1) if known[index].boundary][:1]
    if not front:
        return
    place = front[0]
    # The front end costs a ten-thousandth of the rest, and nothing behind it is nearly as cheap.
    work = [0 if index < place else 1 if index == place else 10_000 * (index + 1) for index in range(len(known))]
    sizes = [2000 if index < place else 900 - index for index in range(len(known))]
    found = select_cuts(known, "auto", work, sizes, limit)
    assert known[place] in found


@given(encoders())
def test_auto_keeps_at_most_six_cuts(encoder):
    known, work, sizes = encoder
    assert len(select_cuts(known, "auto", work, sizes, worthwhile_blocks(1e6))) <= 6


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        ([(1, 100), (1, 8)], "no single tensor crosses between the waveform and the embedding"),
        ([(1, 100), (1, 300), (1, 250), (1, 8)], "the smallest, cut2, has 250 bytes, the audio 200"),
        ([(1, 100), (1, 300), (1, 50), (1, 8)], "the smallest, cut2, has 50 bytes, the audio 200, but comes after 67%"),
    ],
)
def test_why_no_cut_is_worth_shipping(shapes, reason):
    known = [Candidate(i, f"node{i}", f"cut{i}", shape, True) for i, shape in enumerate(shapes)]
    assert reason in why_useless(known, [known[0], known[-1]], list(range(len(known))))


def test_the_audio_in_another_shape_is_no_reason():
    known = [
        Candidate(i, f"node{i}", f"cut{i}", shape, True) for i, shape in enumerate([(1, 9), (1, 9), (1, 90), (1, 8)])
    ]
    assert why_useless(known, [known[0], known[-1]], [0, 0, 5, 9]) == "the smallest, cut2, has 90 bytes, the audio 18"


def test_a_cut_that_ships_less_than_the_audio_needs_no_reason():
    known = candidates(3)
    assert why_useless(known, known, [0, 1, 2]) is None


@given(encoders(), st.integers(2, 12))
def test_auto_makes_no_more_blocks_than_are_worthwhile(encoder, limit):
    known, work, sizes = encoder
    found = select_cuts(known, "auto", work, sizes, limit)
    first = found[1].position
    cheap = sizes[first] < sizes[0] / 2 and work[first] <= 0.05 * work[-1]
    assert len(found) - 1 <= limit + (cheap and len(found) > 2)


@given(encoders())
def test_auto_looks_inside_modules_only_where_there_is_nothing_else(encoder):
    known, work, sizes = encoder
    inner = select_cuts(known, "auto", work, sizes)[1:-1]
    if any(candidate.boundary for candidate in known[1:-1]):
        assert all(candidate.boundary for candidate in inner)


@given(encoders(), st.data())
def test_a_number_gives_that_many_blocks(encoder, data):
    known, work, sizes = encoder
    blocks = data.draw(st.integers(1, len(known) - 1))
    assert len(select_cuts(known, str(blocks), work, sizes)) == blocks + 1


@given(encoders())
def test_all_gives_all(encoder):
    known, work, sizes = encoder
    assert select_cuts(known, "all", work, sizes) == known


def test_names_give_those_cuts_in_order_of_the_graph():
    found = select_cuts(candidates(6), " cut4, cut2,", [0] * 6, [1] * 6)
    assert [candidate.name for candidate in found] == ["cut0", "cut2", "cut4", "cut5"]


@pytest.mark.parametrize("spec", ["cut9", "cut1,nothing", "-1", "1.5", "ALL", "auto,all", "²", "cut1 cut2"])
def test_an_unknown_name_is_refused_with_those_there_are(spec):
    with pytest.raises(UsageError, match=r"--cuts: no cut '.*'; this encoder has cut0, cut1, cut2"):
        select_cuts(candidates(3), spec, [0, 1, 2], [3, 2, 1])


@pytest.mark.parametrize("spec", ["0", "3", "99999999999999999999"])
def test_a_number_that_does_not_fit_is_refused_with_the_range(spec):
    with pytest.raises(UsageError, match=f"--cuts {spec}: this encoder can be cut into 1 to 2 blocks"):
        select_cuts(candidates(3), spec, [0, 1, 2], [3, 2, 1])


def test_an_encoder_without_arithmetic_can_be_cut():
    assert len(select_cuts(candidates(4, {1, 2}), "auto", [0, 0, 0, 0], [8, 4, 2, 1])) >= 2


def test_the_cuts_of_a_bundle_are_found_again(small_bundle, tiny_encoder):
    found = cuts_of(tiny_encoder.graph.candidates, small_bundle.manifest, "bundle")
    assert [cut.name for cut in found] == [cut.name for cut in small_bundle.manifest.info.cuts]


@pytest.mark.parametrize("change", [{"node": "other"}, {"shape": (1, 9)}, {"name": "other"}])
def test_a_bundle_of_another_graph_is_refused_by_cut(small_bundle, tiny_encoder, change):
    known = list(tiny_encoder.graph.candidates)
    place = next(index for index, candidate in enumerate(known) if candidate.name == "down")
    fields = {name: getattr(known[place], name) for name in ("position", "node", "name", "shape", "boundary")}
    known[place] = Candidate(**{**fields, **change})
    with pytest.raises(
        BundleError, match=re.escape("bundle: cut down does not exist in this encoder; compile it again")
    ):
        cuts_of(known, small_bundle.manifest, "bundle")


@given(encoders(), st.integers(1, 11))
def test_auto_always_cuts_behind_a_front_end_that_devices_compute_in_their_own_way(encoder, position):
    known, work, sizes = encoder
    inner = known[1:-1]
    if not inner:
        return
    front_end = inner[position % len(inner)]
    found = select_cuts(known, "auto", work, sizes, 1, front_end.name)
    assert found[1] is front_end
    assert found[-1] is known[-1]
    assert len(found) <= 4
    assert [cut.position for cut in found] == sorted({cut.position for cut in found})


RESNET = ("waveform", "log_mel", "stem.conv", "stem", "layer1.0", "layer2.0", "layer3.0", "layer4.0", "normalize")
RESNET_WORK = [0, 8, 28, 28, 140, 360, 590, 850, 1000]


def resnet():
    values = [16_000, 12_800, 102_400, 25_600, 25_600, 12_800, 6_400, 3_200, 128]
    shapes = [(1, size) for size in values]
    return [Candidate(i, name, name, shape, True) for i, (name, shape) in enumerate(zip(RESNET, shapes, strict=True))]


def added(known, blocks, narrows=lambda _: True):
    cuts = [known[0], known[1], known[7], known[8]]
    return [cut.name for cut in with_early_cuts(known, cuts, RESNET_WORK, blocks, narrows) if cut not in cuts]


def test_bottlenecks_get_early_cuts_in_equal_ratios_of_work():
    known = resnet()
    assert added(known, 4) == ["layer1.0"]
    assert added(known, 5) == ["stem", "layer1.0"], "after the pooling, not before"
    assert added(known, 9) == ["stem", "layer1.0", "layer2.0"], "layer3.0 is too close to its neighbours"
    assert added(known, 3) == []


def test_early_cuts_are_where_bottlenecks_fit():
    assert added(resnet(), 9, lambda candidate: candidate.name == "layer2.0") == ["layer2.0"]
    assert added(resnet(), 9, lambda _: False) == []


def test_an_encoder_that_is_not_cut_gets_no_early_cuts():
    known = resnet()
    assert with_early_cuts(known, [known[0], known[-1]], RESNET_WORK, 9, lambda _: True) == [known[0], known[-1]]


@given(encoders(), st.integers(1, 12))
def test_early_cuts_come_beside_those_that_are_there(encoder, blocks):
    known, work, sizes = encoder
    cuts = select_cuts(known, "auto", work, sizes)
    found = with_early_cuts(known, cuts, work, blocks, lambda _: True)
    assert set(cuts) <= set(found)
    assert len(found) <= max(len(cuts), blocks + 1)
    assert [cut.position for cut in found] == sorted({cut.position for cut in found})


def test_a_candidate_that_was_left_out_moves_nothing():
    known = [one for one in candidates(6, {1, 2, 3, 4}) if one.position != 2]
    found = select_cuts(known, "auto", [0, 10, 30, 40, 50], [99, 50, 30, 20, 10])
    assert [cut.name for cut in found] == ["cut0", "cut1", "cut3", "cut4", "cut5"]
