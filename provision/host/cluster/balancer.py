"""Bring HAProxy up to its files: start it, or reload it if a file is newer than its last reload. Does IO, as root.

A reload keeps sessions: the old process serves them until they end.
"""

from __future__ import annotations

from pathlib import Path

from provision import system
from provision.plan.schema import Plan

UNIT = "haproxy.service"
CONFIGURATION = Path("/etc/haproxy/haproxy.cfg")
RELOADED = Path("/run/provision/balancer-reloaded")


def apply(plan: Plan) -> list[str]:
    """Return the actions taken: enabled, started, reloaded. Raises HostError."""
    shown = system.run("systemctl", "show", UNIT, "-p", "ActiveState,UnitFileState")
    state = dict(line.partition("=")[::2] for line in shown.stdout.splitlines())
    actions = []
    if state["UnitFileState"] != "enabled":
        system.run("systemctl", "enable", UNIT)
        actions.append("enabled")
    member = plan.tls.certificate("member")
    files = [CONFIGURATION, Path(member.certificate), Path(member.key), Path(plan.tls.ca)]
    newest = max(path.stat().st_mtime_ns for path in files if path.exists())
    if state["ActiveState"] != "active":
        system.run("systemctl", "start", UNIT)
        actions.append("started")
    elif not RELOADED.exists() or RELOADED.stat().st_mtime_ns < newest:
        system.run("systemctl", "reload", UNIT)
        actions.append("reloaded")
    if actions:
        RELOADED.parent.mkdir(mode=0o755, exist_ok=True)
        RELOADED.touch()
    return actions
