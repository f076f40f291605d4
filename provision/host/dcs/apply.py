"""Converge etcd on this host: start or join, users and authentication, one restart at a time. Does IO, as root.

Decided by what etcd and systemd say on every run, for a run may have been killed. Never stops a member while another is
down, and never deletes a data directory.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from provision import addresses
from provision.errors import HostError, UsageError
from provision.host.cluster import access, orders
from provision.host.cluster.dcs import Dcs, DcsError, RejectedError
from provision.host.dcs import admin
from provision.host.member import origin
from provision.plan.cluster import Cluster
from provision.plan.schema import Plan
from provision.system import run, wait, write

UNIT = "etcd.service"
DATA = Path("/var/lib/etcd/provision")
JOIN = Path("/run/provision/etcd-join.env")
"""Read by the unit after its own file: how this start joins a running cluster. etcd ignores it once it has data."""
FILES = (Path("/etc/default/etcd"), Path("/etc/systemd/system/etcd.service.d/50-provision.conf"))
QUORUM_S, USERS_S, RESTART_S, ADD_S, FIRST_S = 90, 60, 60, 30, 20
LOCK = "/provision/etcd-restart"


@dataclass(frozen=True)
class Done:
    """What `apply` did."""

    started: bool
    joined: bool
    users: tuple[str, ...]
    restarted: bool
    warnings: tuple[str, ...]

    @property
    def changed(self) -> bool:
        """Whether anything was done."""
        return self.started or self.joined or bool(self.users) or self.restarted


def apply(plan: Plan, passwords: Mapping[str, str], say: Callable[[str], None] = lambda _text: None) -> Done:
    """Converge. `passwords` are those of root and of the users in `grants`. Raises HostError."""
    if not access.required(plan).dcs_member:
        _announce(plan, say)
        return Done(False, False, (), False, ())
    active = _systemctl("is-active", UNIT) == "active"
    joined = False if active else _join(plan, passwords)
    started = _start()
    if not wait(lambda: admin.healthy(plan, admin.own(plan)), QUORUM_S):
        raise HostError(
            f"etcd has no quorum after {QUORUM_S} s",
            where=admin.own(plan),
            seen=_last_words(),
            allowed="a majority of its members running",
            run=f"journalctl -u {UNIT} -n 50; a new cluster needs a run without --limit",
        )
    users = _users(plan, passwords)
    restarted = active and _stale()
    if restarted:
        say("restarting etcd for its new configuration, one member at a time")
        restart(plan)
    origin.announce(plan)
    return Done(started, joined, users, restarted, tuple(_strangers(plan)))


def _announce(plan: Plan, say: Callable[[str], None]) -> None:
    """Announce this host's data; in a new cluster its etcd starts on other hosts meanwhile. Raises DcsError."""
    until = time.monotonic() + QUORUM_S + USERS_S
    while True:
        try:
            origin.announce(plan)
            return
        except DcsError as error:
            if time.monotonic() > until:
                raise
            say(f"waiting for etcd: {error.seen}")
            time.sleep(admin.POLL_S)


def grants(cluster: Cluster) -> admin.Grants:
    """Return the rights of each user beside root; those of the follower are what follow.Follower reads and writes."""
    scopes = cluster.scopes or (cluster.scope,)
    read = [("READ", key) for scope in scopes for key in (orders.leader_key(scope), orders.order_key(scope))]
    return {
        "patroni": [("READWRITE", "/service/")],
        access.POOLER_USER: [("READ", "/service/"), ("READWRITE", "/provision/")],
        access.FOLLOWER_USER: [*read, *(("READWRITE", orders.reports_key(scope)) for scope in scopes)],
    }


