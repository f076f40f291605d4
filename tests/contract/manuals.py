"""Make the man pages of the command: `make docs` writes them into provision/man."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
from click_man.core import generate_man_page, get_short_help_str

from provision.cli import root
from tests.contract.repository import ROOT

FOLDER = ROOT / "provision/man"
LONGEST = 120
"""Longest summary of a command in characters: a whole sentence."""


def pages() -> dict[str, str]:
    """Return every page by its file name: provision.1, provision-migrate.1, provision-migrate-up.1."""
    return {f"{name.replace(' ', '-')}.1": text for name, text in _pages(root, None, "provision")}


def _pages(command: click.Command, parent: click.Context | None, name: str) -> Iterator[tuple[str, str]]:
    context = click.Context(command, info_name=name, parent=parent)
    text = generate_man_page(context, version="", date=" ")  # no date: the same sources give the same pages
    short = get_short_help_str(command, 45)  # as click-man cuts it
    text = text.replace(f"\\- {short}\n", f"\\- {get_short_help_str(command, LONGEST)}\n", 1)
    children = []
    if isinstance(command, click.Group):
        found = [(each, command.get_command(context, each)) for each in command.list_commands(context)]
        children = [(each, child) for each, child in found if child and not child.hidden]
        if children and ".SH COMMANDS" not in text:  # click-man lists only commands that are imported already
            listed = [f".PP\n\\fB{each}\\fP\n  {get_short_help_str(child, LONGEST)}" for each, child in children]
            text = "\n".join([text.rstrip(), ".SH COMMANDS", *listed, ""])
    yield context.command_path, f"{text.rstrip()}\n"
    for each, child in children:
        yield from _pages(child, context, each)


def write(folder: Path = FOLDER) -> None:
    """Write all pages, and remove those of commands that are gone."""
    folder.mkdir(exist_ok=True)
    made = pages()
    for path in folder.glob("*.1"):
        if path.name not in made:
            path.unlink()
    for name, text in made.items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    write()
