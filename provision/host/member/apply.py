"""Converge Patroni on this host: take over a running server, clone a new one, load changed settings. Does IO, as root.

The member that has a database, or else the first of the inventory, brings it: its server runs under systemd until
Patroni takes it over, which is one restart. Every other member waits for that, and Patroni clones it. Decided by etcd,
Patroni and the data directory on every run. Refuses a data directory of another database; never deletes one, never
causes a failover.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from provision.database import ask, connect_pinned
from provision.errors import HostError
from provision.host.cluster import access, hold, life, orders, primary
from provision.host.cluster.dcs import Dcs
from provision.host.cluster.patroni import PRIMARY_ROLES, Patroni, PatroniError
from provision.host.member import origin, roles
from provision.host.server import cluster as server
from provision.host.server import patroni
from provision.plan.schema import Plan
from provision.system import as_user, run, wait

DROP_IN = Path("/etc/systemd/system/patroni.service.d/50-provision.conf")
FILES = (Path("/etc/patroni/config.yml"), DROP_IN)
LOADED = Path("/run/provision/patroni-loaded")
"""Touched when Patroni has loaded its file: a reload leaves no other trace."""
FIRST_S, START_S, SETTLE_S = 300, 120, 30
HOLD_S, DRAIN_S = 120, 10
POLL_S = 1.0
CALL_S = 10.0
RUNNING = ("running", "streaming", "in archive recovery")


@dataclass(frozen=True)
class Done:
    """What `apply` did, and what it found: `primary` is this member's role, `pending` that a restart waits."""

    adopted: bool
    started: bool
    reloaded: bool
    configured: tuple[str, ...]
    roles: tuple[str, ...]
    primary: bool
    pending: bool

    @property
    def changed(self) -> bool:
        """Whether anything was done."""
        return self.adopted or self.started or self.reloaded or bool(self.configured) or bool(self.roles)


def apply(plan: Plan, say: Callable[[str], None] = lambda _text: None) -> Done:
    """Converge. Raises HostError and DatabaseError."""
    adopted = False
    made: tuple[str, ...] = ()
    started = not patroni.active()
    if started:
        adopted, made = _prepare(plan, say)
    with _held(plan, say) if adopted else nullcontext():
        if started:
            patroni.own(plan)
            patroni.start()
            LOADED.parent.mkdir(mode=0o755, exist_ok=True)
            LOADED.touch()
        found = _settled(plan, say)
    reloaded = not started and _stale(plan)
    if reloaded:
        run("systemctl", "reload", patroni.UNIT)
        LOADED.touch()
    primary = found.get("role") in PRIMARY_ROLES
    configured: tuple[str, ...] = ()
    if primary:
        made = (*made, *_roles(plan))
        configured = _configure(plan)
        if configured:
            time.sleep(POLL_S)
            found = _status(plan)
    return Done(adopted, started, reloaded, configured, made, primary, bool(found.get("pending_restart")))


def warnings(plan: Plan, done: Done) -> Iterator[str]:
    """Return a warning for what `apply` leaves to the operator."""
    if done.pending:
        yield f"settings have a pending restart on {plan.name}: provision cluster restart, on a member"
    if DROP_IN.exists() and patroni.since() < int(DROP_IN.stat().st_mtime):
        yield (f"{patroni.UNIT} on {plan.name} has changed since it started: on it, provision member restart")
    if done.primary:
        for name in life.strangers(_patroni(plan).view(), access.required(plan)):
            yield f"{name} still runs Patroni but is not in the inventory: on it, systemctl disable --now patroni"


def pending(plan: Plan) -> list[str]:
    """Return what `apply` would do."""
    if not patroni.active():
        return [f"start {patroni.UNIT}"]
    found = [f"reload {patroni.UNIT}"] if _stale(plan) else []
    if _status(plan).get("role") in PRIMARY_ROLES:
        found += [f"set {name}" for name in changes(access.required(plan).dynamic, _dynamic(plan))]
    return found


def _prepare(plan: Plan, say: Callable[[str], None]) -> tuple[bool, tuple[str, ...]]:
    """Judge this host's data and, on the first member of a new cluster, stop its server for Patroni."""
    cluster = access.required(plan)
    identifier, data = origin.initialised(plan), plan.server.data
    has_data = (data / "PG_VERSION").exists()
    first = "" if identifier else origin.brings(plan)
    if first == cluster.member:
        if not has_data:
            raise HostError(
                "the first member has no database", where=str(data), run=f"{plan.site('postgresql,patroni')}"
            )
        made = _roles(plan) if server.Postmaster.read(data) else ()
        say(f"Patroni takes over {data}: one restart")
        return True, made
    if not identifier:
        say(f"waiting for the database of {first}")
        deadline = time.monotonic() + FIRST_S
        while not (identifier := origin.initialised(plan)):
            if time.monotonic() > deadline:
                raise HostError(
                    f"the cluster {cluster.scope} has no database yet",
                    where=", ".join(cluster.endpoints),
                    seen=f"no first member after {FIRST_S} s",
                    allowed=f"{first} converged before the others",
                    run="ansible-playbook site.yml, without --limit",
                )
            time.sleep(POLL_S)
    if has_data and (own := system_identifier(plan)) != identifier:
        raise HostError(
            "this host holds another database than its cluster",
            where=str(data),
            seen=f"system identifier {own}; the cluster {cluster.scope} has {identifier}",
            allowed="an empty data directory, which Patroni fills from another member, or the same database",
            run=f"move {data} away, then {plan.site()}",
        )
    if has_data and not patroni.owns(plan) and server.Postmaster.read(data):  # after a major upgrade
        say(f"Patroni takes over {data}: one restart")
        return True, _roles(plan)
    return False, ()


