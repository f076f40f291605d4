"""The one tree of errors. Imports nothing; only the command line prints them and chooses the exit code.

Every error answers four questions, in this order: what failed and where, what was seen, what is allowed,
which command to run next. None of them may hold a secret or a whole SQL file.
"""


class ProvisionError(Exception):
    """Something failed. `exit_code` is what the command line exits with (0 done, 1 failed, 2 usage, 3 drift)."""

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", seen: str = "", allowed: str = "", run: str = "") -> None:
        """Keep the four answers; `run` is the exact next command."""
        super().__init__(what)
        self.what, self.where, self.seen, self.allowed, self.run = what, where, seen, allowed, run

    def __str__(self) -> str:
        """One line per answer that is there, aligned for a terminal."""
        rows = (("where", self.where), ("seen", self.seen), ("allowed", self.allowed), ("run", self.run))
        return "\n".join([self.what, *(f"  {label + ':':<9}{text}" for label, text in rows if text)])


class UsageError(ProvisionError):
    """The call itself is wrong: an option, a name, a value. Nothing was touched."""

    exit_code = 2


class ConfirmationError(UsageError):
    """What was asked for destroys data of the database `name`, and nobody typed that name yet."""

    def __init__(self, what: str, *, name: str, where: str = "", seen: str = "", run: str = "") -> None:
        """Keep the name to be typed."""
        super().__init__(what, where=where, seen=seen, allowed=f"typing the database's name, {name}", run=run)
        self.name = name


class DriftError(ProvisionError):
    """The call worked and found something that is not as it should be, or that is still to do."""

    exit_code = 3


class DatabaseError(ProvisionError):
    """The server refused, is not there, or is not the one that was meant."""


class MigrationError(ProvisionError):
    """A migration could not be read, planned or applied."""


class HostError(ProvisionError):
    """A host, or the machine that makes hosts, lacks something that is needed."""
