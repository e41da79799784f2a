"""Nothing before the privacy floor leaves a device: by no table, exploration or swap, nor from an earlier spool."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from runtime_edge.config import DeviceConfig
from runtime_edge.errors import BundleError
from runtime_edge.formats.encoder.privacy_info import Leak, MeasuredShare, PrivacyInfo
from runtime_edge.formats.records.table import LOCAL, MAX_Q, StateAxis, cut_position
from runtime_edge.formats.wire import encode_frame
from runtime_edge.transport.privacy import drop_below_floor, floor_index
from runtime_edge.transport.spool.spool import Spool
from runtime_edge.updates.table_updater import make_splitter

numbers = st.floats(-MAX_Q, MAX_Q)
states = st.tuples(
    st.none() | st.floats(),
    st.floats(),
    st.floats(),
    st.floats(),
    st.booleans(),
)


@st.composite
def tables(draw, base):
    """Any table for the cuts of `base`: its policy prefers whatever it likes, and probes as often as a table may."""
    edges = tuple(sorted(draw(st.lists(st.floats(0, 100), max_size=3, unique=True))))
    row = st.tuples(*[numbers] * len(base.actions))
    q = tuple(draw(st.lists(row, min_size=len(edges) + 1, max_size=len(edges) + 1)))
    return replace(
        base,
        state=(StateAxis(name=draw(st.sampled_from(["bandwidth_mbps", "uncertainty", "cpu"])), edges=edges),),
        q=q,
        probe_rate=draw(st.sampled_from([0.0, 0.2])),
        hysteresis=draw(st.floats(0, 100)),
    )


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_no_table_no_exploration_and_no_swap_goes_below_the_floor(small_bundle, tmp_path_factory, data):
    cuts = [cut.name for cut in small_bundle.manifest.info.cuts]
    base = small_bundle.table("rpi4")
    floor = data.draw(st.sampled_from(cuts))
    config = DeviceConfig(device="pi-1", min_cut=floor, seed=data.draw(st.integers(0, 1000)))
    splitter = make_splitter(small_bundle, data.draw(tables(base)), config)
    for _ in range(4):
        for _ in range(10):
            *state, connected = data.draw(states)
            decision = splitter.choose(*state, connected=connected)
            assert cut_position(decision.cut, cuts) >= cuts.index(floor)
        splitter.swap(data.draw(tables(base)), {})


def test_a_floor_is_a_cut_of_the_bundle_or_local(small_bundle):
    manifest = small_bundle.manifest
    cuts = [cut.name for cut in manifest.info.cuts]
    assert floor_index(manifest, None) == 0
    assert [floor_index(manifest, name) for name in (*cuts, LOCAL)] == list(range(len(cuts) + 1))
    with pytest.raises(BundleError, match="no cut 'renamed'"):
        floor_index(manifest, "renamed")


@pytest.fixture
def spool(tmp_path):
    opened = Spool(tmp_path / "spool.db", 1 << 20)
    yield opened
    opened.close()


def fill(spool):
    """One frame of each of the first three cuts in two generations, and one that is none."""
    for generation in (1, 2):
        for cut in range(3):
            frame = encode_frame(cut, 0, generation, cut, "float16", False, 0.5, bytes(cut))
            spool.put(f"pi-1.boot{generation}.{cut}", cut, frame, 0.5)
    spool.put("pi-1.boot3.0", 0, b"not a frame", 0.5)


def spooled(spool):
    return [item.message_id.removeprefix("pi-1.boot") for item in spool.oldest(100)]


def test_what_runs_without_this_floor_have_spooled_is_dropped(spool, tmp_path, small_bundle):
    fill(spool)
    assert drop_below_floor(spool, tmp_path, small_bundle.manifest, "down") == 6
    assert spooled(spool) == ["1.2"]  # the bundle is generation 1, and `down` its cut 2
    assert (spool.counters().dropped, spool.depth()) == (6, 1)


def test_under_the_same_floor_and_without_one_everything_stays(spool, tmp_path, small_bundle):
    manifest = small_bundle.manifest
    assert drop_below_floor(spool, tmp_path, manifest, "down") == 0
    fill(spool)
    assert drop_below_floor(spool, tmp_path, manifest, "down") == 0
    assert drop_below_floor(spool, tmp_path, manifest, None) == 0
    assert spool.depth() == 7
    assert drop_below_floor(spool, tmp_path, manifest, "stem") == 5
    assert spooled(spool) == ["1.1", "1.2"]
    assert drop_below_floor(spool, tmp_path, manifest, LOCAL) == 2
    assert spool.bytes() == 0


def test_a_damaged_note_counts_as_another_floor(spool, tmp_path, small_bundle):
    drop_below_floor(spool, tmp_path, small_bundle.manifest, "down")
    fill(spool)
    (tmp_path / "privacy-floor").write_bytes(b"\xff")
    assert drop_below_floor(spool, tmp_path, small_bundle.manifest, "down") == 6


def audited(bundle, **rates):
    """The bundle with an audit in which each cut gives away this share of the words."""
    leaks = tuple(
        Leak(cut=cut, encoding="int8", words=MeasuredShare(rate=rate, low=rate, high=rate))
        for cut, rate in rates.items()
    )
    privacy = PrivacyInfo(words=10, speakers=0, recordings=100, seeds=1, shipped=leaks)
    metadata = replace(bundle.manifest.additional_metadata, ssc=replace(bundle.manifest.info, privacy=privacy))
    return dataclasses.replace(bundle, manifest=replace(bundle.manifest, additional_metadata=metadata))


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_no_table_ships_what_gives_away_more_words_than_the_floor(small_bundle, data):
    bundle = audited(small_bundle, waveform=0.9, stem=0.3, down=0.1, residual=0.6)
    config = DeviceConfig(device="pi-1", max_word_recognition=0.2, seed=data.draw(st.integers(0, 1000)))
    splitter = make_splitter(bundle, data.draw(tables(small_bundle.table("rpi4"))), config)
    for _ in range(10):
        *state, connected = data.draw(states)
        assert splitter.choose(*state, connected=connected).cut in ("down", LOCAL)


def test_a_device_with_a_floor_in_words_refuses_a_bundle_that_cannot_keep_it(small_bundle):
    config, table = DeviceConfig(device="pi-1", max_word_recognition=0.2), small_bundle.table("rpi4")
    with pytest.raises(BundleError, match="never audited"):
        make_splitter(small_bundle, table, config)
    with pytest.raises(BundleError, match="nothing that this bundle ships keeps it; the least, down"):
        make_splitter(audited(small_bundle, waveform=0.9, down=0.5), table, config)
    make_splitter(small_bundle, table, dataclasses.replace(config, min_cut=LOCAL))


def test_spooled_frames_that_a_floor_in_words_forbids_are_dropped_once(spool, tmp_path, small_bundle):
    manifest = small_bundle.manifest
    drop_below_floor(spool, tmp_path, manifest, None)
    fill(spool)
    forbidden = frozenset({("waveform", 0), ("down", 0)})
    assert drop_below_floor(spool, tmp_path, manifest, None, 0.2, forbidden) == 6
    assert spooled(spool) == ["1.1"]
    assert drop_below_floor(spool, tmp_path, manifest, None, 0.2, forbidden) == 0
