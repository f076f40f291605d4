"""The --database option, judged before a command starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from provision import urls
from provision.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])


def _given(context: click.Context, parameter: click.Parameter, value: str) -> str:
    given = context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
    if given and not value.strip():
        # Otherwise libpq would silently use the environment's database or a local one.
        raise UsageError(
            "--database is empty",
            seen="an empty value, perhaps from a failed command",
            allowed="a libpq URL; omit the option to use DATABASE_URL or the PG* environment",
        )
    return value


def _judged(context: click.Context, parameter: click.Parameter, value: str) -> str:
    return urls.read(_given(context, parameter, value)).url


def _option(callback: Callable[[click.Context, click.Parameter, str], str]) -> Callable[[F], F]:
    return click.option(
        "--database",
        "url",
        envvar="DATABASE_URL",
        default="",
        callback=callback,
        help="libpq URL [default: DATABASE_URL or PG*].",
    )


database_option = _option(_judged)
"""Gives the command a URL that libpq reads: without golang-migrate's own options."""

migration_database_option = _option(_given)
"""Gives the command the URL as it was written, for `settings.from_url`."""
