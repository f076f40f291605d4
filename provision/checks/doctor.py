"""Everything that can be asked about a host, or about a database behind a URL, in one look. Does IO, read-only.

`safe` findings can be mended here too: their commands lose nothing, cut nobody off and let nobody in.
"""

from __future__ import annotations

import socket
import subprocess
from dataclasses import dataclass

from provision.checks import certificates, drift, files, hardening, host, pooler, reach, schema, units
from provision.checks.finding import Finding, Severity
from provision.checks.place import Place, examine
from provision.database import connect_pinned, unreadable
from provision.errors import DatabaseError
from provision.plan import record
from provision.system import as_user

HOST_CHECKS = (*units.CHECKS, *files.CHECKS, *host.CHECKS)
SQL_CHECKS = (*hardening.CHECKS, *schema.CHECKS)
DRIFT = 5  # connection, access, migrations, the running binary, other databases' extensions


@dataclass(frozen=True)
class Report:
    """How many checks were made, of what, and what they found."""

    about: str
    checks: int
    findings: list[Finding]

    @property
    def counted(self) -> list[Finding]:
        """Those for which somebody has to do something."""
        return [each for each in self.findings if each.counts]


def this_host() -> Place | None:
    """Give this host if it is one of ours."""
    return Place(record.read(), socket.gethostname().partition(".")[0]) if record.PATH.exists() else None


def look_at(place: Place) -> Report:
    """Look at this host and its server; as root it sees everything."""
    found = examine(place, HOST_CHECKS) + certificates.examine() + pooler.examine()
    with as_user():
        try:
            found += _server(place)
        except DatabaseError as error:
            found.append(reach.explain(error.seen, place.url(), place))
    count = len(HOST_CHECKS) + len(certificates.CHECKS) + len(pooler.CHECKS) + len(SQL_CHECKS) + DRIFT
    return Report(place.name, count, _once(found))


def look_from_afar(url: str, about: str) -> Report:
    """Look at a database behind a URL, or say why it cannot be reached."""
    try:
        with connect_pinned(url, application="provision doctor", statement_timeout_ms=30_000) as connection:
            found = hardening.examine(connection, SQL_CHECKS)
    except DatabaseError as error:
        if unreadable(url):
            raise
        found = [reach.explain(error.seen, url)]
    found += certificates.examine() + pooler.examine()  # of this machine, if it is a host of ours
    count = len(SQL_CHECKS) + len(certificates.CHECKS) + len(pooler.CHECKS) + 1
    return Report(about, count, found)


def mend(findings: list[Finding]) -> list[tuple[str, bool, str]]:
    """Run the commands of safe findings, as root; give each with whether it succeeded and what it said."""
    done = []
    for command in dict.fromkeys(each.fix for each in findings if each.safe and each.counts):
        answer = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, cwd="/")  # noqa: S603, S607
        done.append((command, answer.returncode == 0, (answer.stderr or answer.stdout).strip()))
    return done


def _server(place: Place) -> list[Finding]:
    with drift.open_as_superuser(place) as connection:
        found = hardening.examine(connection, SQL_CHECKS)
        found += drift.access(place, connection)
        found += drift.binary(place, connection)
        others = drift.other_databases(place, connection)
    found += drift.migrations(place)
    for name in others:
        with drift.open_as_superuser(place, name) as connection:
            found += hardening.examine(connection, (schema.EXTENSION_FILES,))
    return found


def _once(found: list[Finding]) -> list[Finding]:
    """Keep one of two findings that name the same trouble, whose command mends it alone; the worst come first."""
    better = {each.id for each in found if _exact(each)}
    missing = any(each.id == "extensions-missing" for each in found)
    kept = [
        each
        for each in found
        if (each.id not in better or _exact(each))
        and not (missing and each.id == "access-drift" and each.seen.startswith("to be mended: extension "))
    ]
    return sorted(kept, key=lambda each: list(Severity).index(each.severity))


def _exact(finding: Finding) -> bool:
    return finding.fix.startswith("runuser -u postgres -- provision migrate")
