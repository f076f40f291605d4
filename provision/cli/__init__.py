"""The `provision` command: each subcommand is a module of this package, imported on use.

Results go to stdout, progress to stderr. Exit codes: 0 done, 1 failed, 2 usage, 3 drift or pending.
Hosts have only psycopg and click: modules import everything else inside functions.
"""

import importlib
import pkgutil
import sys
from typing import NoReturn

import click

from provision import __version__
from provision.cli._echo import echo
from provision.cli._usage import usage
from provision.errors import ProvisionError


class Commands(click.Group):
    """A group of the modules of this package, each with a click command named `command`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the module names in alphabetical order."""
        del ctx
        return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of a command."""
        if cmd_name not in self.list_commands(ctx):
            return None
        command = importlib.import_module(f"provision.cli.{cmd_name}").command
        assert isinstance(command, click.Command)  # noqa: S101 - every module has one
        return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="provision")
def root() -> None:
    """Create, migrate, check and verify PostgreSQL + pgvector hosts."""


def main() -> None:
    """Run the command line; print an error as one paragraph, without a traceback."""
    try:
        code = root.main(prog_name="provision", standalone_mode=False)
    except click.UsageError as error:
        if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):  # click 8.2: the help of a group
            error.show()
            sys.exit(error.exit_code)
        _fail(usage(error))
    except click.Abort:
        echo("Aborted.", err=True)
        sys.exit(1)
    except ProvisionError as error:
        _fail(error)
    sys.exit(code if isinstance(code, int) else 0)  # the exit code of --help and --version; commands return nothing


def _fail(error: ProvisionError) -> NoReturn:
    echo(f"Error: {error}", err=True)
    sys.exit(error.exit_code)
