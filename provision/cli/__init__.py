"""The `provision` command: each subcommand is one module of this package, imported when it is called.

Stdout is the result, stderr the narration. Exit codes: 0 done, 1 failed, 2 usage, 3 drift or pending.
A host has only psycopg and click: a module imports what else it needs inside its functions.
"""

import importlib
import pkgutil
import sys

import click

from provision import __version__
from provision.errors import ProvisionError


class Commands(click.Group):
    """A group whose members are the modules of this package; each holds a click command named `command`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name every module, in alphabetical order."""
        del ctx
        return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of that name."""
        if cmd_name not in self.list_commands(ctx):
            return None
        command = importlib.import_module(f"provision.cli.{cmd_name}").command
        assert isinstance(command, click.Command)  # noqa: S101 - a module without a command is our own mistake
        return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="provision")
def root() -> None:
    """Make, migrate, check and prove PostgreSQL + pgvector hosts."""


def main() -> None:
    """Run the command line; an error of ours becomes a message and an exit code, never a traceback."""
    try:
        root(prog_name="provision")
    except ProvisionError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(error.exit_code)
