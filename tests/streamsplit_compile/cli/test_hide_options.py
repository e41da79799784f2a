"""`ssc compile --hide`: what it needs, and what it does to a bundle."""

import json

import pytest
import soundfile
from speech import write_speech

from runtime_edge.errors import UsageError
from runtime_edge.formats.bundle import open_bundle
from streamsplit_compile.bundle.soundscape import soundscape
from streamsplit_compile.cli.hide_options import hidden_labels, labelled_windows
from streamsplit_compile.cli.main import main

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    return write_speech(tmp_path_factory.mktemp("spoken") / "speech")


@pytest.mark.parametrize(
    ("hide", "given", "bottlenecks", "said"),
    [
        ("word", True, True, r"--hide word: expected some of words, speakers"),
        (",", True, True, r"--hide ,: expected some of words, speakers"),
        ("words", True, False, r"--hide: .*give --bottlenecks"),
        ("words", False, True, r"--hide: .*give --recordings DIR"),
        (None, True, True, r"--recordings: they are for --hide"),
    ],
)
def test_what_cannot_be_hidden_is_refused_with_what_to_give(hide, given, bottlenecks, said, tmp_path):
    with pytest.raises(UsageError, match=said):
        hidden_labels(hide, tmp_path if given else None, bottlenecks)


def test_labels_are_numbers_from_zero_without_what_an_audit_judges(speech):
    found = labelled_windows(hidden_labels("speakers, words", speech, True), speech, 4000, 256)

    assert list(found.labels) == ["words", "speakers"]
    assert set(found.labels["words"]) == {0, 1}
    assert set(found.labels["speakers"]) == set(range(8)), "two of ten speakers are judged"
    assert found.windows.shape == (48, 256)


def test_a_bundle_says_what_its_bottlenecks_hide_and_has_narrow_ones(tiny_file, speech, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("streamsplit_compile.cli.compile_commands.TRAINING_STEPS", 3)
    soundfile.write(tmp_path / "room.wav", 0.9 * soundscape(40, 4000, 3), 4000)
    compiling = ["compile", str(tiny_file), "--factory", "toys:Tiny", "--cuts", "stem,down", "--targets", "rpi4"]
    hiding = ["--bottlenecks", "--hide", "words", "--recordings", str(speech)]

    main([*compiling, "-o", str(tmp_path / "b"), "--calibrate", str(tmp_path / "room.wav"), *hiding, "--json"])

    said = json.loads(capsys.readouterr().out)["bottlenecks"]
    assert [one["hides"] for one in said] == [["words"], ["words"]]
    for info in open_bundle(tmp_path / "b").manifest.info.bottlenecks:
        assert info.hides == ("words",)
        assert info.shape[1] <= 16
    main(["inspect", str(tmp_path / "b")])
    assert "bottlenecks, trained to hide words:" in capsys.readouterr().out
