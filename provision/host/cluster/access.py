"""How a host reaches the etcd members and Patroni's REST API of its cluster. Reads files; connects to nothing.

Passwords come from `SECRETS`, which root and the group postgres may read; no plan holds one. A member's programs may
change the cluster. A host with a pooler alone may read what its follower needs, and write the pooler's report.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from provision import secure_path
from provision.errors import HostError
from provision.plan.cluster import Cluster
from provision.plan.schema import Certificate, Plan

SECRETS = Path("/etc/provision/cluster.json")
POOLER_USER = "pooler"
"""etcd user of a member that reads Patroni's keys and writes ours."""
FOLLOWER_USER = "follower"
"""etcd user of a host with a pooler alone: reads the leader and the order, writes the reports of poolers."""


@dataclass(frozen=True)
class Access:
    """A cluster with the certificates and the passwords that its services ask for.

    `etcd` is user -> password; `rest` is (user, password) of Patroni's REST API, None on a host that may only read it.
    `user` is the etcd user of this host's programs. `ca` signed all certificates.
    """

    cluster: Cluster
    ca: str
    for_etcd: Certificate
    for_rest: Certificate
    etcd: Mapping[str, str]
    rest: tuple[str, str] | None
    user: str = POOLER_USER


def context(ca: str, own: Certificate) -> ssl.SSLContext:
    """Return a TLS context that verifies the other side and presents a certificate. Raises HostError."""
    try:
        made = ssl.create_default_context(cafile=ca)
        made.load_cert_chain(own.certificate, own.key)
    except OSError as error:
        raise HostError(
            "cannot load the certificates for the cluster",
            where=f"{ca}, {own.certificate}, {own.key}",
            seen=str(error),
            run="provision doctor",
        ) from None
    return made


def of(plan: Plan, secrets: Path | None = None) -> Access:
    """Return the access of this host. Raises HostError on a single host and where the passwords cannot be read."""
    cluster = required(plan)
    path = secrets or SECRETS
    user = FOLLOWER_USER if cluster.pooler else POOLER_USER
    try:
        found = json.loads(secure_path.text(path))
        etcd, rest = {str(name): str(password) for name, password in found["etcd"].items()}, None
        etcd[user]
        if not cluster.pooler:
            rest = str(found["rest"]["username"]), str(found["rest"]["password"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise HostError(
            "cannot read the passwords of the cluster",
            where=str(path),
            seen=f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else "not valid JSON",
            allowed="root or a member of the group postgres, on a host that site.yml has converged",
            run=plan.site("etcd"),
        ) from None
    client = plan.tls.certificate("etcd-client")
    for_rest = client if cluster.pooler else plan.tls.certificate("member")
    return Access(cluster, plan.tls.ca, client, for_rest, etcd, rest, user)


def controlling(plan: Plan) -> Access:
    """Return the access of a host that may change the cluster. Raises HostError on any other."""
    cluster = required(plan)
    if not cluster.member:
        raise HostError(
            "this host may not control the cluster",
            seen=f"host {plan.name}, which has no server",
            allowed=", ".join(each.name for each in cluster.members),
            run=f"the same command on {cluster.members[0].name}",
        )
    return of(plan)


def required(plan: Plan) -> Cluster:
    """Return the plan's cluster. Raises HostError on a single host."""
    if plan.cluster is None:
        raise HostError(
            "this host belongs to no cluster",
            seen=f"host {plan.name}",
            allowed="a host of the group database, dcs or pooler with cluster_enabled: true",
        )
    return plan.cluster
