"""Call etcdctl with the certificate of this host. Does IO.

Passwords travel in the environment and on standard input, never in arguments, which every local user can read.
Source: etcd's documentation ("Role-based access control"), etcdctl's README. Works with etcd 3.4 and 3.5.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from provision import addresses
from provision.errors import HostError
from provision.plan.cluster import Cluster
from provision.plan.schema import Plan
from provision.system import Finished, run

PASSWORDS = Path("/etc/provision/cluster.json")
"""Passwords inside the cluster, for root and the group postgres."""
ROOT_PASSWORD = Path("/etc/provision/etcd.json")
"""etcd's administrator, for root alone."""
CALL_S = 10
DIAL = "--dial-timeout=3s"
COMMAND = "--command-timeout=5s"


@dataclass(frozen=True)
class Etcd:
    """etcdctl for some endpoints, as a user of etcd or, with none, by the certificate alone."""

    plan: Plan
    endpoints: tuple[str, ...]
    user: str = ""
    password: str = ""

    def run(self, *words: str, input: str | None = None, check: bool = True) -> Finished:  # noqa: A002 - as of subprocess
        """Run a command. Raises HostError if it fails, unless `check` is false."""
        own = self.plan.tls.certificate("etcd-client")
        environment = {
            "ETCDCTL_API": "3",
            "ETCDCTL_CACERT": self.plan.tls.ca,
            "ETCDCTL_CERT": own.certificate,
            "ETCDCTL_KEY": own.key,
            "ETCDCTL_ENDPOINTS": ",".join(f"https://{each}" for each in self.endpoints),
            **({"ETCDCTL_USER": f"{self.user}:{self.password}"} if self.user else {}),
        }
        return run(
            "etcdctl", DIAL, COMMAND, *words, input=input, environment=environment, check=check, timeout=CALL_S * 3
        )

    def json(self, *words: str) -> Any:
        """Run a command and return the JSON that it prints."""
        return json.loads(self.run(*words, "--write-out=json").stdout)

    def healthy(self) -> bool:
        """Return whether one of the endpoints answers and has a leader."""
        return any(
            self.__class__(self.plan, (each,)).run("endpoint", "health", check=False).ok for each in self.endpoints
        )

    def protected(self) -> bool:
        """Return whether authentication is on: only then are users hidden from a certificate alone."""
        return not self.__class__(self.plan, self.endpoints).run("user", "list", check=False).ok

    def value(self, key: str) -> str:
        """Return the value of a key, "" where it is missing. Raises HostError."""
        return self.run("get", "--print-value-only", key).stdout.strip()

    def members(self) -> list[Mapping[str, Any]]:
        """Return etcd's members: ID, name ("" until it has started) and peerURLs. Raises HostError."""
        found: list[Mapping[str, Any]] = self.json("member", "list")["members"]
        return found


def cluster(plan: Plan) -> Cluster:
    """Return the plan's cluster. Raises HostError on a single host."""
    if plan.cluster is None:
        raise HostError("this host is not part of a cluster", allowed="a host with cluster_enabled: true")
    return plan.cluster


def own(plan: Plan) -> str:
    """Return the endpoint of this host's etcd."""
    found = cluster(plan)
    address = {each.name: each.address for each in found.dcs}[found.dcs_member]
    return addresses.endpoint(address, found.client_port)


def others(plan: Plan) -> tuple[str, ...]:
    """Return the endpoints of the other etcd members."""
    found = cluster(plan)
    rest: Sequence[str] = [each.address for each in found.dcs if each.name != found.dcs_member]
    return tuple(addresses.endpoint(each, found.client_port) for each in rest)


def as_user(plan: Plan, name: str) -> Etcd:
    """Return etcd as its user patroni or pooler, with the password that the role etcd placed. Raises HostError."""
    try:
        password = json.loads(PASSWORDS.read_text())["etcd"][name]
    except (OSError, ValueError, KeyError) as error:
        raise HostError(f"cannot read {PASSWORDS}", seen=str(error), run=plan.site("etcd")) from None
    return Etcd(plan, cluster(plan).endpoints, name, password)


def initialised(plan: Plan) -> str:
    """Return the system identifier of the cluster's database, "" before there is one. Raises HostError."""
    return as_user(plan, "patroni").value(f"/service/{cluster(plan).scope}/initialize")


def announce(plan: Plan) -> None:
    """Note in etcd whether this member has a database, before the cluster has one: see `brings`. Raises HostError."""
    found = cluster(plan)
    if not found.member or initialised(plan):
        return
    key = f"{_data(plan)}{found.member}"
    if (plan.server.data / "PG_VERSION").exists():
        as_user(plan, "pooler").run("put", key, "present")
    else:
        as_user(plan, "pooler").run("del", key)


def brings(plan: Plan) -> str:
    """Return the member whose database becomes the cluster's: the one that has a database, or the first.

    Raises HostError if several have one: which of them to keep is not ours to decide.
    """
    found = cluster(plan)
    told = as_user(plan, "pooler").run("get", "--prefix", "--keys-only", _data(plan)).stdout
    names = [line.removeprefix(_data(plan)) for line in told.split()]
    holders = [each.name for each in found.members if each.name in names]
    if len(holders) > 1:
        raise HostError(
            "several members of a new cluster have a database",
            where=found.scope,
            seen=", ".join(holders),
            allowed="one, which the others are cloned from",
            run=f"move {plan.server.data_directory} away on the others, then run site.yml again",
        )
    return holders[0] if holders else found.members[0].name


def _data(plan: Plan) -> str:
    return f"/provision/{cluster(plan).scope}/data/"
