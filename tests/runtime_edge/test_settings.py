"""Settings from a TOML file, options and the environment: what wins, and what is refused with which words."""

# ruff: noqa: RUF009 - `setting` makes a dataclass field
import dataclasses
import json
from pathlib import Path
from typing import Literal

import click
import pytest
import tomllib
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from runtime_edge.cli import edge_commands
from runtime_edge.config import DeviceConfig
from runtime_edge.errors import FormatError, UsageError
from runtime_edge.settings import as_toml, common_names, load, options, read, setting


@dataclasses.dataclass(frozen=True)
class Sample:
    name: str = setting("", "A name.", example="pi-1")
    kind: Literal["a", "b"] = setting("a", "A kind.")
    count: int = setting(1, "A count.", ge=1, le=64)
    level: float | None = setting(None, "A level.", ge=-200, le=0, example=-60.0)
    flag: bool = setting(True, "A flag.")
    path: Path = setting(Path("here"), "A path.")
    files: tuple[str, ...] = setting((), "Files.", example=("x",))
    port: int = setting(1, "A port.", earlier=("gate",), common=True)


def write(tmp_path, text):
    path = tmp_path / "settings.toml"
    path.write_text(text)
    return path


def test_a_file_sets_values_of_the_declared_types_and_the_rest_keeps_its_defaults(tmp_path):
    path = write(tmp_path, 'count = 3\nlevel = -60\nflag = false\npath = "there"\nfiles = ["x", "y"]\n')
    assert load(Sample, path, {}) == Sample(count=3, level=-60.0, flag=False, path=Path("there"), files=("x", "y"))


def test_what_is_given_wins_over_the_file_and_what_is_not_given_does_not(tmp_path):
    path = write(tmp_path, 'count = 3\nname = "file"\nfiles = ["x"]\nflag = true\n')
    loaded = load(Sample, path, {"count": 5, "name": None, "files": (), "flag": False})
    assert loaded == Sample(count=5, name="file", files=("x",), flag=False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cuont = 1", "'cuont': no such setting, did you mean count?"),
        ("[edge]\ncount = 1", "'edge': no such setting"),
        ('count = "many"', "count is .*Expected `int`, got `str` .at least 1, at most 64.; for example count = 1"),
        ("count = 65", "count is 65: .*at most 64"),
        ("count = 0", "count is 0: .*at least 1"),
        ("count = true", "count is True: Expected `int`, got `bool`"),
        ("level = nan", "level is nan: "),
        ("level = 1.0", "level is 1.0: .*at most 0.; for example level = -60.0"),
        ('kind = "c"', "kind is .*one of a, b"),
        ("path = 3", "path is 3: Expected `str`, got `int`"),
        ('files = "x"', "files is .*for example files = ..x"),
        ("files = [1]", "files is "),
        (f'name = ["nats://pi:{"secret" * 20}@host"]', r"name is \['nats://\*\*\*@host'\]: "),
        ('name = ["nats://pi:secret@host"]', r"name is \['nats://\*\*\*@host'\]: "),
        ("count = 1\ncount = 2", "not TOML"),
        ("count", "not TOML"),
        pytest.param("count = " + "[" * 100_000, "not TOML", id="deep"),
    ],
)
def test_what_is_wrong_in_a_file_is_one_line_naming_file_key_and_fix(tmp_path, text, words):
    path = write(tmp_path, text)
    with pytest.raises(UsageError, match=words) as raised:
        read(Sample, path)
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)


def test_a_setting_is_still_known_by_its_earlier_name(tmp_path):
    assert load(Sample, write(tmp_path, "gate = 7"), {}).port == 7
    with pytest.raises(UsageError, match=r"gate: an earlier name of port, which is given too; keep only one of them"):
        read(Sample, write(tmp_path, "port = 6\ngate = 7"))
    with pytest.raises(UsageError, match=r"gate: an earlier name of port"):
        read(Sample, write(tmp_path, "gate = 7\nport = 6"))
    command = click.command()(options(Sample)(lambda **given: click.echo(given["port"])))
    assert CliRunner().invoke(command, ["--gate", "7"]).output == "7\n"
    assert "--gate" not in CliRunner().invoke(command, ["--help"]).output
    assert "gate" not in as_toml(Sample)


def test_common_settings_are_those_declared_as_such():
    assert common_names(Sample) == ["port"]


@pytest.mark.parametrize("data", [b"\xff\xfe", b"a = 1\n" * 200_000])
def test_a_file_that_is_no_text_or_much_too_long_is_refused(tmp_path, data):
    path = tmp_path / "settings.toml"
    path.write_bytes(data)
    with pytest.raises((UsageError, FormatError), match=r"settings\.toml"):
        read(Sample, path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FormatError, match=r"none\.toml: cannot be read"):
        load(Sample, tmp_path / "none.toml", {})


