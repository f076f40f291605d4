"""Check that each port of the plan is served by its own unit. Runs as root, changes nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator

from provision.checks import listeners
from provision.checks.finding import Severity
from provision.checks.placed import ask
from provision.checks.registry import Row, check
from provision.errors import HostError
from provision.plan import ports
from provision.plan.schema import Plan

ACTIVE = ("active", "reloading")


@check(
    "ports",
    area="services",
    severity=Severity.CRITICAL,
    expected="each port served by its own unit",
    why="clients and Prometheus get no answer, or another program's",
)
def taken(plan: Plan) -> Iterator[Row]:
    """Report ports that another process holds, or that a running service does not serve."""
    for unit, _variable, said, pid in faults(plan):
        yield said, f"{_stop(pid)}systemctl restart {unit}"


def _stop(pid: int) -> str:
    """Return the command that stops the process on our port, by its unit if it has one; "" where there is none."""
    unit = listeners.unit(pid) if pid else ""
    return f"systemctl stop {unit} && " if unit.endswith(".service") else f"kill {pid} && sleep 1 && " if pid else ""


def prove(plan: Plan) -> None:
    """Verify that every port of the plan is served by its own unit. Raises HostError."""
    found = list(faults(plan))
    if found:
        raise HostError(
            "verification of the ports failed",
            where=plan.name,
            seen="; ".join(said for _unit, _variable, said, _pid in found),
            allowed="each port served by its own unit",
            run=f"stop the other process, or set {', '.join(variable for _, variable, _, _ in found)} to a free port",
        )


def faults(plan: Plan) -> Iterator[tuple[str, str, str, int]]:
    """Return unit, variable, deviation and the other process of each port (0: none).

    A stopped unit counts only if another process holds its port.
    """
    if not plan.host.systemd:
        return
    for variable, port, unit in _expected(plan):
        shown = ask("systemctl", "show", "--property=ActiveState,MainPID,ControlGroup", unit)
        about = dict(line.partition("=")[::2] for line in shown.splitlines())
        active = about.get("ActiveState") in ACTIVE
        if active and listeners.serves(about.get("ControlGroup", ""), int(about.get("MainPID") or 0), port):
            continue
        other = listeners.holder(inodes) if (inodes := listeners.listening(port)) else ""
        if other:
            found = re.search(r"\(pid (\d+)", other)
            yield unit, variable, f"port {port} of {unit} is held by {other}", int(found[1]) if found else 0
        elif active:
            yield unit, variable, f"{unit} runs, but does not listen on port {port}", 0


def _expected(plan: Plan) -> Iterator[tuple[str, int, str]]:
    if not plan.pooler_alone:
        yield "postgresql_port", plan.server.port, plan.server.unit
    if plan.pooler.enabled:
        yield "pgbouncer_port", plan.pooler.port, ports.POOLER
    if plan.pooler_alone:
        return
    if plan.balancer.enabled:
        yield "balancer_write_port", plan.balancer.write_port, ports.BALANCER
        yield "balancer_read_port", plan.balancer.read_port, ports.BALANCER
    if plan.monitoring.exporters:
        yield "monitoring_node_port", plan.monitoring.node_port, ports.NODE_EXPORTER
        yield "monitoring_postgres_port", plan.monitoring.postgres_port, ports.POSTGRES_EXPORTER
