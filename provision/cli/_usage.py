"""Turn click's usage errors into ours: one paragraph, with the usage and the next command. Pure."""

from __future__ import annotations

import difflib
import re

import click

from provision.errors import UsageError

KINDS = {" integer range": " integer", " float range": " number"}
"""click's names of types, and the words for them."""


def usage(error: click.UsageError) -> UsageError:
    """Return the error with what was given, what is allowed, and the command that prints the help."""
    message = error.format_message().rstrip(".")
    for name, word in KINDS.items():
        message = re.sub(rf"{name}$", word, message)
    # click 8.2 suggests commands itself, all that are near; 8.1, of the hosts, none.
    message = re.sub(r"(No such command '[^']*').*", r"\1", message)
    message = message[:1].lower() + message[1:]
    if error.ctx is None:
        return UsageError(message, run="the same command with --help")
    shown = " ".join(error.ctx.command.get_usage(error.ctx).split()).removeprefix("Usage: ")
    allowed = _commands(message, error.ctx) or _values(message) or shown
    return UsageError(message, where=error.ctx.command_path, allowed=allowed, run=f"{error.ctx.command_path} --help")


def _values(message: str) -> str:
    """Return the numbers or words that are allowed; "" for an error that is not about a range or a choice."""
    if words := re.search(r" is not one of ('.+')$", message):
        return words[1].replace("'", "")
    if least := re.search(r" is not in the range x>=(\S+)$", message):
        return f"{least[1]} or more"
    if both := re.search(r" is not in the range (\S+)<=x<=(\S+)$", message):
        return f"{both[1]} to {both[2]}"
    return ""


def _commands(message: str, context: click.Context) -> str:
    """Return the nearest command, or all of the group; "" for an error that is not about a command."""
    found = re.fullmatch(r"no such command '(.*)'", message)
    if not found or not isinstance(context.command, click.Group):
        return ""
    known = context.command.list_commands(context)
    near = difflib.get_close_matches(found[1], known, 1)
    return near[0] if near else ", ".join(known)
