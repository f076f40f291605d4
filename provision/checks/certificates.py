"""The certificates of the host that `doctor` runs on: what is wrong with them, and how long they still last.

Does IO, read-only: the files that /etc/provision/host.json names (member tls), with the openssl command. On a machine
that is no host of ours, or where TLS is off, there is nothing to find.
"""

from __future__ import annotations

import time
from pathlib import Path

from provision.checks.certificate import Certificate, Leaf, days_left, due, judge, look
from provision.checks.finding import Finding, Severity
from provision.errors import HostError
from provision.plan import record

CHECKS = ("certificate", "certificate-age")
RENEW = "ansible-playbook site.yml -i inventories/prod --tags tls (docs/the-certificate-expired.md)"


def examine(path: Path = record.PATH, now: float | None = None) -> list[Finding]:
    """Judge each certificate that the record names. A record that may not be read comes as unseen."""
    if not path.exists():
        return []
    try:
        wanted = record.read(path).get("tls") or {}
    except HostError as error:
        return [Finding(CHECKS[0], "access", Severity.UNSEEN, error.seen, "", "", "ask as root or postgres")]
    moment = time.time() if now is None else now
    return [each for row in wanted.get("certificates", []) for each in _examine(row, Path(wanted["ca"]), moment)]


def _examine(row: dict[str, str], authority: Path, now: float) -> list[Finding]:
    leaf = Leaf(
        certificate=Path(row["certificate"]),
        key=Path(row["key"]),
        names=(row["name"],) if row["purpose"] == "server" else (),
        common_name="" if row["purpose"] == "server" else row["name"],
        purpose=row["purpose"],
        keeper=row.get("keeper", Leaf.keeper),
    )
    seen = look(leaf, authority)
    found = [
        Finding(
            CHECKS[0], "access", Severity.CRITICAL, problem,
            "a key that is kept, and a certificate that is valid, for this host, and of the authority",
            "clients with verify-full are refused, or a stranger has the key", RENEW,
        )
        for problem in judge(leaf, authority, seen, now)
    ]  # fmt: skip
    if isinstance(seen.certificate, Certificate) and not found and due(seen.certificate, now):
        left = days_left(seen.certificate, now)
        seen_text, why = (
            f"{leaf.certificate}: {left} days left",
            "nothing renewed it when it was due: does the timer run?",
        )
        wanted = "more than a third of its life"
        found.append(Finding(CHECKS[1], "access", Severity.WARNING, seen_text, wanted, why, RENEW))
    return found
