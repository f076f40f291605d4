"""`provision own`: give a placed file its owner and mode, as `provision doctor --fix` does."""

from __future__ import annotations

import grp
import pwd
from pathlib import Path

import click

from provision import secure_path
from provision.errors import HostError, UsageError


@click.command("own")
@click.argument("path", type=click.Path(path_type=Path))
@click.argument("owner")
@click.argument("mode")
def command(path: Path, owner: str, mode: str) -> None:
    """Set owner (USER:GROUP) and mode (octal) of a path.

    Links of other users are refused, in the path and at its end.
    """
    user, _, group = owner.partition(":")
    try:
        numbers = pwd.getpwnam(user).pw_uid, grp.getgrnam(group).gr_gid
        secure_path.chown(path, numbers, int(mode, 8))
    except (KeyError, ValueError) as error:
        raise UsageError(
            "no such owner or mode", seen=f"{owner} {mode}: {error}", allowed="postgres:postgres 0640"
        ) from None
    except OSError as error:
        raise HostError("owner and mode are unchanged", where=str(path), seen=error.strerror or str(error)) from None
