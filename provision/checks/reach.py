"""Causes of a failed connection, recognised in the message of libpq, the server or the pooler.

The causes are checks of scope CONNECTION; the first one that recognises the message wins, so their order matters.
Does IO only for a refused connection: asks systemd on the host itself, probes ports of other hosts.
"""

from __future__ import annotations

import functools
import re
import shlex
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict

from provision import secure_path
from provision.checks.finding import Finding, Severity, psql
from provision.checks.placed import ask
from provision.checks.registry import Row, Scope, Site, check, of, unknown_site
from provision.database import identifier
from provision.plan.schema import Plan

PORTS = (5432, 6432)
PROBE_S = 2.0
JOURNAL = "journalctl -u 'postgresql@*'"
LIMIT = r"too many connections for role|too many clients|remaining connection slots|too many connections for database"
"""What the server says when every allowed connection is in use."""


@dataclass(frozen=True)
class Refusal:
    """A failed connection; `plan` only where the URL leads to this host's own server."""

    message: str
    url: str
    plan: Plan | None = None

    @property
    def last(self) -> str:
        """The last line of the message, without libpq's introduction and its hints, and the server's details."""
        lines = [line for line in self.message.strip().splitlines() if not line.startswith(("\t", "DETAIL:", "HINT:"))]
        return re.sub(r"^(connection (failed: |to server [^:]*failed: ))+", "", lines[-1])

    @property
    def target(self) -> dict[str, str]:
        """The parameters of the URL, with defaults for texts."""
        given = {key: str(value) for key, value in conninfo_to_dict(self.url).items() if value}
        return {"host": "the host", "port": "5432", "user": "ROLE", "role": "ROLE", "database": "", **given}

    @property
    def selection(self) -> str:
        """The options that select the host of the URL on the controller."""
        return self.plan.selection() if self.plan else "-i INVENTORY --limit HOST"

    @property
    def site(self) -> Site:
        """The playbook command for the host of the URL."""
        if self.plan:
            return self.plan.site
        host = self.target["host"]
        return functools.partial(unknown_site, limit="HOST" if " " in host else host)


def _cause(
    id: str,  # noqa: A002
    pattern: str,
    *,
    expected: str,
    why: str,
    fix: str = "{site}",
    tags: str = "",
    statement: str = "",
    look: Callable[[Refusal], Iterator[Row]] | None = None,
) -> None:
    """Register a cause: `pattern` is searched in the message; its groups and the URL's parameters fill the fix.

    `statement` is SQL whose fields are the pattern's groups, as identifiers; {statement} in the fix runs it.
    """

    def recognise(refusal: Refusal) -> Iterator[Row]:
        match = re.search(pattern, refusal.message, re.IGNORECASE)
        if match is None:
            return
        if look:
            yield from look(refusal)
            return
        groups = {key: value for key, value in match.groupdict().items() if value}
        filled = fix
        if statement:
            names = {key: identifier(value) for key, value in groups.items()}
            filled = filled.replace("{statement}", psql("postgres", statement.format(**names)))
        for key, value in {**refusal.target, **groups}.items():
            filled = filled.replace("{" + key + "}", shlex.quote(value))
        filled = filled.replace("{selection}", refusal.selection)
        yield refusal.last, filled

    check(
        id, Scope.CONNECTION, area="connection", severity=Severity.CRITICAL, expected=expected, why=why, fix=fix,
        tags=tags,
    )(recognise)  # fmt: skip


