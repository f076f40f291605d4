"""Administer etcd with the certificate of this host: members, users, authentication, leadership. Does IO.

Sources: etcd's documentation ("Role-based access control", "Runtime reconfiguration"); rpc.proto of etcd 3.4 and 3.5.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from provision import addresses
from provision.errors import HostError
from provision.host.cluster import access
from provision.host.cluster.dcs import Dcs, DcsError, RejectedError, span
from provision.plan.schema import Plan

ROOT_PASSWORD = Path("/etc/provision/etcd.json")
"""etcd's administrator, for root alone."""
CALL_S = 10.0
"""For each endpoint: passwords (bcrypt), changes of members and defragmentation take longer than reads."""
LOCK_TTL_S = 150
"""A lock outlives the restart of a member, during which its holder sends nothing."""
POLL_S = 0.5
ADMIT_ATTEMPTS = 10
Grants = Mapping[str, Sequence[tuple[str, str]]]
"""Rights of each user: permission type (READ, READWRITE), and a key, or a prefix that ends in /."""


def own(plan: Plan) -> str:
    """Return the endpoint of this host's etcd."""
    found = access.required(plan)
    address = {each.name: each.address for each in found.dcs}[found.dcs_member]
    return addresses.endpoint(address, found.client_port)


def others(plan: Plan) -> tuple[str, ...]:
    """Return the endpoints of the other etcd members."""
    found = access.required(plan)
    rest: Sequence[str] = [each.address for each in found.dcs if each.name != found.dcs_member]
    return tuple(addresses.endpoint(each, found.client_port) for each in rest)


def client(plan: Plan, endpoints: Sequence[str], user: str = "", password: str | None = None) -> Dcs:
    """Return a client for some endpoints, as a user of etcd or, with none, by the certificate alone."""
    certificate = plan.tls.certificate("etcd-client")
    return Dcs(endpoints, lambda: access.context(plan.tls.ca, certificate), user, password or "", CALL_S)


def healthy(plan: Plan, endpoint: str) -> bool:
    """Return whether an etcd member answers and reaches a quorum, which it asks before it looks at rights."""
    try:
        client(plan, (endpoint,)).read("health")
    except RejectedError:
        return True
    except DcsError:
        return False
    return True


def protected(plan: Plan, endpoints: Sequence[str]) -> bool:
    """Return whether authentication is on: only then are users hidden from a certificate alone. Raises DcsError."""
    try:
        client(plan, endpoints).call("auth/user/list", {})
    except RejectedError:
        return True
    return False


def members(dcs: Dcs) -> list[Mapping[str, Any]]:
    """Return etcd's members: ID, name ("" until it has started) and peerURLs. Raises DcsError."""
    found = dcs.call("cluster/member/list", {}).get("members", [])
    return [{"name": "", **each} for each in found]


def move_leadership(root: Dcs) -> None:
    """Give leadership to another member, if the one that `root` asks has it. Raises DcsError."""
    status = root.call("maintenance/status", {})
    if status["leader"] == status["header"]["member_id"]:
        target = next(each["ID"] for each in members(root) if each["ID"] != status["leader"] and each["name"])
        root.call("maintenance/transfer-leadership", {"targetID": target})


def protect(dcs: Dcs, passwords: Mapping[str, str], grants: Grants) -> None:
    """Make users and roles and turn authentication on. A killed run may have made some. Raises DcsError.

    `grants` are those of each user beside root.
    """
    for name in ("root", *grants):
        admit(dcs, name, passwords[name], grants.get(name, ()))
    dcs.call("auth/enable", {})


def admit(dcs: Dcs, name: str, password: str, rights: Sequence[tuple[str, str]]) -> None:
    """Make a user and its role, or what is missing of them, and set its password. Raises DcsError.

    Retries, because another member may change users meanwhile: each change invalidates all tokens.
    """
    for attempt in range(1, ADMIT_ATTEMPTS + 1):
        try:
            _admit(dcs, name, password, rights)
            return
        except DcsError:
            if attempt == ADMIT_ATTEMPTS:
                raise
            time.sleep(random.uniform(POLL_S, 2 * POLL_S))  # noqa: S311 - no secret


def _admit(dcs: Dcs, name: str, password: str, rights: Sequence[tuple[str, str]]) -> None:
    users = dcs.call("auth/user/list", {}).get("users", [])
    roles = dcs.call("auth/role/list", {}).get("roles", [])
    dcs.call(f"auth/user/{'changepw' if name in users else 'add'}", {"name": name, "password": password})
    if name not in roles:
        dcs.call("auth/role/add", {"name": name})
    for kind, key in rights:
        dcs.call("auth/role/grant", {"name": name, "perm": {"permType": kind, **span(key)}})
    dcs.call("auth/user/grant", {"user": name, "role": name})


@contextmanager
def lock(dcs: Dcs, key: str, owner: str) -> Iterator[None]:
    """Hold a key within a `with` block; wait while another host holds it. Raises HostError and DcsError."""
    lease = dcs.lease(LOCK_TTL_S)
    until = time.monotonic() + 2 * LOCK_TTL_S
    while not dcs.replace(key, owner, 0, lease):
        if time.monotonic() > until:
            holder = next((each.text for each in dcs.read(key).values()), "none")
            raise HostError(
                "another host of the cluster is restarting",
                where=key,
                seen=holder,
                run="repeat the command when it is done",
            )
        dcs.keep_alive(lease)
        time.sleep(POLL_S)
    try:
        yield
    finally:
        with suppress(DcsError):  # it ends with its lease
            dcs.revoke(lease)
