"""`ssc server label` says what is missing; the page about events names commands and options there are."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import soundfile

from runtime_edge.formats.model_id import model_digest
from runtime_edge.formats.records.head import read_head
from streamsplit_compile.cli.main import main, ssc

pytestmark = pytest.mark.integration

PAGE = Path(__file__).parents[3] / "docs" / "events.md"


def commands():
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    inline = re.findall(r"`(ssc [^`]*/[^`]*)`", PAGE.read_text())
    return [line for line in "\n".join([*blocks, *inline]).splitlines() if line.startswith("ssc ")]


def test_the_page_has_commands():
    assert len(commands()) >= 8


@pytest.mark.parametrize("line", commands())
def test_every_command_of_the_page_is_understood(line):
    command, arguments = ssc, shlex.split(line)[1:]
    while hasattr(command, "get_command"):
        command, arguments = command.get_command(None, arguments[0]), arguments[1:]
        assert command is not None, line
    command.make_context(line, arguments)  # raises click.UsageError for an option or argument there is not


@pytest.fixture
def clips(tmp_path):
    rng, time = np.random.default_rng(0), np.arange(4000) / 4000
    for label in ("hiss", "hum"):
        (tmp_path / "clips" / label).mkdir(parents=True)
        for number in range(4):
            sound = 0.2 * rng.normal(size=4000) if label == "hiss" else 0.5 * np.sin(2 * np.pi * 200 * time + number)
            soundfile.write(tmp_path / "clips" / label / f"{number}.wav", sound.clip(-1, 1), 4000)
    return tmp_path / "clips"


def test_a_head_is_written_signed_and_described(clips, small_bundle, signing_key, tmp_path, capsys):
    (tmp_path / "signing.key").write_text(signing_key.to_text())
    out = tmp_path / "out.json"
    command = ["server", "label", str(clips), "--bundle", str(small_bundle.path), "-o", str(out), "--json"]
    main([*command, "--key", str(tmp_path / "signing.key")])
    said = json.loads(capsys.readouterr().out)
    head = read_head(out, signing_key.public)
    assert head.labels == ("hiss", "hum")
    assert said["windows"] == {"hiss": 24, "hum": 24}
    assert said["validation"]["accuracy"] == head.validation.accuracy > 0.8
    assert said["pushed_to"] == []
    assert said["model"] == head.model == model_digest(small_bundle.manifest)
    head.check_fits(small_bundle.manifest.info, "out.json")

    main(command[:-1])
    assert "held out (5 folds by clip)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere/"], "ssc-server: no server has run here"),
        (["CLIPS", "--bundle", "BUNDLE", "--follow"], "--follow looks for new generations"),
        (["CLIPS", "--bundle", "BUNDLE", "--push", "--device", "pi-1"], "say with --target which of"),
        (["CLIPS", "--bundle", "BUNDLE", "--push", "--target", "m9"], "--target m9: this bundle was compiled for"),
        (["CLIPS/hiss", "--bundle", "BUNDLE"], "make one subfolder for each label"),
        ([], "or a finished head with --head"),
        (["CLIPS", "--head", "head.json"], "--head: a finished head can only be pushed: give --push"),
        (["--head", "head.json", "--push", "--follow"], "and leave out --follow and --bundle"),
        (["missing.csv", "--bundle", "BUNDLE"], "missing.csv: no such folder or CSV"),
        (["CLIPS", "--bundle", "BUNDLE", "--push", "--broker", "nats://127.0.0.1:9"], "nats://127.0.0.1:9"),
        (
            ["heard.csv", "--bundle", "BUNDLE", "--broker", "nats://127.0.0.1:9"],
            "heard.csv: line 3: time '10:00': expected",
        ),
    ],
)
def test_what_is_missing_is_said_in_one_line(arguments, message, clips, small_bundle, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("heard.csv").write_text("device,time,label\n\npi-1,10:00,rain\n")
    given = [item.replace("CLIPS", str(clips)).replace("BUNDLE", str(small_bundle.path)) for item in arguments]
    with pytest.raises(SystemExit) as caught:
        main(["server", "label", *given])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
