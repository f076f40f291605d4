"""Find the primary of a cluster, and whether its server accepts writes. Does IO.

Patroni's leader key names the primary before its promotion is complete, and `GET /primary` answers 200 by then. So the
server itself is asked, with the pooler's login.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.sql import SQL

from provision import pins
from provision.database import ask, connect, connect_pinned
from provision.errors import DatabaseError
from provision.host.cluster.patroni import Patroni, PatroniError
from provision.plan.cluster import Cluster, Member
from provision.plan.schema import Plan
from provision.quoting import conninfo

CONNECT_TIMEOUT_S = 2
"""The least that libpq allows."""
CHECKPOINTS, SHORT_S = 3, 1.0
Writable = Callable[[Member], bool]


def member(cluster: Cluster, name: str) -> Member | None:
    """Return a member by name."""
    return next((each for each in cluster.members if each.name == name), None)


def checker(plan: Plan) -> Writable:
    """Return a function that logs in at a member as the pooler does and says whether it accepts writes."""
    return lambda member: writable(url(plan, member))


def url(plan: Plan, member: Member) -> str:
    """Return the libpq string with which the pooler's role logs in at a member.

    Pinned, because the database's owner may store settings for it, and the role may look up verifiers.
    """
    certificate = plan.tls.certificate("pooler-client")
    return conninfo(
        {
            "host": member.address, "port": member.port, "dbname": plan.access.database,
            "user": plan.access.pooler, "sslmode": "verify-full", "sslrootcert": plan.tls.ca,
            "sslcert": certificate.certificate, "sslkey": certificate.key,
            "options": pins.options(),
        }
    )  # fmt: skip


def writable(url: str) -> bool:
    """Whether a server answers and is not in recovery."""
    limits = {"connect_timeout": CONNECT_TIMEOUT_S, "tcp_user_timeout": 2000}
    try:
        with connect(f"{url} {conninfo(limits)}", application="provision follow") as session:
            row = session.execute("SELECT NOT pg_is_in_recovery()").fetchone()
    except (DatabaseError, psycopg.Error):
        return False
    return row == (True,)


def by_rest(patroni: Patroni) -> str:
    """Return the only member that calls itself primary, for use while etcd is silent; "" if none or several do."""
    names = []
    for each in patroni.access.cluster.members:
        try:
            if patroni.ask(each, "/primary", timeout_s=1).status == 200:
                names.append(each.name)
        except PatroniError:
            continue
    return names[0] if len(names) == 1 else ""


def checkpoint(plan: Plan) -> None:
    """Write a checkpoint on this host's server, so that the shutdown of a switchover has little left to write."""
    checkpoint_at(plan.server.url("postgres"))


def checkpoint_at(url: str) -> None:
    """Write checkpoints until one is short: a long one leaves what was written meanwhile. Raises DatabaseError."""
    with connect(url, application="provision follow") as session:
        try:
            for _ in range(CHECKPOINTS):
                begun = time.monotonic()
                session.execute("CHECKPOINT")
                if time.monotonic() - begun < SHORT_S:
                    return
        except psycopg.Error as error:
            raise DatabaseError("cannot write a checkpoint", seen=str(error).strip()) from None


def stream_from(plan: Plan, member: Member) -> None:
    """Have this host's standby stream from a member that a switchover has promoted. Raises DatabaseError.

    Patroni sleeps for two seconds before it does so (`process_unhealthy_cluster`, ha.py), and synchronous commits wait
    for it. Then it replaces this setting with its own: it compares `channel_binding` too, which client certificates do
    not use, and whenever it writes its settings it deletes those of ALTER SYSTEM.
    """
    with connect_pinned(plan.server.url("postgres"), application="provision follow") as session:
        ((standby, text),) = ask(session, "SELECT pg_is_in_recovery(), current_setting('primary_conninfo')")
        place = {"host": member.address, "port": str(member.port)}
        now = conninfo_to_dict(str(text))
        if not standby or not now or place.items() <= now.items():
            return
        wanted = conninfo({**now, **place, "channel_binding": "disable"})
        try:
            session.execute(SQL("ALTER SYSTEM SET primary_conninfo = {}").format(wanted))
            session.execute("SELECT pg_reload_conf()")
        except psycopg.Error as error:
            raise DatabaseError("cannot follow the new primary yet", seen=str(error).strip()) from None
