"""Options with earlier names, and help of two lengths."""

import click
import pytest
from click.testing import CliRunner

from runtime_edge.click_options import ManyOptions, RenamedOption


@click.command(cls=ManyOptions, common=["out"], context_settings={"auto_envvar_prefix": "TRY"})
@click.option("--out", help="Where to.")
@click.option("--meter", "--energy", cls=RenamedOption, earlier=["--energy"], default="auto", help="What counts.")
@click.option("--seed", type=int, help="Seed of everything.")
@click.option("--secret", hidden=True, help="Nobody sees it.")
def command(**given):
    """Try."""
    click.echo(given)


def call(*arguments, **environment):
    done = CliRunner().invoke(command, arguments, env=environment, prog_name="try")
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("name", ["--meter", "--energy"])
def test_both_names_of_a_renamed_option_set_it(name):
    assert "'meter': 'rapl'" in call(name, "rapl")


def test_both_names_are_variables_and_the_present_one_wins():
    assert "'meter': 'rapl'" in call(TRY_ENERGY="rapl")
    assert "'meter': 'nvml'" in call(TRY_ENERGY="rapl", TRY_METER="nvml")
    assert "'meter': 'none'" in call("--energy", "none", TRY_METER="nvml")
    assert "'meter': 'auto'" in call()


def test_help_shows_the_common_options_and_how_to_see_all():
    shown = call("--help")
    assert "--out" in shown
    assert "--help-all" in shown
    assert "--meter" not in shown
    assert "All 5 options: try --help-all" in shown


def test_the_whole_help_shows_all_options_by_their_present_names():
    shown = call("--help-all")
    assert [name for name in ("--out", "--meter", "--seed", "--help-all", "--help") if name not in shown] == []
    assert "--energy" not in shown
    assert "--secret" not in shown


def test_what_is_common_has_to_be_an_option():
    with pytest.raises(ValueError, match="common names level, which it does not have"):
        click.command(cls=ManyOptions, common=["level"])(lambda: None)
