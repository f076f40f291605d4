"""Exceptions of the package, and `some` for their messages. Imports nothing.

Only the command line prints them and sets the exit code.
Every error states, in this order: what failed and where, the value seen, the allowed values, the next command or step.
An error never contains a secret or a whole SQL file.
"""

CONTINUED = "\n" + 11 * " "


class ProvisionError(Exception):
    """A failure. `exit_code` is the exit code of the command line (0 done, 1 failed, 2 usage, 3 drift)."""

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", seen: str = "", allowed: str = "", run: str = "") -> None:
        """Store the parts of the message; `run` is the exact next command or, where none exists, the next step."""
        super().__init__(what)
        self.what, self.where, self.seen, self.allowed, self.run = what, where, seen, allowed, run

    def __str__(self) -> str:
        """Return one aligned line per non-empty part.

        Further lines of a part are indented, so that a text from outside cannot look like another part.
        """
        rows = (("where", self.where), ("seen", self.seen), ("allowed", self.allowed), ("next", self.run))
        lines = [self.what, *(f"  {label + ':':<9}{text}" for label, text in rows if text)]
        return "\n".join(line.replace("\n", CONTINUED) for line in lines)


class UsageError(ProvisionError):
    """A wrong option, name or value. Nothing was changed."""

    exit_code = 2


class ConfirmationError(UsageError):
    """A request to destroy data of database or tenant `name` without the confirmation, which is that name."""

    def __init__(
        self, what: str, *, name: str, kind: str = "database", where: str = "", seen: str = "", run: str = ""
    ) -> None:
        """Store the name to type."""
        super().__init__(what, where=where, seen=seen, allowed=f"typing the {kind}'s name, {name}", run=run)
        self.name = name


class DriftError(ProvisionError):
    """The check succeeded and found drift or pending work."""

    exit_code = 3


class DatabaseError(ProvisionError):
    """The server refused a statement, is unreachable, or is the wrong server."""


class MigrationError(ProvisionError):
    """A migration could not be read, planned or applied."""


class HostError(ProvisionError):
    """A host or the controller lacks a requirement."""


def some(names: list[str], most: int = 5) -> str:
    """Return the first names of a list for a message, and the number of the others. Pure."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
