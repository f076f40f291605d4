"""Who runs the server of this host: systemd, or Patroni. Does IO, as root.

start.conf of Debian's cluster is the mark: `disabled` means that Patroni runs it, and pg_ctlcluster refuses to.
"""

from __future__ import annotations

from pathlib import Path

from provision.plan.schema import PATRONI, Plan
from provision.system import run, write

UNIT = PATRONI
DISABLED = "disabled"


def owns(plan: Plan) -> bool:
    """Return whether Patroni runs the server, also while it is stopped."""
    try:
        lines = _mark(plan).read_text().splitlines()
    except OSError:
        return False
    return DISABLED in [line.split("#")[0].strip() for line in lines]


def own(plan: Plan) -> bool:
    """Stop the server's own unit for good, so that Patroni alone starts it; False if it is so already."""
    if owns(plan):
        return False
    unit = f"postgresql@{plan.server.major}-main.service"
    run("systemctl", "disable", unit, check=False)
    run("systemctl", "stop", unit)
    about = _mark(plan).stat() if _mark(plan).exists() else None
    owner = (about.st_uid, about.st_gid) if about else (0, 0)
    write(_mark(plan), f"# Patroni runs this cluster: systemctl start {UNIT}\n{DISABLED}\n", mode=0o644, owner=owner)
    run("systemctl", "daemon-reload")  # the generator of postgresql-common reads the mark
    return True


def active() -> bool:
    """Return whether Patroni runs."""
    return _systemctl("is-active", UNIT) in ("active", "reloading")


def start() -> None:
    """Start Patroni now and at boot. Raises HostError."""
    run("systemctl", "enable", UNIT)
    run("systemctl", "reset-failed", UNIT, check=False)
    run("systemctl", "start", UNIT)


def since() -> int:
    """Return the second (Unix time) in which Patroni started, 0 for never."""
    text = _systemctl("show", "--timestamp=unix", "--property=ActiveEnterTimestamp", "--value", UNIT).lstrip("@")
    return int(text) if text.isdigit() else 0


def last_words() -> str:
    """Return the last lines of its journal."""
    return run("journalctl", "-u", UNIT, "-n", "3", "-o", "cat", "--no-pager", check=False).stdout.strip()[-600:]


def _mark(plan: Plan) -> Path:
    return plan.server.configuration / "start.conf"


def _systemctl(*words: str) -> str:
    return run("systemctl", *words, check=False).stdout.strip()