def remove(plan: Plan, name: str) -> None:
    """Remove a member that is not in the plan. Raises UsageError for any other, HostError while one is down."""
    found = {str(each["name"] or url): each for url, each in _unknown(plan).items()}
    if name not in found:
        raise UsageError(
            "only an etcd member that has left the inventory can be removed",
            seen=name,
            allowed=", ".join(found) or "none is left",
        )
    sick = [each for each in (admin.own(plan), *admin.others(plan)) if not admin.healthy(plan, each)]
    if sick:
        raise HostError("another etcd member is down", seen=", ".join(sick), allowed="every member of the plan healthy")
    root(plan).call("cluster/member/remove", {"ID": found[name]["ID"]})


def root(plan: Plan, *endpoints: str) -> Dcs:
    """Return a client of etcd as its administrator, of this host's member by default. Raises HostError."""
    return admin.client(plan, endpoints or (admin.own(plan),), "root", root_password())


def _unknown(plan: Plan) -> dict[str, Mapping[str, Any]]:
    """Return etcd's members that are not in the plan, by the URL of their peer port."""
    cluster = access.required(plan)
    known = {f"https://{addresses.endpoint(each.address, cluster.peer_port)}" for each in cluster.dcs}
    return {str(each["peerURLs"][0]): each for each in admin.members(root(plan)) if each["peerURLs"][0] not in known}


def _strangers(plan: Plan) -> Iterator[str]:
    for url, each in _unknown(plan).items():
        yield (
            f"etcd still has the member {each['name'] or url} ({url}), which is not in the inventory and counts "
            f"towards the quorum: provision dcs remove {each['name'] or url}, on this host"
        )


def pending(plan: Plan) -> list[str]:
    """Return what `apply` would do to the unit."""
    if not access.required(plan).dcs_member:
        return []
    if _systemctl("is-active", UNIT) not in ("active", "activating", "reloading"):
        return [f"start {UNIT}"]
    return [f"restart {UNIT}"] if _stale() else []


def restart(plan: Plan) -> None:
    """Restart this member, after every restart of another one, and wait until it is healthy. Raises HostError.

    Leadership moves away first.
    """
    with admin.lock(root(plan, *admin.others(plan)), LOCK, plan.name):
        sick = [each for each in admin.others(plan) if not admin.healthy(plan, each)]
        if sick:
            raise HostError(
                "another etcd member is down, so this one must not restart", where=UNIT, seen=", ".join(sick),
                allowed="every other member healthy", run=f"journalctl -u {UNIT} -n 50, there",
            )  # fmt: skip
        admin.move_leadership(root(plan))
        run("systemctl", "restart", UNIT, timeout=RESTART_S)
        if not wait(lambda: admin.healthy(plan, admin.own(plan)), RESTART_S):
            raise HostError("etcd is not healthy after its restart", where=UNIT, seen=_last_words())


def _join(plan: Plan, passwords: Mapping[str, str]) -> bool:
    """Prepare the first start as a member of a cluster that runs already; False for a new cluster, or with data."""
    if DATA.is_dir() and any(DATA.iterdir()):
        return False
    running = [each for each in admin.others(plan) if admin.healthy(plan, each)]
    if not running:
        return False
    user = ("root", passwords["root"]) if admin.protected(plan, running) else ()
    dcs, cluster = admin.client(plan, running, *user), access.required(plan)
    urls = {f"https://{addresses.endpoint(each.address, cluster.peer_port)}": each.name for each in cluster.dcs}
    mine = next(url for url, name in urls.items() if name == cluster.dcs_member)
    listed = {each["peerURLs"][0]: each for each in admin.members(dcs)}
    here = listed.get(mine, {})
    if here.get("name") and not here.get("clientURLs"):
        return False  # a member of the new cluster that has never started; the others have a quorum already
    if here.get("name"):
        # It has run with data that are gone: as a new member it asks the others for them.
        dcs.call("cluster/member/remove", {"ID": here["ID"]})
        del listed[mine]
    if mine not in listed and not wait(lambda: _added(dcs, mine), ADD_S):
        dcs.call("cluster/member/add", {"peerURLs": [mine]})
    known = {url: each["name"] or urls.get(url, "") for url, each in listed.items()} | {mine: cluster.dcs_member}
    initial = ",".join(f"{name}={url}" for url, name in known.items())
    JOIN.parent.mkdir(mode=0o755, exist_ok=True)
    JOIN.write_text(f"ETCD_INITIAL_CLUSTER={initial}\nETCD_INITIAL_CLUSTER_STATE=existing\n")
    return True


