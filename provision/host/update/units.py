"""The services of a host that an update may restart, in the order of their restart. Does IO, as root.

A service restarts while one of its processes uses a replaced file. Patroni is a Python program, whose replaced files no
process maps: it restarts if it has run since before its package was installed. HAProxy is reloaded, so that its
sessions go on in the old process.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from provision import system
from provision.host import rehearsal
from provision.host.cluster import balancer
from provision.host.dcs import apply as etcd
from provision.host.member import restart as member
from provision.host.pooler import console
from provision.host.server import cluster as server
from provision.host.server import configuration, patroni
from provision.host.update import rolling, stale
from provision.plan.cluster import Cluster
from provision.plan.packages import EXPORTERS
from provision.plan.schema import Plan
from provision.system import run

INSTALLED = Path("/var/lib/dpkg/info/patroni.list")
"""dpkg writes it when it unpacks the package."""
RELOAD_S = 10
Narrate = Callable[[str], None]


@dataclass(frozen=True)
class Unit:
    """One service. `packages` are those whose update needs its restart; `back` is a command that restarts it."""

    name: str
    packages: re.Pattern[str]
    replaced: Callable[[], list[str]]
    """Replaced files that it still uses."""
    runs: Callable[[], bool]
    restart: Callable[[Narrate], dict[str, Any]]
    """Returns what is worth recording. Raises HostError."""
    back: str


def serves(plan: Plan) -> bool:
    """Return whether the host has a server."""
    return plan.cluster is None or bool(plan.cluster.member)


def of(plan: Plan) -> Iterator[Unit]:
    """Yield the services of a host."""
    if plan.cluster:
        yield from _of_cluster(plan, plan.cluster)
    else:
        yield _server(plan)
    if plan.pooler.enabled and (serves(plan) or plan.pooler_alone):
        yield _plain(console.UNIT, "pgbouncer")
    if serves(plan) and plan.monitoring.exporters:
        for name in EXPORTERS:
            yield _plain(f"{name}.service", name)


def _of_cluster(plan: Plan, cluster: Cluster) -> Iterator[Unit]:
    if cluster.dcs_member:
        back = "provision dcs restart"
        yield _plain(etcd.UNIT, rolling.ETCD, lambda _narrate: etcd.restart(plan), back=back)
    if cluster.member:
        yield _plain(
            patroni.UNIT, "patroni", lambda narrate: member.restart(plan, narrate), _old_patroni,
            back="provision member restart",
        )  # fmt: skip
        yield _member(plan, cluster)
        if plan.balancer.enabled:
            yield _plain(
                balancer.HAPROXY, "haproxy", _reload, _old_haproxy, back=f"systemctl reload {balancer.HAPROXY}"
            )


def _plain(
    unit: str, package: str, restart: Callable[[Narrate], None] | None = None,
    replaced: Callable[[], list[str]] | None = None, back: str = "",
) -> Unit:  # fmt: skip
    """Return the unit of one package; by default systemd restarts it."""

    def runs() -> bool:
        return run("systemctl", "is-active", "--quiet", unit, check=False).ok

    def act(narrate: Narrate) -> dict[str, Any]:
        if restart:
            restart(narrate)
        else:
            run("systemctl", "restart", unit)
        return {}

    asked = replaced or (lambda: stale.replaced(unit))
    return Unit(unit, re.compile(re.escape(package)), asked, runs, act, back or f"systemctl restart {unit}")


def _server(plan: Plan) -> Unit:
    """Return the server of a single host, which restarts behind its paused pooler."""
    unit = _plain(plan.server.unit, "")

    def restart(narrate: Narrate) -> dict[str, Any]:
        _rehearse(plan)
        begun = time.monotonic()
        configuration.restart(plan, narrate)
        return {"down_seconds": round(time.monotonic() - begun, 1)}

    return Unit(unit.name, _packages(plan), unit.replaced, unit.runs, restart, unit.back)


def _member(plan: Plan, cluster: Cluster) -> Unit:
    """Return the server of a cluster's member, which Patroni restarts."""

    def replaced() -> list[str]:
        found = server.Postmaster.read(plan.server.data)
        return stale.of_processes(stale.tree(found.pid, stale.parents())) if found else []

    def restart(narrate: Narrate) -> dict[str, Any]:
        _rehearse(plan)
        return rolling.restart(plan, replaced, narrate)

    return Unit(
        f"PostgreSQL {plan.server.major}, by Patroni", _packages(plan), replaced,
        lambda: server.Postmaster.read(plan.server.data) is not None, restart,
        f"provision cluster restart --only {cluster.member}",
    )  # fmt: skip


def _packages(plan: Plan) -> re.Pattern[str]:
    return re.compile(rf"postgresql-(?:pl[a-z0-9]+-)?{plan.server.major}(?:-.*)?")


def _rehearse(plan: Plan) -> None:
    rehearsal.rehearse(Path(plan.server.programs), plan.server.configuration)  # while the old server runs


def _old_patroni() -> list[str]:
    found = stale.replaced(patroni.UNIT)
    old = INSTALLED.exists() and patroni.since() < int(INSTALLED.stat().st_mtime)
    return [*found, "its old program"] if old else found


def _old_haproxy() -> list[str]:
    """Return the replaced files of HAProxy's main process: its old workers serve their sessions until these end."""
    main = stale.main_process(balancer.HAPROXY)
    return stale.of_processes([main]) if main else []


def _reload(_narrate: Narrate) -> None:
    run("systemctl", "reload", balancer.HAPROXY)
    system.wait(lambda: not _old_haproxy(), RELOAD_S)