@given(st.text(max_size=200) | st.text(max_size=20).map(lambda name: f"{json.dumps(name)} = 1"))
def test_any_text_is_read_or_refused_with_one_line(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        read(Sample, path)
    except (FormatError, UsageError) as exc:
        message = str(exc)
    else:
        return
    assert len(message.splitlines()) == 1


@given(
    st.builds(
        dict,
        name=st.text(max_size=20),
        count=st.integers(1, 64),
        level=st.floats(-200, 0),
        flag=st.booleans(),
        files=st.lists(st.sampled_from(["a", 'quote"', "back\\slash", "ü"])).map(tuple),
    )
)
def test_what_is_printed_reads_back_the_same(tmp_path_factory, values):
    path = tmp_path_factory.getbasetemp() / "round.toml"
    path.write_text(as_toml(Sample, values))
    assert read(Sample, path) == values


@pytest.mark.parametrize("config", [Sample, DeviceConfig])
def test_every_setting_is_printed_with_its_documentation_and_a_value_that_may_be_used(tmp_path, config):
    text = as_toml(config)
    assert tomllib.loads(text) == {}
    for field in dataclasses.fields(config):
        assert field.metadata["doc"] in text
    values = read(config, write(tmp_path, "\n".join(line[2:] for line in text.splitlines() if " = " in line)))
    assert set(values) == {field.name for field in dataclasses.fields(config)}
    for field in dataclasses.fields(config):
        if field.default not in (None, "", (), dataclasses.MISSING):
            assert values[field.name] == field.default


@click.command(context_settings={"auto_envvar_prefix": "SAMPLE"})
@options(Sample)
def show(**given):
    click.echo(repr(given))


def test_options_take_the_same_values_and_ranges():
    def run(*arguments, **env):
        return CliRunner().invoke(show, arguments, env=env)

    assert eval(run().output) == dict.fromkeys(["name", "kind", "count", "level", "flag", "path", "port"]) | {
        "files": ()
    }
    assert eval(run("--no-flag", "--count", "5", "--files", "x", "--files", "y").output)["files"] == ("x", "y")
    assert eval(run(SAMPLE_COUNT="7", SAMPLE_FLAG="0").output)["count"] == 7
    assert eval(run("--count", "8", SAMPLE_COUNT="7").output)["count"] == 8
    for wrong in (["--count", "65"], ["--level", "1"], ["--kind", "c"], ["--count", "x"]):
        assert run(*wrong).exit_code == 2


def test_edge_config_prints_a_file_and_checks_one(tmp_path):
    printed = CliRunner().invoke(edge_commands.edge, ["config"])
    assert printed.output == as_toml(DeviceConfig)
    path = write(tmp_path, "threads = 2\n")
    checked = CliRunner().invoke(edge_commands.edge, ["config", str(path)]).output
    assert "\nthreads = 2\n" in checked
    assert "\n# loop = false\n" in checked
    path.write_text("threads = 0\n")
    refused = CliRunner().invoke(edge_commands.edge, ["config", str(path)])
    assert isinstance(refused.exception, UsageError)


@pytest.mark.parametrize(
    ("text", "words"),
    [('bundle = "x"', "give --source"), ('source = "mic"', "give --broker"), ("threads = 0", "threads is 0")],
)
def test_a_run_without_what_it_needs_says_so(tmp_path, text, words):
    result = CliRunner().invoke(edge_commands.edge, ["run", "--config", str(write(tmp_path, text))])
    with pytest.raises(UsageError, match=words):
        raise result.exception


def test_the_documentation_shows_every_setting():
    page = (Path(__file__).parents[2] / "docs" / "operation.md").read_text()
    assert f"```toml\n{as_toml(DeviceConfig)}```" in page, "put the output of `ssc edge config` into docs/operation.md"


def test_a_mark_that_no_editor_shows_is_no_fault_and_another_encoding_is_named(tmp_path):
    path = write(tmp_path, "")
    path.write_bytes(b"\xef\xbb\xbfcount = 3\r\n")
    assert read(Sample, path) == {"count": 3}
    for encoding in ("utf-16", "utf-16-le", "latin-1"):
        path.write_bytes('name = "Käfer"\n'.encode(encoding))
        with pytest.raises(FormatError, match=r"settings.toml: .*not UTF-8 text.*; save it as UTF-8"):
            read(Sample, path)


def test_a_brokers_address_is_checked_where_it_is_given(tmp_path):
    path = write(tmp_path, 'broker = "nats://pi:TopSecret@gateway:high"\n')
    with pytest.raises(UsageError, match=r"settings.toml: broker: broker nats://\*\*\*@gateway:high: the port"):
        read(DeviceConfig, path)
    with pytest.raises(UsageError, match="broker mqtt://gateway: mqtt:// is not one of"):
        load(DeviceConfig, None, {"broker": "mqtt://gateway"})