@contextmanager
def _held(plan: Plan, say: Callable[[str], None]) -> Iterator[None]:
    """Pause the poolers that already follow this cluster, as after a major upgrade, for the restart of its server."""
    reach = access.controlling(plan)
    key = orders.reports_key(reach.cluster.scope)
    if not orders.reports_of(Dcs.of(reach).read(key), reach.cluster.scope):
        yield
        return
    writable = primary.checker(plan)
    with hold.poolers(reach, say, seconds=HOLD_S, wait_s=DRAIN_S, force=True):
        yield
        wait(lambda: writable(reach.cluster.here), HOLD_S)  # Patroni calls it primary before its promotion is complete


def system_identifier(plan: Plan) -> str:
    """Return the identifier of this host's data directory (pg_controldata(1)). Raises HostError."""
    found = run(f"{plan.server.programs}/pg_controldata", "-D", plan.server.data_directory, environment={"LC_ALL": "C"})
    match = re.search(r"Database system identifier:\s+(\d+)", found.stdout)
    return match[1] if match else ""


def _settled(plan: Plan, say: Callable[[str], None]) -> Mapping[str, Any]:
    """Wait until this member runs; a clone takes as long as it takes. Raises HostError."""
    said, deadline = "", time.monotonic() + START_S
    while True:
        found = _status(plan)
        state = str(found.get("state", ""))
        if state in RUNNING and (found.get("role") in PRIMARY_ROLES or _streams(found)):
            return found
        if state and state != said:
            say(f"{plan.name}: {state}")
            said = state
        if state == "creating replica":
            deadline = time.monotonic() + START_S
        if time.monotonic() > deadline:
            raise HostError(
                f"this member does not run after {START_S} s", where=patroni.UNIT,
                seen=f"{state or 'no answer'}; {patroni.last_words()}", run=f"journalctl -u {patroni.UNIT} -n 50",
            )  # fmt: skip
        time.sleep(POLL_S)


def _streams(found: Mapping[str, Any]) -> bool:
    """Return whether a replica receives WAL; Patroni 3.0 does not say, and a running one counts."""
    return found.get("replication_state", "streaming") in ("streaming", "in archive recovery")


def _stale(plan: Plan) -> bool:
    """Return whether a file of Patroni, or a certificate that it uses, is newer than its last load."""
    certificates = [Path(plan.tls.certificate(name).certificate) for name in ("member", "etcd-client")]
    newest = max((path.stat().st_mtime for path in (*FILES, *certificates) if path.exists()), default=0.0)
    loaded = LOADED.stat().st_mtime if LOADED.exists() else 0.0  # gone after a boot, when Patroni has read every file
    return loaded < newest if loaded else patroni.since() <= int(newest)


def _roles(plan: Plan) -> tuple[str, ...]:
    with as_user():
        session = connect_pinned(server.url(plan), application="provision member")
    with session:
        if ask(session, "SELECT pg_is_in_recovery()") == [(True,)]:
            return ()
        return roles.converge(session, access.required(plan))


def _status(plan: Plan) -> Mapping[str, Any]:
    """Return what this host's Patroni says of itself, {} while it does not answer."""
    try:
        return _patroni(plan).status(access.required(plan).here)
    except PatroniError:
        return {}


def _patroni(plan: Plan) -> Patroni:
    return Patroni(access.of(plan), CALL_S)


def _dynamic(plan: Plan) -> Mapping[str, Any]:
    deadline = time.monotonic() + SETTLE_S
    while True:
        answer = _patroni(plan).ask(access.required(plan).here, "/config")
        if answer.status == 200:
            return answer.facts
        if time.monotonic() > deadline:  # a new cluster has none for a moment
            raise HostError(
                "Patroni does not show its configuration", where="/config", seen=f"{answer.status}: {answer.text}"
            )
        time.sleep(POLL_S)


def _configure(plan: Plan) -> tuple[str, ...]:
    """Change the dynamic configuration where it differs; return the names. Raises HostError."""
    cluster = access.required(plan)
    patch = changes(cluster.dynamic, _dynamic(plan))
    if patch:
        _patroni(plan).configure(cluster.here, patch)
    return tuple(sorted(patch))


def changes(wanted: Any, found: Any) -> dict[str, Any]:
    """Return the part of a configuration that differs, as PATCH takes it. Pure. Keys of others stay as they are."""
    patch: dict[str, Any] = {}
    for name, value in wanted.items():
        seen = found.get(name)
        if isinstance(value, dict):
            inner = changes(value, seen if isinstance(seen, dict) else {})
            patch |= {name: inner} if inner else {}
        elif seen is None or str(seen) != str(value):
            patch[name] = value
    return patch
