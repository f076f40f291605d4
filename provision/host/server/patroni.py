"""Who runs the server of this host: systemd, or Patroni. Does IO, as root.

start.conf of Debian's cluster is the mark: `disabled` means that Patroni runs it, and pg_ctlcluster refuses to. A host
whose inventory has no cluster any more gets its server back (`release`), unless another member could be primary.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from provision import secure_path
from provision.database import ask, connect_pinned
from provision.errors import HostError
from provision.plan.schema import PATRONI, Plan
from provision.system import POSTGRES, as_user, run, write

UNIT = PATRONI
DISABLED, AUTO = "disabled", "auto"
CONFIGURATION = Path("/etc/patroni/config.yml")
CACHE = "patroni.dynamic.json"
"""Patroni's copy of the dynamic configuration, which it takes where etcd has none: here one that is paused."""
LEFT = ("provision-follow.service", "haproxy.service", "keepalived.service", "provision-dcs.timer", "etcd.service")
"""Units of a member beside Patroni, which a single host does not have."""


def owns(plan: Plan) -> bool:
    """Return whether Patroni runs the server, also while it is stopped."""
    try:
        lines = secure_path.text(_mark(plan)).splitlines()
    except OSError:
        return False
    return DISABLED in [line.split("#")[0].strip() for line in lines]


def own(plan: Plan) -> bool:
    """Stop the server's own unit for good, so that Patroni alone starts it; False if it is so already."""
    if owns(plan):
        return False
    run("systemctl", "disable", plan.server.own_unit, check=False)
    run("systemctl", "stop", plan.server.own_unit)
    _write_mark(plan, f"# Patroni runs this cluster: systemctl start {UNIT}\n{DISABLED}\n")
    return True


def release(plan: Plan, say: Callable[[str], None] = lambda _text: None) -> bool:
    """Give the server of the last member back to systemd, stopped; False if Patroni does not own it.

    Can be repeated. Raises HostError, before anything changes, for a replica and while another member runs.
    """
    if not owns(plan):
        return False
    running = active()
    if running:
        _judge(json.loads(_patronictl("list", "--format=json")))
        _refuse_replica(plan)
        say(f"stopping {UNIT}: systemd manages the server again, after one restart")
        _patronictl("pause", "--wait")  # Patroni then leaves the server alone when it stops
        run("systemctl", "stop", UNIT)
    _refuse_replica(plan)
    if running or _systemctl("is-enabled", UNIT) == "enabled":  # it is disabled directly after
        forget()
    drop_cache(plan)
    run("systemctl", "disable", UNIT, check=False)
    for unit in LEFT:
        if _systemctl("is-enabled", unit) == "enabled":
            run("systemctl", "disable", "--now", unit)
    programs, data = plan.server.programs, plan.server.data_directory
    if run(f"{programs}/pg_ctl", "status", "-D", data, user=POSTGRES, check=False).ok:
        run(f"{programs}/pg_ctl", "stop", "--mode=fast", "--wait", "-D", data, user=POSTGRES)
    restore_configuration(plan)
    _write_mark(plan, f"{AUTO}\n")
    run("systemctl", "enable", plan.server.own_unit)
    return True


def drop_cache(plan: Plan) -> None:
    """Delete Patroni's copy of its dynamic configuration in the data, which may say that failover is off."""
    run("rm", "--force", plan.server.data / CACHE, user=POSTGRES)


def restore_configuration(plan: Plan) -> None:
    """Give postgresql.conf its name back, under which Patroni had placed its own. Raises HostError."""
    original = plan.server.configuration / "postgresql.base.conf"
    if original.exists():
        run("mv", original, plan.server.configuration / "postgresql.conf", user=POSTGRES)


def _judge(members: Sequence[Mapping[str, object]]) -> None:
    """Refuse to take the server from a cluster that still has another member."""
    _refuse_others([str(each["Member"]) for each in members if each["Role"] != "Leader"])
    if not members:
        raise HostError("cluster_enabled is false, and the cluster has no primary", run="journalctl -u patroni -n 50")


def forget() -> None:
    """Delete this host's cluster from etcd. Raises HostError where it has another member.

    With it, a former member that starts again could become primary with the data that it had when it left.
    """
    text = secure_path.text(CONFIGURATION)
    scope, name = (json.loads(re.findall(rf"^{key}: (.+)$", text, re.M)[0]) for key in ("scope", "name"))
    members = [str(each["Member"]) for each in json.loads(_patronictl("list", "--format=json") or "[]")]
    _refuse_others([each for each in members if each != name])
    answers = f"{scope}\nYes I am aware\n{name}\n"
    run("patronictl", "-c", CONFIGURATION, "remove", scope, input=answers, timeout=60)


def _refuse_others(names: Sequence[str]) -> None:
    if names:
        raise HostError(
            "the cluster has other members",
            seen=", ".join(names), allowed="this host as its last member",
            run="on the others: systemctl disable --now patroni; after the ttl, repeat the run (docs/cluster.md)",
        )  # fmt: skip


def _refuse_replica(plan: Plan) -> None:
    shown = run(f"{plan.server.programs}/pg_controldata", "-D", plan.server.data, environment={"LC_ALL": "C"}).stdout
    state = next(line.partition(":")[2].strip() for line in shown.splitlines() if line.startswith("Database cluster"))
    if "recovery" in state:
        raise HostError(
            "cluster_enabled is false on a replica", where=plan.server.data_directory, seen=state,
            allowed="the primary as the last member",
            run="keep the primary in the inventory; on this host: systemctl disable --now patroni",
        )  # fmt: skip


def drop_slots(plan: Plan) -> list[str]:
    """Drop the slots of former members, which keep WAL for ever; return their names. Raises DatabaseError."""
    with as_user(), connect_pinned(plan.server.url("postgres"), application="provision server") as session:
        rows = ask(
            session,
            "SELECT slot_name::text, pg_drop_replication_slot(slot_name)::text FROM pg_replication_slots"
            " WHERE slot_type = 'physical' AND NOT active",
        )
    return [str(name) for name, _ in rows]


def _patronictl(*words: str) -> str:
    return run("patronictl", "-c", CONFIGURATION, *words, timeout=60).stdout


def _write_mark(plan: Plan, text: str) -> None:
    about = _mark(plan).stat() if _mark(plan).exists() else None
    owner = (about.st_uid, about.st_gid) if about else (0, 0)
    write(_mark(plan), text, mode=0o644, owner=owner)
    run("systemctl", "daemon-reload")  # the generator of postgresql-common reads the mark


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
