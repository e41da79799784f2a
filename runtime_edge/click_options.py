"""What `ssc`'s commands add to click: renamed options that keep their earlier names, and help in two lengths.

@click.command(cls=ManyOptions, common=["out"])
@click.option("--meter", "--energy", cls=RenamedOption, earlier=["--energy"])
"""

from __future__ import annotations

import copy
import os
from collections.abc import Collection
from typing import Any

import click

HELP_ALL = "--help-all"


class RenamedOption(click.Option):
    """An option that had other names in earlier versions: they still work, but no help shows them."""

    def __init__(self, *arguments: Any, earlier: Collection[str], **settings: Any) -> None:
        """`earlier`: those of the option's names that help does not show, with their hyphens."""
        super().__init__(*arguments, **settings)
        self.earlier = tuple(earlier)

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Show only its present names."""
        shown = copy.copy(self)
        shown.opts = [name for name in self.opts if name not in self.earlier]
        shown.secondary_opts = [name for name in self.secondary_opts if name not in self.earlier]
        return super(RenamedOption, shown).get_help_record(ctx)

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        """The environment variable of its present name, else that of an earlier name."""
        value = super().resolve_envvar_value(ctx)
        if value is None and self.allow_from_autoenv and ctx.auto_envvar_prefix is not None:
            named = (name.strip("-").replace("-", "_").upper() for name in self.earlier)
            found = (os.environ.get(f"{ctx.auto_envvar_prefix}_{name}") for name in named)
            value = next(filter(None, found), None)
        return value


class ManyOptions(click.Command):
    """A command with so many options that `--help` shows only the common ones, and `--help-all` all of them."""

    def __init__(self, *arguments: Any, common: Collection[str], **settings: Any) -> None:
        """`common`: the names of parameters, as in the command's function."""
        super().__init__(*arguments, **settings)
        self.common = frozenset(common)
        known = {param.name for param in self.params}
        if unknown := self.common - known:
            raise ValueError(f"{self.name}: common names {', '.join(sorted(unknown))}, which it does not have")

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The parameters, with `--help-all` before `--help`."""
        *others, last = super().get_params(ctx)
        more = click.Option(
            [HELP_ALL], is_flag=True, is_eager=True, expose_value=False, callback=_show_all, allow_from_autoenv=False,
            help="Show all options and exit.",
        )  # fmt: skip
        return [*others, more, last]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Show only the options that the requested help covers."""
        whole = ctx.meta.get(HELP_ALL, False)
        records = [
            record
            for param in self.get_params(ctx)
            if whole or param.name in self.common or param not in self.params
            if (record := param.get_help_record(ctx)) is not None
        ]
        with formatter.section("Options" if whole else "Common options"):
            formatter.write_dl(records)
        if not whole:
            count = sum(param.get_help_record(ctx) is not None for param in self.get_params(ctx))
            formatter.write(f"\n{' ' * formatter.current_indent}All {count} options: {ctx.command_path} {HELP_ALL}\n")


def _show_all(context: click.Context, option: click.Parameter, given: bool) -> None:
    if given and not context.resilient_parsing:
        context.meta[HELP_ALL] = True
        click.echo(context.get_help(), color=context.color)
        context.exit()
