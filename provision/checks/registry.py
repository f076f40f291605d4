"""The registry of checks: every check of this package, its description, and the functions that look for deviations.

A function registered with `check` yields one row per deviation; what it is called with follows from its scope. `of`
discovers the modules of the package, also inside the packed command on hosts. Does no IO itself.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Required, TypedDict, TypeVar, Unpack

import psycopg

from provision import checks as package
from provision.checks.finding import Finding, Severity, psql
from provision.database import Connection
from provision.errors import DatabaseError

Row = str | tuple[str, str] | tuple[str, str, Severity]
"""The state seen; the fix, where it is not the check's own; the severity, where it is not the check's own."""
Site = Callable[..., str]
"""Gives the playbook command for tags, as `Plan.site` does: `site(tags, extra=...)`."""
Look = TypeVar("Look", bound=Callable[..., Iterable[Row]])
ROWS_SHOWN = 5
READER = "certificate_reader"
"""Registers no check, and needs python3-cryptography, which a host without TLS does not have."""


class Scope(StrEnum):
    """Where a check looks, and so the arguments of its function."""

    HOST = "host"
    """(plan): files, systemd, packages and evidence on the host, as root."""
    LOCAL = "local"
    """(plan): on the host, as root or postgres; `doctor --database` includes these when it runs on a host."""
    POOLER = "pooler"
    """(pooler.Seen): the settings and files of the running PgBouncer."""
    SERVER = "server"
    """(plan, session): a superuser session on the host's own server."""
    DATABASE = "database"
    """(session): a session of any role on any database; fixes need no plan."""
    CONNECTION = "connection"
    """(reach.Refusal): a failed connection; the first check that recognises the message names the cause."""
    AUDIT = "audit"
    """(outside.Outside): the facts that the controller reads over SSH."""


@dataclass(frozen=True)
class Check:
    """The description of a check; documentation and findings are made of it.

    `fix` is the default fix; `{site}` in it stands for the playbook command with `tags` and `extra`. `safe`: see
    Finding. `development`: accepted on a development host. `every_database`: a DATABASE check for all databases of a
    server, not only for the application's.
    """

    id: str
    area: str
    expected: str
    why: str
    severity: Severity = Severity.WARNING
    fix: str = "{site}"
    tags: str = ""
    extra: str = ""
    safe: bool = False
    development: bool = False
    every_database: bool = False

    def finding(self, row: Row, site: Site, *, development: bool = False) -> Finding:
        """Make the finding of a row."""
        seen, fix, *given = (row, "") if isinstance(row, str) else row
        usual = Severity.ACCEPTED if development and self.development else self.severity
        fix = (fix or self.fix).replace("{site}", site(self.tags, extra=self.extra))
        return Finding(self.id, self.area, given[0] if given else usual, seen, self.expected, self.why, fix, self.safe)


class About(TypedDict, total=False):
    """The fields of a check as keywords of its registration; see Check."""

    area: Required[str]
    expected: Required[str]
    why: Required[str]
    severity: Severity
    fix: str
    tags: str
    extra: str
    safe: bool
    development: bool
    every_database: bool


_CHECKS: dict[str, Check] = {}
_LOOKS: list[tuple[str, Scope, Callable[..., Iterable[Row]]]] = []


def check(id: str, scope: Scope = Scope.HOST, **about: Unpack[About]) -> Callable[[Look], Look]:  # noqa: A002
    """Register a function as a check. Raises ValueError for an id that is taken."""
    if id in _CHECKS:
        raise ValueError(f"two checks have the id {id}")
    _CHECKS[id] = Check(id, **about)
    return also(id, scope)


def also(id: str, scope: Scope) -> Callable[[Look], Look]:  # noqa: A002
    """Register a further function for a check, which looks for the same deviation from another scope."""

    def register(look: Look) -> Look:
        _LOOKS.append((id, scope, look))
        return look

    return register


