"""The --database option."""

from __future__ import annotations

import click
from click.core import ParameterSource

from provision.errors import UsageError


def _named(context: click.Context, parameter: click.Parameter, value: str) -> str:
    given = context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
    if given and not value.strip():
        # Otherwise libpq would silently use the environment's database or a local one.
        raise UsageError(
            "--database is empty",
            seen="an empty value, perhaps from a failed command",
            allowed="a libpq URL; omit the option to use DATABASE_URL or the PG* environment",
        )
    return value


database_option = click.option(
    "--database",
    "url",
    envvar="DATABASE_URL",
    default="",
    callback=_named,
    help="libpq URL [default: DATABASE_URL or PG*].",
)
