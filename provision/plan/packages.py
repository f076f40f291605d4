"""Debian packages of each role, and of packaged extensions: data, and what of it a plan needs. Pure.

To offer another packaged extension, add a row to EXTENSIONS: naming it in `database_extensions` then installs its
package, preloads its library where it must be preloaded, and creates it. Bundles hold all that a plan may ask for.
"""

from __future__ import annotations

from dataclasses import dataclass

from provision import compatibility
from provision.plan.schema import Plan

ANSIBLE = ("python3", "python3-apt", "sudo")
"""What Ansible itself needs of a host; a bundle brings them."""
TOOLKIT = ("python3-click", "python3-psycopg")
TLS = ("openssl", "python3-cryptography", "ssl-cert")
SERVER = ("postgresql-{major}", "postgresql-client-{major}")
FIREWALL = ("nftables",)
KEY = ("postgresql-common",)
"""Carries the key of PGDG's archive, so it is installed before that source is set up."""
POOLER = ("pgbouncer",)
ETCD = ("etcd-server", "etcd-client")
BALANCER, MOVING = ("haproxy",), ("keepalived",)
PATRONI = ("patroni", "python3-etcd", "etcd-client")
"""Patroni's client of etcd 3 needs the library of etcd 2, which the package only suggests."""
BACKUP, BACKUP_REMOTE, BACKUP_HOST = ("pgbackrest",), ("openssh-client",), ("pgbackrest", "openssh-server")
LOGS = ("logrotate",)
EXPORTERS = ("prometheus-node-exporter", "prometheus-postgres-exporter")
BUILD = ("gcc", "libc6-dev", "make", "postgresql-server-dev-{major}")
"""Compiler and headers of a source build of pgvector."""


@dataclass(frozen=True)
class Extension:
    """A packaged extension; `preload` is its library, where it works only when the server preloads it."""

    package: str
    preload: str = ""


EXTENSIONS = {
    "citus": Extension(f"postgresql-{{major}}-citus-{compatibility.CITUS}", preload="citus"),
    "vector": Extension("postgresql-{major}-pgvector"),
    "pg_cron": Extension("postgresql-{major}-cron", preload="pg_cron"),
    "pg_partman": Extension("postgresql-{major}-partman"),
    "pg_repack": Extension("postgresql-{major}-repack"),
    "pgaudit": Extension("postgresql-{major}-pgaudit", preload="pgaudit"),
    "postgis": Extension("postgresql-{major}-postgis-3"),
}
"""Extensions with a package of their own; those of PostgreSQL itself come with the server."""


CONTRIB = frozenset(
    (
        "amcheck",
        "autoinc",
        "bloom",
        "btree_gin",
        "btree_gist",
        "citext",
        "cube",
        "dblink",
        "dict_int",
        "dict_xsyn",
        "earthdistance",
        "file_fdw",
        "fuzzystrmatch",
        "hstore",
        "insert_username",
        "intagg",
        "intarray",
        "isn",
        "lo",
        "ltree",
        "moddatetime",
        "pageinspect",
        "pg_buffercache",
        "pg_freespacemap",
        "pg_prewarm",
        "pg_stat_statements",
        "pg_surgery",
        "pg_trgm",
        "pg_visibility",
        "pgcrypto",
        "pgrowlocks",
        "pgstattuple",
        "plpgsql",
        "postgres_fdw",
        "refint",
        "seg",
        "sslinfo",
        "tablefunc",
        "tcn",
        "tsm_system_rows",
        "tsm_system_time",
        "unaccent",
        "uuid-ossp",
        "xml2",
    )
)
"""PostgreSQL's own extensions of every supported major, in Debian's packages of the server."""
CONTRIB_OF = {"adminpack": (14, 16), "old_snapshot": (14, 16), "pg_walinspect": (15, 18), "pg_logicalinspect": (18, 18)}
"""Those of some majors: the first and the last."""


def contrib(major: int) -> frozenset[str]:
    """Name PostgreSQL's own extensions of a major."""
    return CONTRIB | {name for name, (first, last) in CONTRIB_OF.items() if first <= major <= last}


def preload(extensions: tuple[str, ...] | list[str]) -> list[str]:
    """Name the libraries that these extensions need preloaded."""
    return [EXTENSIONS[name].preload for name in extensions if name in EXTENSIONS and EXTENSIONS[name].preload]


def by_role(plan: Plan, *, built: bool) -> dict[str, tuple[str, ...]]:
    """Return each role's packages; `built` is whether the host has the source build of pgvector that the plan names."""
    source = plan.pgvector.install_method == "source"
    own = [name for name in plan.access.extensions if name in EXTENSIONS and name != "vector"]
    vector = (() if built else BUILD) if source else (EXTENSIONS["vector"].package,)
    remote = BACKUP_REMOTE if plan.backup.repository.kind == "host" else ()
    found = {
        "toolkit": TOOLKIT,
        "tls": TLS if plan.tls.enabled else (),
        "postgresql": (*SERVER, *(FIREWALL if plan.firewall else ())),
        "upgrade": (*SERVER, *vector, *(EXTENSIONS[name].package for name in own)),
        "pgvector": vector,
        "database": tuple(EXTENSIONS[name].package for name in own),
        "pgbouncer": (*POOLER, *(FIREWALL if plan.pooler_alone and plan.firewall else ()))
        if plan.pooler.enabled
        else (),
        "backup": (*BACKUP, *remote) if plan.backup.physical else (),
        "monitoring": (*LOGS, *(EXPORTERS if plan.monitoring.exporters else ())) if plan.host.systemd else (),
    }
    if plan.cluster:
        found |= {"etcd": ETCD if plan.cluster.dcs_member else (), "patroni": PATRONI if plan.cluster.member else ()}
        found |= {"balancer": (*BALANCER, *(MOVING if plan.balancer.address else ())) if plan.balancer.enabled else ()}
    return {role: tuple(name.format(major=plan.server.major) for name in names) for role, names in found.items()}


def bundled(major: int, pgvector_install_method: str) -> list[str]:
    """Name every package that a run with the default extensions may ask of apt."""
    vector = BUILD if pgvector_install_method == "source" else (EXTENSIONS["vector"].package,)
    rows: tuple[tuple[str, ...], ...]
    rows = (
        ANSIBLE,
        TOOLKIT,
        TLS,
        SERVER,
        FIREWALL,
        KEY,
        POOLER,
        ETCD,
        PATRONI,
        BALANCER,
        MOVING,
        BACKUP,
        BACKUP_REMOTE,
        BACKUP_HOST,
        LOGS,
    )
    rows = (*rows, EXPORTERS, vector)
    return sorted({name.format(major=major) for names in rows for name in names})
