"""Bring HAProxy and keepalived up to their files: start them, or reload what is older than its files. Does IO, as root.

A reload of HAProxy keeps sessions: the old process serves them until they end. A reload of keepalived keeps the address
where it is. The role removes the files of what the plan no longer has, and a unit without its file is stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from provision import system
from provision.plan.schema import Plan

HAPROXY, KEEPALIVED = "haproxy.service", "keepalived.service"
CONFIGURATION = Path("/etc/haproxy/haproxy.cfg")
MOVING = Path("/etc/keepalived")
ADDRESS = MOVING / "keepalived.conf"
RELOADED = Path("/run/provision")


def apply(plan: Plan) -> list[str]:
    """Return the actions taken, such as `haproxy reloaded`. Raises HostError."""
    actions = []
    if plan.balancer.enabled:
        member = plan.tls.certificate("member")
        actions += _converge(HAPROXY, [CONFIGURATION, Path(member.certificate), Path(member.key), Path(plan.tls.ca)])
    else:
        actions += _end(HAPROXY, CONFIGURATION)
    if plan.balancer.address:
        return actions + _converge(KEEPALIVED, [ADDRESS, MOVING / "balancer-check"])
    return actions + _end(KEEPALIVED, ADDRESS)


def _end(unit: str, file: Path) -> list[str]:
    if file.exists() or _state(unit)["UnitFileState"] != "enabled":
        return []
    system.run("systemctl", "disable", "--now", unit)
    return [f"{unit.removesuffix('.service')} stopped"]


def _converge(unit: str, files: Sequence[Path]) -> list[str]:
    state, name, actions = _state(unit), unit.removesuffix(".service"), []
    if state["UnitFileState"] != "enabled":
        system.run("systemctl", "enable", unit)
        actions.append(f"{name} enabled")
    newest = max(path.stat().st_mtime_ns for path in files if path.exists())
    mark = _mark(unit)
    if state["ActiveState"] != "active":
        system.run("systemctl", "start", unit)
        actions.append(f"{name} started")
    elif not mark.exists() or mark.stat().st_mtime_ns < newest:
        system.run("systemctl", "reload", unit)
        actions.append(f"{name} reloaded")
    if actions:
        mark.parent.mkdir(mode=0o755, exist_ok=True)
        mark.touch()
    return actions


def _state(unit: str) -> dict[str, str]:
    shown = system.run("systemctl", "show", unit, "-p", "ActiveState,UnitFileState")
    return dict(line.partition("=")[::2] for line in shown.stdout.splitlines())


def _mark(unit: str) -> Path:
    """Return the file that is touched at each start and reload of a unit."""
    return RELOADED / f"{unit.removesuffix('.service')}-reloaded"
