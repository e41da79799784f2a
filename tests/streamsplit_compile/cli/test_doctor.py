"""The doctor judges machines it is told of; this one must be fine."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from streamsplit_compile.cli.doctor import MachineFacts, examine, import_failure

PI = MachineFacts(
    python=(3, 11),
    system="Linux",
    architecture="aarch64",
    bits=64,
    versions={"numpy": "2.2.0", "onnxruntime": "1.23.0", "soundfile": "0.13", "soxr": "0.5"},
    cpu="Cortex-A72",
    free_bytes=10**10,
)


def problems(machine: MachineFacts) -> dict[str, str]:
    return {finding.what: finding.mend for finding in examine(machine) if finding.state == "problem"}


def test_a_pi_with_the_edge_extra_has_no_problem_and_is_told_what_it_can_add() -> None:
    notes = {finding.what for finding in examine(PI) if finding.state == "note"}

    assert problems(PI) == {}
    assert notes == {"sounddevice", "compiler", "broker", "matplotlib"}


@pytest.mark.parametrize(
    ("change", "what", "mend"),
    [
        ({"python": (3, 9)}, "Python", "3.10"),
        ({"bits": 32, "architecture": "armv7l"}, "processor", "64-bit"),
        ({"versions": {"numpy": "2.2.0"}}, "inference runtime", ".whl[edge]"),
        ({"versions": {"numpy": "2.2.0", "onnxruntime": "1.21.1"}}, "onnxruntime", "!=1.21.*"),
        ({"versions": {"numpy": "2.2.0", "tflite-runtime": "2.14.0"}}, "tflite-runtime", ".whl[edge-tflite-runtime]"),
        ({"versions": {"numpy": "2.2.0", "onnxruntime": "1.23.0", "torch": "2.13.0"}}, "compiler", "[compile]"),
        ({"failures": {"onnxruntime": "ends Python at import with SIGILL"}}, "onnxruntime", "another"),
        (
            {
                "versions": {**PI.versions, "sounddevice": "0.5.6"},
                "failures": {"sounddevice": "cannot be imported: OSError: PortAudio library not found"},
            },
            "sounddevice",
            "sudo apt install libportaudio2",
        ),
        ({"free_bytes": 10**8}, "disk", "room"),
    ],
)
def test_each_known_trouble_is_named_with_its_mend(change: dict[str, object], what: str, mend: str) -> None:
    found = problems(dataclasses.replace(PI, **change))  # type: ignore[arg-type]

    assert mend in found[what]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "SIGILL"),
        ("raise ImportError('libgomp.so.1 is missing')", "libgomp.so.1 is missing"),
        ("", ""),
    ],
)
def test_a_module_that_ends_its_process_is_found_without_ending_this_one(
    body: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "made_elsewhere.py").write_text(body)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    failure = import_failure("made_elsewhere")

    assert said in failure
    assert bool(failure) == bool(said)


def test_a_missing_portaudio_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    assert "PortAudio library not found" in MachineFacts.here().failures["sounddevice"]


def test_a_microphones_library_that_is_missing_leaves_bundles_to_be_tried() -> None:
    assert dataclasses.replace(PI, failures={"sounddevice": "cannot be imported"}).runtimes_load
    assert not dataclasses.replace(PI, failures={"onnxruntime": "cannot be imported"}).runtimes_load


def test_a_python_of_the_systems_is_told_to_make_an_environment() -> None:
    (note,) = [found for found in examine(dataclasses.replace(PI, managed=True)) if found.what == "environment"]

    assert note.state == "note"
    assert "python3 -m venv" in note.mend


def test_1_21_is_no_problem_on_an_x86_machine() -> None:
    machine = dataclasses.replace(PI, architecture="x86_64", versions={**PI.versions, "onnxruntime": "1.21.1"})

    assert problems(machine) == {}


def test_this_machine_can_compile_and_serve() -> None:
    assert problems(MachineFacts.here()).keys() <= {"sounddevice"}, "it need not have a microphone's library"
