"""How a host reaches the etcd members and Patroni's REST API of its cluster. Reads files; connects to nothing.

Passwords come from `SECRETS`, which root and the group postgres may read; no plan holds one.
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
"""etcd user that reads Patroni's keys and writes ours."""


@dataclass(frozen=True)
class Access:
    """A cluster with the certificates and the passwords that its services ask for.

    `etcd` is user -> password; `rest` is (user, password) of Patroni's REST API. `ca` signed all certificates.
    """

    cluster: Cluster
    ca: str
    for_etcd: Certificate
    for_rest: Certificate
    etcd: Mapping[str, str]
    rest: tuple[str, str]


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
    try:
        found = json.loads(secure_path.text(path))
        etcd, rest = dict(found["etcd"]), found["rest"]
        user, password = str(rest["username"]), str(rest["password"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HostError(
            "cannot read the passwords of the cluster",
            where=str(path),
            seen=f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else "not valid JSON",
            allowed="root or a member of the group postgres, on a host that site.yml has converged",
            run=plan.site("etcd"),
        ) from None
    etcd_client, member = plan.tls.certificate("etcd-client"), plan.tls.certificate("member")
    return Access(cluster, plan.tls.ca, etcd_client, member, etcd, (user, password))


def required(plan: Plan) -> Cluster:
    """Return the plan's cluster. Raises HostError on a single host."""
    if plan.cluster is None:
        raise HostError(
            "this host is not a member of a cluster",
            seen=f"host {plan.name}",
            allowed="hosts of the group database with cluster_enabled: true",
        )
    return plan.cluster
