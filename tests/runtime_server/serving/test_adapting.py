"""What adaptation needs is asked for at once, and what judges it is what was kept for the head."""

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from example_records import head

from runtime_edge.errors import UsageError
from runtime_server.adaptation.adaptation_loop import AdaptConfig
from runtime_server.labels.head_clips import HeadClips, HeadClipsFolder
from runtime_server.server import Server
from runtime_server.serving.adapting import check_adapt, labelled_windows
from runtime_server.serving.server_config import ServerConfig
from runtime_server.training.ranks import Ranks


def config(method, **fields):
    return ServerConfig(bundle=Path("bundle"), state=Path("state"), adapt=AdaptConfig(method), **fields)


@pytest.mark.parametrize(
    ("settings", "ranks", "reason"),
    [
        (config("cema"), 1, "--adapt cema: needs a teacher; give --larger and --calibrate, or --adapt tent"),
        (config("joint"), 1, "--adapt joint: needs a teacher; give --larger and --calibrate, or --adapt tent"),
        (config("tent"), 2, "--adapt tent: works with one server process only, this is one of 2 ranks"),
    ],
)
def test_what_does_not_go_together_is_refused(settings, ranks, reason):
    with pytest.raises(UsageError) as caught:
        check_adapt(settings, ranks)
    assert str(caught.value) == reason


def test_what_goes_together_is_not(adaptable_bundle):
    check_adapt(config(None), 3)
    for settings in (config("eata"), config("cema", larger=Path("larger.pt"))):
        check_adapt(replace(settings, bundle=adaptable_bundle.path), 1)


def test_a_bundle_that_cannot_be_adapted_is_named(small_bundle):
    with pytest.raises(UsageError) as caught:
        check_adapt(replace(config("tent"), bundle=small_bundle.path), 1)
    assert str(caught.value) == f"--adapt tent: {small_bundle.path} cannot be adapted; compile it with --adaptable"


def test_a_server_refuses_before_it_makes_anything(tiny_encoder, small_bundle, tmp_path):
    settings = ServerConfig(bundle=small_bundle.path, state=tmp_path / "server", adapt=AdaptConfig("cema"))
    with pytest.raises(UsageError, match="--adapt cema: needs a teacher"):
        Server(tiny_encoder, settings, Ranks())
    assert not (tmp_path / "server").exists()


@pytest.fixture
def kept(tmp_path):
    """A folder with the clips of a head: two of a dog, one of rain, one of both."""
    of = head("toy")
    windows = np.arange(6 * 4, dtype="<f2").reshape(6, 4)
    clips = HeadClips(
        head=of.to_json(), clips=[("dog",), ("rain",), ("dog", "rain"), ("dog",)], places=[0, 0, 1, 2, 3, 3],
        windows=windows.tobytes(),
    )  # fmt: skip
    folder = HeadClipsFolder(tmp_path / "heads")
    folder.keep(clips)
    return folder, of, windows


def test_windows_with_one_label_judge(kept):
    folder, of, windows = kept
    found = labelled_windows(folder, pytest.fail)(of)
    np.testing.assert_array_equal(found.windows, windows[[0, 1, 2, 4, 5]].astype(np.float32))
    assert [of.labels[place] for place in found.truth] == ["dog", "dog", "rain", "dog", "dog"]


def test_a_head_without_clips_is_not_judged_and_damaged_ones_are_named(kept):
    folder, of, _ = kept
    other = msgspec.structs.replace(of, created_by="another")
    assert labelled_windows(folder, pytest.fail)(other) is None
    (path,) = folder.path.glob("*.clips")
    path.write_bytes(path.read_bytes()[:-1])
    said = []
    assert labelled_windows(folder, said.append)(of) is None
    assert str(path) in said[0]
