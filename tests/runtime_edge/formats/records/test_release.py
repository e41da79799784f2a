import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_edge.errors import FormatError
from runtime_edge.formats.records import release as releases
from runtime_edge.formats.records.release import (
    MAX_RELEASE_BYTES,
    Release,
    ReleasedBundle,
    canary_place,
    decode_release,
)

DIGEST = "sha256:" + "0f" * 32


@given(
    st.builds(
        Release,
        generation=st.integers(1, 2**32 - 1),
        manifest=st.just(DIGEST),
        signature=st.text(max_size=50),
        rollback=st.booleans(),
        share=st.floats(0, 1),
        stable=st.none() | st.builds(ReleasedBundle, generation=st.integers(1, 9), manifest=st.just(DIGEST)),
        oldest=st.integers(1, 2**32 - 1),
    )
)
def test_a_release_survives_its_bytes(release):
    assert decode_release(releases.encode(release), "release") == release


@pytest.mark.parametrize(
    "change",
    [
        {"generation": 0},
        {"generation": 2**32},
        {"generation": "1"},
        {"manifest": "sha256:00"},
        {"manifest": DIGEST + "\n"},
        {"signature": None},
        {"rollback": 1},
        {"share": 1.01},
        {"share": -0.01},
        {"oldest": 0},
        {"stable": {"generation": 1}},
        {"stable": {"generation": 1, "manifest": DIGEST, "stable": None}},
        {"surprise": 1},
    ],
)
def test_a_release_that_is_none_is_refused_by_source(change):
    fields = {"generation": 1, "manifest": DIGEST, **change}
    with pytest.raises(FormatError, match=r"^release for rpi4: "):
        decode_release(json.dumps(fields).encode(), "release for rpi4")


@given(st.binary(max_size=100))
def test_garbage_is_no_release(data):
    with pytest.raises(FormatError):
        decode_release(data, "release")


def test_a_release_too_large_is_refused_unread():
    with pytest.raises(FormatError, match=f"x: {MAX_RELEASE_BYTES + 1} bytes, more than {MAX_RELEASE_BYTES}"):
        decode_release(b" " * (MAX_RELEASE_BYTES + 1), "x")


def test_forward_only_nothing_says_to_go_back():
    stable = ReleasedBundle(generation=1, manifest=DIGEST, signature="one", rollback=True)
    release = Release(generation=2, manifest=DIGEST, rollback=True, share=0.25, stable=stable, oldest=1)
    forward = release.forward_only()
    assert (forward.rollback, forward.stable.rollback) == (False, False)
    assert (forward.share, forward.oldest, forward.stable.signature) == (0.25, 1, "one")
    assert Release(generation=2, manifest=DIGEST).forward_only().stable is None


def test_canaries_run_the_release_and_the_others_what_is_stable():
    stable = ReleasedBundle(generation=1, manifest=DIGEST)
    release = Release(generation=2, manifest=DIGEST, share=0.25, stable=stable)
    names = [f"pi-{number}" for number in range(100)]
    chosen = {name: release.for_device(name) for name in names}
    assert {name for name in names if chosen[name] is release} == {n for n in names if canary_place(n, 2) < 0.25}
    assert all(choice in (release, stable) for choice in chosen.values())
    assert 10 < sum(choice is release for choice in chosen.values()) < 40
    everybody = Release(generation=2, manifest=DIGEST, share=0.0)
    assert everybody.for_device("pi-1") is everybody, "there is nothing else to run"