def _nothing_listens(refusal: Refusal) -> Iterator[Row]:
    """Distinguish a stopped server from one on another port."""
    plan, said = refusal.plan, refusal.last
    if plan is None:
        host, port = refusal.target["host"], refusal.target["port"]
        other = next((each for each in PORTS if str(each) != port and _listens(host, each)), None)
        if other is None:
            yield said
        else:
            yield f"{said}; port {other} of {host} answers", f"# use port {other} in the URL"
        return
    active = ask("systemctl", "is-active", plan.server.unit).strip()
    if active != "active":
        reset = f"systemctl reset-failed {plan.server.unit} && " if active == "failed" else ""
        yield f"{said}; {plan.server.unit} is {active}", f"{reset}systemctl start {plan.server.unit}"
        return
    try:
        port = secure_path.text(Path(plan.server.data_directory, "postmaster.pid")).splitlines()[3]
    except (OSError, IndexError):
        yield said, f"systemctl restart {plan.server.unit}"
        return
    if port != str(plan.server.port):
        yield f"{said}; the server runs on port {port}", plan.site("postgresql")
    else:
        yield said, f"journalctl -u {plan.server.unit} -n 20"


def _without_tls(refusal: Refusal) -> Iterator[Row]:
    """Distinguish a setting by ALTER SYSTEM, with which a run fails: it rejects access rules that require TLS."""
    if refusal.plan:
        try:
            stored = secure_path.text(Path(refusal.plan.server.data_directory, "postgresql.auto.conf"))
        except OSError:
            stored = ""
        if re.search(r"^ssl = ", stored, re.MULTILINE):
            reset = psql("postgres", "ALTER SYSTEM RESET ssl", "SELECT pg_reload_conf()")
            yield f"{refusal.last}; ssl is set by ALTER SYSTEM", reset
            return
    yield refusal.last


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), PROBE_S).close()
    except OSError:
        return False
    return True