def _added(dcs: Dcs, url: str) -> bool:
    """Add a member; False while etcd refuses, which wants its members connected for 5 s before each change."""
    with suppress(DcsError):
        dcs.call("cluster/member/add", {"peerURLs": [url]})
    return any(each["peerURLs"] == [url] for each in admin.members(dcs))


def _start() -> bool:
    """Start the unit now and at boot, without waiting for a quorum; False if it runs."""
    changed = False
    if _systemctl("is-enabled", UNIT) != "enabled":
        run("systemctl", "enable", UNIT)
        changed = True
    if _systemctl("is-active", UNIT) not in ("active", "activating", "reloading"):
        run("systemctl", "reset-failed", UNIT, check=False)
        run("systemctl", "start", "--no-block", UNIT)
        changed = True
    return changed


def _users(plan: Plan, passwords: Mapping[str, str]) -> tuple[str, ...]:
    """Create users and turn authentication on, or change passwords and rights; return what was done."""
    cluster = access.required(plan)
    here, first, rights = (admin.own(plan),), cluster.dcs[0].name == cluster.dcs_member, grants(cluster)
    if not admin.protected(plan, here):
        if not first and wait(lambda: _is_protected(plan, here), USERS_S):
            _keep(passwords["root"])
            return ()
        admin.protect(admin.client(plan, here), passwords, rights)
        _keep(passwords["root"])
        return ("authentication", *passwords)
    done = []
    for name in ("root", *rights):
        user = admin.client(plan, here, name, passwords[name])
        keys = [key for _, key in rights.get(name, ())]
        # Each change ends every token of etcd: the first member makes it, and another one only in its place.
        if not (_may(user, keys) or (not first and wait(functools.partial(_may, user, keys), FIRST_S))):
            admin.admit(root(plan), name, passwords[name], rights.get(name, ()))
            done.append(name)
        if name == "root":
            _keep(passwords["root"])
    return tuple(done)


def _is_protected(plan: Plan, here: tuple[str, ...]) -> bool:
    try:
        return admin.protected(plan, here)
    except DcsError:
        return False


def _may(user: Dcs, keys: list[str]) -> bool:
    """Return whether a user's password and rights are in force: for root, to list users. Raises DcsError."""
    try:
        user.read(*keys) if keys else user.call("auth/user/list", {})
    except RejectedError:
        return False
    return True


def _keep(password: str) -> None:
    text = json.dumps({"root": password}) + "\n"
    try:
        if admin.ROOT_PASSWORD.read_text() == text:
            return
    except OSError:
        pass
    write(admin.ROOT_PASSWORD, text, mode=0o600, owner=(0, 0))


def root_password() -> str:
    """Return the administrator's password that the last run kept. Raises HostError."""
    try:
        return str(json.loads(admin.ROOT_PASSWORD.read_text())["root"])
    except (OSError, ValueError, KeyError) as error:
        raise HostError(
            "etcd refuses the administrator's password", where=str(admin.ROOT_PASSWORD), seen=str(error),
            allowed="the cluster_passphrase with which the cluster was made",
        ) from None  # fmt: skip


def _stale() -> bool:
    """Return whether a file of the unit is newer than its start."""
    since = _systemctl("show", "--timestamp=unix", "--property=ActiveEnterTimestamp", "--value", UNIT).lstrip("@")
    newest = max((int(path.stat().st_mtime) for path in FILES if path.exists()), default=0)
    return since.isdigit() and int(since) <= newest


def _systemctl(*words: str) -> str:
    return run("systemctl", *words, check=False).stdout.strip()


def _last_words() -> str:
    return run("journalctl", "-u", UNIT, "-n", "3", "-o", "cat", "--no-pager", check=False).stdout.strip()[-600:]
