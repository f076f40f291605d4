"""The certificates of the host: validity, key protection, and remaining lifetime.

Does IO, read-only: the certificates of the plan, which is empty where TLS is off.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from provision.checks.certificate import Certificate, Leaf, days_left, due, judge, look
from provision.checks.finding import Severity
from provision.checks.registry import Row, Scope, check
from provision.plan.schema import Plan

PAGE = "docs/the-certificate-expired.md"


@check(
    "certificate",
    scope=Scope.LOCAL,
    area="access",
    severity=Severity.CRITICAL,
    expected="a protected key and a valid certificate of the CA for this host",
    why="clients with verify-full are refused, or the key is exposed",
    fix=f"{{site}}  # {PAGE}",
    tags="tls",
)
def certificates(plan: Plan) -> Iterator[Row]:
    """Report every problem of each certificate and its key."""
    for leaf in leaves(plan):
        yield from problems(leaf, Path(plan.tls.ca))


@check(
    "certificate-age",
    scope=Scope.LOCAL,
    area="access",
    expected="more than a third of the certificate's lifetime left",
    why="the automatic renewal did not run when it was due; check its timer",
    fix=f"{{site}}  # {PAGE}",
    tags="tls",
)
def ages(plan: Plan) -> Iterator[Row]:
    """Report sound certificates that are overdue for renewal."""
    for leaf in leaves(plan):
        yield from overdue(leaf, Path(plan.tls.ca))


def leaves(plan: Plan) -> list[Leaf]:
    """Return the expected certificates of a plan; the host's own names and addresses are not among the names. Pure."""
    return [
        Leaf(
            certificate=Path(each.certificate),
            key=Path(each.key),
            names=(plan.tls.name,) if each.purpose == "server" else (),
            common_name="" if each.purpose == "server" else each.common_name,
            purpose=each.purpose,
        )
        for each in plan.tls.certificates
    ]


def problems(leaf: Leaf, authority: Path) -> list[str]:
    """Read a certificate and its key from disk and name their problems."""
    return judge(leaf, authority, look(leaf, authority), time.time())


def overdue(leaf: Leaf, authority: Path) -> list[str]:
    """Name a sound certificate that should have been renewed; a certificate with problems is not reported again."""
    seen, now = look(leaf, authority), time.time()
    if isinstance(seen.certificate, Certificate) and not judge(leaf, authority, seen, now):
        left = days_left(seen.certificate, now)
        return [f"{leaf.certificate}: {left} days left"] if due(seen.certificate, now) else []
    return []
