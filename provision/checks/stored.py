"""Settings stored in the database or for a superuser that every session gets at connect. Read-only.

`provision` overrides them in its own sessions (see `pins`); other clients, and an administrator's psql, do not.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from provision import pins
from provision.checks.finding import Severity, psql
from provision.checks.registry import Row, Scope, check
from provision.database import Connection, identifier

_STORED = b"""
SELECT coalesce(r.rolname::text, ''), s.setdatabase = 0, split_part(e.entry, '=', 1),
  substr(e.entry, strpos(e.entry, '=') + 1)
FROM pg_db_role_setting s CROSS JOIN unnest(s.setconfig) AS e (entry) LEFT JOIN pg_roles r ON r.oid = s.setrole
WHERE s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
  AND (s.setrole = 0 OR r.rolsuper) ORDER BY 1, 2, 3
"""
PINNED = {
    name.lower(): value for name, value in {**pins.EVERYWHERE, **pins.SUPERUSER, pins.TRANSACTION_TIMEOUT: "0"}.items()
}
"""Settings that a session of ours sets itself, with the value."""


@check(
    "stored-settings",
    scope=Scope.DATABASE,
    area="settings",
    expected="no stored setting that redirects or ends the sessions of administrators",
    why="psql and other tools run with it; provision's own sessions override it",
    every_database=True,
)
def stored(session: Connection) -> Iterator[Row]:
    """Report in one finding what is stored; accepted where it changes only the form of results."""
    database = session.info.dbname
    seen, statements, names, harmful = [], [], set(), False
    for role, everywhere, name, value in session.execute(_STORED).fetchall():
        if str(name).lower() not in PINNED:
            continue
        harmful = harmful or str(name) in pins.HARMFUL
        names.add(str(name).lower())
        whom = f"ROLE {identifier(str(role)) if role else 'ALL'}"
        place = f"DATABASE {identifier(database)}"
        target = whom if everywhere else f"{whom} IN {place}" if role else place
        seen.append(f"{target} sets {name} = {value}")
        statements.append(f"ALTER {target} RESET {identifier(str(name))}")
    if seen:
        # psql's own session has these settings too: a read-only one could not reset them.
        options = shlex.quote(pins.options({name: value for name, value in PINNED.items() if name in names}))
        fix = f"PGOPTIONS={options} {psql(database, *statements)}"
        yield "; ".join(seen), fix, Severity.WARNING if harmful else Severity.ACCEPTED
