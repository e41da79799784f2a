"""The command line as one piece: what all commands and their options keep to."""

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from runtime_edge.click_options import RenamedOption
from streamsplit_compile.cli.main import ssc

pytestmark = pytest.mark.integration

SCREEN_LINES, COLUMNS = 50, 80
WITHOUT_JSON = {
    "ssc edge config": "prints a TOML file",
    "ssc server config": "prints a TOML file",
    "ssc server device config": "prints a configuration of nats-server",
    "ssc server run": "runs until it is stopped; `ssc server status --json` has all it could say",
    "ssc server broker": "runs until it is stopped",
    "ssc server mqtt": "runs until it is stopped",
}
TWO_MEANINGS = {
    "--meter": "the same by its kind or by its log, of which `ssc bench run` takes logs alone",
    "--encoder": "a file for verify, a registered name for demo, either for `ssc bench run`",
}


def commands(command=ssc, path=("ssc",)):
    yield " ".join(path), command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            yield from commands(command.get_command(context, name), (*path, name))


LEAVES = {words: command for words, command in commands() if not isinstance(command, click.Group)}


def test_the_help_of_every_command_fits_a_screen():
    for words, _ in commands():
        said = CliRunner().invoke(ssc, [*words.split()[1:], "--help"], prog_name="ssc", terminal_width=COLUMNS).output
        lines = said.splitlines()
        assert max(map(len, lines)) <= COLUMNS, words
        assert len(lines) <= SCREEN_LINES, f"{words}: {len(lines)} lines; say which options are common (ManyOptions)"


def test_what_is_printed_can_be_had_as_json():
    without = {words for words, one in LEAVES.items() if not any("--json" in param.opts for param in one.params)}
    assert without == WITHOUT_JSON.keys()


def kind(option):
    """What an option's value is."""
    if option.is_flag:
        return "flag"
    names = {click.types.IntRange: "number", click.types.FloatRange: "number", click.types.Choice: "text"}
    return names.get(
        type(option.type), {"integer": "number", "float": "number", "path": "path"}.get(option.type.name, "text")
    )


def test_an_option_of_one_name_takes_one_kind_of_value_everywhere():
    kinds = defaultdict(set)
    for command in LEAVES.values():
        for option in command.params:
            if isinstance(option, click.Option):
                for name in set(option.opts) - set(getattr(option, "earlier", ())):
                    kinds[name].add(kind(option))
    several = {name for name, found in kinds.items() if len(found) > 1}
    assert several == TWO_MEANINGS.keys()


def test_an_earlier_name_is_never_an_other_options_name():
    for words, command in LEAVES.items():
        shown = {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
        for option in command.params:
            if isinstance(option, RenamedOption):
                record = option.get_help_record(click.Context(command))
                assert not any(name in record[0].replace(",", " ").split() for name in option.earlier), words
                assert shown.issuperset(option.earlier)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["encoder", "new", "resnet18", "--config", "[", "-o", "x.pt"], "--encoder-config: "),
        (["splitter", "map", "missing.json", "--rtt", "5", "-o", "x.svg"], "missing.json"),
        (["splitter", "explain", "--state", "cpu=0.3"], "give a table file"),
        (["advise", "missing", "--target", "rpi4"], "missing: no such bundle directory"),
        (["server", "label", "missing", "--no-probe"], "no server has run here"),
        (["server", "run", "missing.pt", "missing", "--energy", "rapl", "--health-port", "0"], "missing"),
    ],
)
def test_names_of_earlier_versions_still_work(arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(ssc, arguments)
    assert said in str(result.exception)
    assert "No such option" not in str(result.exception)


@pytest.mark.parametrize(("words", "completed"), [("ssc edge r", "run"), ("ssc edge run --wat", "--watch")])
def test_bash_completes_commands_and_options(words, completed):
    script = Path(sys.executable).with_name("ssc")
    environment = {**os.environ, "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    shown = [
        subprocess.run(
            [script], env={**environment, "_SSC_COMPLETE": what}, capture_output=True, text=True, check=True, timeout=60
        ).stdout
        for what in ("bash_source", "bash_complete")
    ]
    assert "complete -o nosort -F _ssc_completion ssc" in shown[0]
    assert f"plain,{completed}" in shown[1].splitlines()


def test_what_cannot_run_on_a_device_is_not_listed_there():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from streamsplit_compile.cli.main import main, ssc\n"
        "import click, json\n"
        "lists = {}\n"
        "for name in ('', 'bench', 'splitter'):\n"
        "    group = ssc if not name else ssc.get_command(click.Context(ssc), name)\n"
        "    lists[name] = group.list_commands(click.Context(group))\n"
        "print(json.dumps(lists))\n"
        "main(['--help'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    lists, _, shown = done.stdout.partition("\n")
    assert json.loads(lists) == {"": ["profile", "bench", "doctor", "edge"], "bench": ["device"], "splitter": []}
    assert "more need an extra: see `ssc doctor`." in shown
    assert "compile " not in shown.partition("Commands:")[2]
