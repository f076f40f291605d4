"""`provision shell`: man pages and completion for bash, zsh and fish."""

from __future__ import annotations

import json
from pathlib import Path

import click
from click.shell_completion import get_completion_class

from provision.cli._echo import echo
from provision.host import shell

VARIABLE = "_PROVISION_COMPLETE"


@click.group("shell")
def command() -> None:
    """Set up shell completion and man pages."""


@command.command()
@click.argument("name", metavar="SHELL", type=click.Choice(list(shell.COMPLETIONS)))
@click.pass_context
def completion(context: click.Context, name: str) -> None:
    """Print the completion script of a shell: bash, zsh or fish."""
    echo(_completion(context, name), nl=False)


@command.command()
@click.option("--prefix", type=click.Path(path_type=Path, file_okay=False), default=shell.PREFIX, show_default=True,
              help="Directory above share/man and share/bash-completion; ~/.local for one user.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def install(context: click.Context, prefix: Path, as_json: bool) -> None:
    """Install the man pages and the completion of all shells."""
    root = context.find_root().command
    assert isinstance(root, click.Group)  # noqa: S101 - provision itself
    manuals = shell.pages(root.list_commands(context))
    changed = shell.install(prefix, manuals, {name: _completion(context, name) for name in shell.COMPLETIONS})
    if as_json:
        echo(json.dumps({"changed": bool(changed), "changes": [str(path) for path in changed]}))
    else:
        echo("\n".join(f"changed {path}" for path in changed) or "no change")


def _completion(context: click.Context, name: str) -> str:
    kind = get_completion_class(name)
    assert kind  # noqa: S101 - click knows these shells
    made = kind(context.find_root().command, {}, "provision", VARIABLE)
    # Not source(), which runs bash for its version on every call.
    return f"{made.source_template % made.source_vars()}\n"