_cause(
    "reach-name",
    r"could not translate host name|Name or service not known",
    expected="a host name that resolves",
    why="no server was contacted",
    fix="getent hosts {host}",
)
_cause(
    "reach-pooler",
    r"server login has been failing|query_wait_timeout|pgbouncer cannot connect|no more connections allowed"
    r"|bouncer config error",
    expected="a pooler with a working server",
    why="the pooler answers, but its server does not",
    fix="provision doctor; systemctl status pgbouncer 'postgresql@*'  # on the host; port 5432 bypasses the pooler",
)
_cause(
    "reach-tls-required",
    r"no pg_hba\.conf entry .*(no encryption|SSL off)|SSL required|connection requires a valid client certificate",
    expected="an encrypted connection",
    why="the access rule for this address requires TLS",
    fix="# add sslmode=verify-full (or require) to the URL",
)
_cause(
    "reach-hba",
    r"no pg_hba\.conf entry|pg_hba\.conf rejects",
    expected="an access rule for this address and role",
    why="the server runs, but its access rules reject this address",
    fix="{site}  # first add the network to postgresql_allowed_networks in the inventory",
    tags="postgresql",
)
_cause(
    "reach-tls-missing",
    r"server does not support SSL",
    expected="a server with TLS",
    why="TLS is off on this server",
    fix="{site}  # on a private network instead: sslmode=disable in the URL",
    tags="tls,postgresql",
    look=_without_tls,
)
_cause(
    "reach-certificate",
    r"certificate verify failed|root certificate file|does not match host name|certificate has expired|SSL error",
    expected="a certificate issued by the client's CA for this host",
    why="the server's identity cannot be verified",
    fix="openssl x509 -noout -dates -ext subjectAltName -in"
    " \"$(runuser -u postgres -- psql -XAtc 'SHOW ssl_cert_file')\""
    "  # on the host; the URL needs sslrootcert=PATH of the CA, and a name of the certificate",
)
_cause(
    "reach-password",
    r"password authentication failed|no password supplied|Peer authentication failed|SASL authentication failed",
    expected="the role's password, or over the socket its system user",
    why="the server runs, but authentication failed",
    fix="provision connect {selection} --role {user} --password --show password"
    "  # on the controller; over the socket instead: runuser -u SYSTEM_USER -- psql",
)
_cause(
    "reach-nologin",
    r"role \"(?P<role>[^\"]+)\" is not permitted to log in",
    expected="a role with LOGIN",
    why="the login of this role was disabled",
    fix="{statement}",
    statement="ALTER ROLE {role} LOGIN",
)
_cause(
    "reach-role",
    r"role \"(?P<role>[^\"]+)\" does not exist|no such user",
    expected="a login role of this server",
    why="the name is wrong, or the role was never created",
    tags="database",
)
_cause(
    "reach-database",
    r"database \"(?P<database>[^\"]+)\" does not exist|no such database",
    expected="a database of this server",
    why="the name is wrong, or this is a different server",
    fix=psql("postgres", "SELECT datname FROM pg_database"),
)
_cause(
    "reach-connect",
    r"permission denied for database \"(?P<database>[^\"]+)\"",
    expected="a role with CONNECT on the database",
    why="only named roles may connect",
    tags="database",
)
_cause(
    "reach-limit",
    LIMIT,
    expected="fewer connections than the limit",
    why="every allowed connection is in use",
    fix=psql("postgres", "SELECT usename, state, count(*) FROM pg_stat_activity GROUP BY 1, 2 ORDER BY 3 DESC")
    + "  # provision doctor on the host names the role; applications connect through the pooler (port 6432)",
)
_cause(
    "reach-closed-database",
    r"database \"(?P<database>[^\"]+)\" is not currently accepting connections",
    expected="a database that accepts connections",
    why="ALLOW_CONNECTIONS is false, as during the exchange of a restored database",
    fix="provision restore clean-up && {statement}  # on the host",
    statement="ALTER DATABASE {database} ALLOW_CONNECTIONS true",
)
_cause(
    "reach-starting",
    r"starting up|not yet accepting|in recovery mode|shutting down",
    expected="a server that accepts connections",
    why="the server replays WAL, or is shutting down",
    fix=f"{JOURNAL} -n 20  # on the host; wait, and try again",
)
_cause(
    "reach-timeout",
    r"timeout expired|timed out|No route to host|Network is unreachable",
    expected="an answer within the timeout",
    why="packets are dropped: a firewall, a security group or a wrong address, not PostgreSQL",
    fix="timeout 5 bash -c '</dev/tcp/$0/$1' {host} {port} && echo open || echo no answer"
    "  # on the host: ss -ltn sport = :{port}; nft list ruleset",
)
_cause(
    "reach-socket",
    r"No such file or directory",
    expected="a server behind this socket",
    why="no server runs here, or it uses another port or socket directory",
    fix="provision doctor --fix",
    look=_nothing_listens,
)
_cause(
    "reach-refused",
    r"Connection refused",
    expected="a server that listens on this address and port",
    why="the host answers, but the server is down, uses another port, or does not listen on this address",
    fix="provision doctor --fix  # on the host",
    look=_nothing_listens,
)
_cause(
    "reach-closed",
    r"server closed the connection unexpectedly|Connection reset",
    expected="a PostgreSQL server on this port",
    why="the server stopped during the connection, or another program listens here",
    fix=f"{JOURNAL} -n 50  # on the host",
)
_cause(
    "reach-unknown",
    r"",
    expected="a connection",
    why="the cause is not known to this check",
    fix=f"provision doctor; {JOURNAL} -n 50  # on the host",
)


def leads_to(plan: Plan, url: str) -> bool:
    """Whether a URL leads to this host's own server: a socket, or its port on an address of this host. Pure."""
    given = conninfo_to_dict(url)
    host, port = str(given.get("host") or ""), str(given.get("port") or PORTS[0])
    here = {"", "localhost", "127.0.0.1", "::1", plan.name, plan.server.address, plan.server.client_address}
    return port == str(plan.server.port) and (host in here or host.startswith("/"))


def explain(message: str, url: str, plan: Plan | None = None) -> Finding:
    """Find the cause of a failed connection. `plan` is given where the server is this host's own."""
    refusal = Refusal(message, url, plan)
    return next(each.finding(row, refusal.site) for each, look in of(Scope.CONNECTION) for row in look(refusal))