def query(id: str, sql: str, **about: Unpack[About]) -> None:  # noqa: A002
    """Register a query as a check of scope DATABASE.

    The query returns one row per deviation: a text, and optionally the statement that fixes it. NULL: the default fix.
    """
    check(id, Scope.DATABASE, **about)(functools.partial(_ask, sql))


def _ask(sql: str, session: Connection) -> Iterator[Row]:
    """Run a query; give its rows as one row with all statements, and one for those without a statement."""
    rows = [(str(row[0]), row[1] if len(row) > 1 else None) for row in session.execute(sql.encode()).fetchall()]
    statements, database = [str(statement) for _, statement in rows if statement is not None], session.info.dbname
    if any(each.startswith("ALTER SYSTEM") for each in statements):
        # In the database that only superusers change: elsewhere the owner can substitute the function.
        statements, database = [*statements, "SELECT pg_reload_conf()"], "postgres"
    for fix, texts in (
        (psql(database, *statements), [text for text, statement in rows if statement is not None]),
        ("", [text for text, statement in rows if statement is None]),
    ):
        if texts:
            more = f" and {len(texts) - ROWS_SHOWN} more" if len(texts) > ROWS_SHOWN else ""
            yield "; ".join(texts[:ROWS_SHOWN]) + more, fix


@functools.cache
def _discover() -> None:
    """Import every module of the package that registers checks."""
    for module in pkgutil.iter_modules(package.__path__):
        if module.name != READER:
            importlib.import_module(f"{package.__name__}.{module.name}")


def every() -> list[Check]:
    """Return all checks by area and id."""
    _discover()
    return sorted(_CHECKS.values(), key=lambda each: (each.area, each.id))


def get(id: str) -> Check:  # noqa: A002
    """Return one check. Raises KeyError."""
    _discover()
    return _CHECKS[id]


def of(scope: Scope) -> list[tuple[Check, Callable[..., Iterable[Row]]]]:
    """Return the checks of a scope with their functions, in the order of registration."""
    _discover()
    return [(_CHECKS[id_], look) for id_, scope_, look in _LOOKS if scope_ is scope]


def examine(
    scope: Scope,
    *arguments: object,
    site: Site,
    development: bool = False,
    every_database: bool = False,
    areas: Collection[str] = (),
) -> list[Finding]:
    """Run the checks of a scope and return their findings.

    A check that the caller lacks the privilege for is UNSEEN; one that fails is a finding: neither an object's owner
    nor evidence, which the group postgres can write, may hide it or end the other checks. `every_database` runs only
    the checks that apply to every database of a server, `areas` those of some areas. Raises DatabaseError where the
    connection is lost.
    """
    found = []
    for each, look in of(scope):
        rows: list[Row]
        if (every_database and not each.every_database) or (areas and each.area not in areas):
            continue
        try:
            rows = list(look(*arguments))
        except PermissionError as error:
            rows = [(f"{error.filename}: {error.strerror}", "run it as root", Severity.UNSEEN)]
        except psycopg.errors.InsufficientPrivilege as error:
            rows = [(_first_line(error), "", Severity.UNSEEN)]
        except psycopg.Error as error:
            if any(isinstance(given, psycopg.Connection) and given.closed for given in arguments):
                raise DatabaseError("the connection was lost", seen=str(error).strip()) from None
            rows = [f"the check failed: {_first_line(error)}"]
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            rows = [f"the check failed on damaged evidence: {type(error).__name__}: {_first_line(error)}"]
        found += [each.finding(row, site, development=development) for row in rows]
    return found


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def unknown_site(tags: str = "", *, extra: str = "", limit: str = "", inventories: Sequence[str] = ()) -> str:
    """Return the playbook command for a host without a readable plan; INVENTORY stands for an unknown inventory."""
    words = ["ansible-playbook site.yml", *(f"-i {shlex.quote(each)}" for each in inventories or ["INVENTORY"])]
    words += [f"--limit {limit}"] if limit else []
    words += [f"--tags {tags}"] if tags else []
    words += [extra] if extra else []
    return " ".join(words if inventories else [*words, " # INVENTORY: the inventory of this host"])
