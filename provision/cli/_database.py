"""The option that says which database a command means."""

from __future__ import annotations

import click
from click.core import ParameterSource

from provision.errors import UsageError


def _named(context: click.Context, parameter: click.Parameter, value: str) -> str:
    given = context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
    if given and not value.strip():
        # Else libpq would take the environment's database, or a local one, for the one that was meant.
        raise UsageError(
            "--database is empty",
            seen="an empty value, perhaps of a command that failed",
            allowed="a libpq URL; leave the option out for DATABASE_URL or the PG* environment",
        )
    return value


database_option = click.option(
    "--database", "url", envvar="DATABASE_URL", default="", callback=_named, help="libpq URL [DATABASE_URL, else PG*]."
)
