"""Why a database cannot be reached, told from what libpq, the server or the pooler said: one table, the first row wins.

Does IO only to look at the host of a refused connection: its unit when it is this host, else its ports.
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass

from psycopg.conninfo import conninfo_to_dict

from provision.checks.finding import Finding, Severity, psql
from provision.checks.place import Place, ask

PORTS = (5432, 6432)
PROBE_S = 2.0


@dataclass(frozen=True)
class Cause:
    """`pattern` is looked for in the message; its groups, and host, port, user and dbname, fill the texts."""

    id: str
    pattern: str
    wanted: str
    why: str
    fix: str


_SITE = "ansible-playbook site.yml -i INVENTORY --limit {host} --tags {tags}"
CAUSES = (
    Cause(
        "reach-name",
        r"could not translate host name|Name or service not known",
        "a name that resolves",
        "nothing was asked of any server",
        "getent hosts {host}",
    ),
    Cause(
        "reach-pooler",
        r"server login has been failing|query_wait_timeout|pgbouncer cannot connect|no more connections"
        r" allowed|bouncer config error",
        "a pooler whose server answers",
        "the pooler answers, the server behind it does not",
        "on the host: provision doctor; systemctl status pgbouncer 'postgresql@*'; or go around it with port 5432",
    ),
    Cause(
        "reach-tls-wanted",
        r"no pg_hba\.conf entry .*(no encryption|SSL off)|SSL required|connection requires a valid"
        r" client certificate",
        "an encrypted connection",
        "the rule for this address wants TLS",
        "add sslmode=verify-full (or require) to the URL",
    ),
    Cause(
        "reach-hba",
        r"no pg_hba\.conf entry|pg_hba\.conf rejects",
        "a rule that lets this address in as this role",
        "the server is there and answers, its access rules do not let you in",
        "add the network to postgresql_allowed_networks in the inventory, then "
        + _SITE.replace("{tags}", "postgresql"),
    ),
    Cause(
        "reach-tls-missing",
        r"server does not support SSL",
        "a server with TLS",
        "this server speaks no TLS",
        "on a private network: sslmode=disable; else " + _SITE.replace("{tags}", "tls,postgresql"),
    ),
    Cause(
        "reach-certificate",
        r"certificate verify failed|root certificate file|does not match host name|certificate has"
        r" expired|SSL error",
        "a certificate that this client's CA vouches for",
        "what answers cannot prove that it is the server",
        "sslrootcert=PATH of the CA in the URL; on the host:"
        " openssl x509 -noout -dates -ext subjectAltName -in"
        " \"$(runuser -u postgres -- psql -XAtc 'SHOW ssl_cert_file')\"",
    ),
    Cause(
        "reach-password",
        r"password authentication failed|no password supplied|Peer authentication failed|SASL"
        r" authentication failed",
        "the role's own password (or, over the socket, its system user)",
        "the server is there; it does not believe who you are",
        "provision secrets rotate INVENTORY {user}; over the socket: runuser -u postgres -- ...",
    ),
    Cause(
        "reach-nologin",
        r"role \"(?P<role>[^\"]+)\" is not permitted to log in",
        "a role that may log in",
        "somebody shut this role out",
        psql("postgres", 'ALTER ROLE "{role}" LOGIN'),
    ),
    Cause(
        "reach-role",
        r"role \"(?P<role>[^\"]+)\" does not exist|no such user",
        "a login role of this server",
        "the name is wrong, or the role was never made",
        _SITE.replace("{tags}", "database"),
    ),
    Cause(
        "reach-database",
        r"database \"(?P<database>[^\"]+)\" does not exist|no such database",
        "a database of this server",
        "the name is wrong, or this is another server",
        psql("postgres", "SELECT datname FROM pg_database"),
    ),
    Cause(
        "reach-connect",
        r"permission denied for database \"(?P<database>[^\"]+)\"",
        "a role that may connect",
        "only roles that are named get in",
        _SITE.replace("{tags}", "database"),
    ),
    Cause(
        "reach-limit",
        r"too many connections for role|too many clients|remaining connection slots|too many connections"
        r" for database",
        "fewer connections than the limit",
        "every connection that may be is there already",
        psql("postgres", "SELECT usename, state, count(*) FROM pg_stat_activity GROUP BY 1, 2 ORDER BY 3 DESC")
        + "; let the application go through the pooler (port 6432)",
    ),
    Cause(
        "reach-starting",
        r"starting up|not yet accepting|in recovery mode|shutting down",
        "a server that is up",
        "it replays its WAL, or ends",
        "wait; on the host: journalctl -u 'postgresql@*' -n 20",
    ),
    Cause(
        "reach-timeout",
        r"timeout expired|timed out|No route to host|Network is unreachable",
        "an answer, be it a refusal",
        "packets are lost on the way: a firewall, a security group or a wrong address, not PostgreSQL",
        "nc -vz {host} {port}; on the host: ss -ltn sport = :{port}; nft list ruleset",
    ),
    Cause(
        "reach-socket",
        r"No such file or directory",
        "a server behind this socket",
        "no server runs here, or it has another port or socket directory",
        "systemctl start postgresql",
    ),
    Cause(
        "reach-refused",
        r"Connection refused",
        "a server that listens there",
        "the host answers, nothing listens: the server is down, has another port, or is not on this address",
        "on the host: provision doctor; systemctl start postgresql",
    ),
    Cause(
        "reach-closed",
        r"server closed the connection unexpectedly|Connection reset",
        "a server that speaks PostgreSQL",
        "it ended while it was asked, or something else listens there",
        "on the host: journalctl -u 'postgresql@*' -n 50",
    ),
)


def explain(message: str, url: str, place: Place | None = None) -> Finding:
    """Turn what was said into a finding. `place` is given when the server is this very host's."""
    about = {"host": "the host", "port": "5432", "user": "ROLE", "role": "ROLE", "database": ""} | {
        key: str(value) for key, value in conninfo_to_dict(url).items() if value
    }
    told = re.sub(r"^connection (failed: |to server [^:]*failed: )?", "", message.strip().splitlines()[-1])
    for cause in CAUSES:
        match = re.search(cause.pattern, message, re.IGNORECASE)
        if match:
            about |= {key: value for key, value in match.groupdict().items() if value}
            fix, seen = cause.fix, told
            if cause.id in ("reach-refused", "reach-socket"):
                seen, fix = _nobody(told, fix, about, place)
            for key, value in about.items():
                fix = fix.replace("{" + key + "}", value)
            return Finding(cause.id, "connection", Severity.CRITICAL, seen, cause.wanted, cause.why, fix)
    return Finding(
        "reach-unknown",
        "connection",
        Severity.CRITICAL,
        told,
        "a connection",
        "it could not be made",
        "on the host: provision doctor; journalctl -u 'postgresql@*' -n 50",
    )


def _nobody(told: str, fix: str, about: dict[str, str], place: Place | None) -> tuple[str, str]:
    """Say more of a place where nothing listens."""
    if place is not None:
        active = ask("systemctl", "is-active", place.unit).strip()
        if active != "active":
            return f"{told}; {place.unit} is {active}", f"systemctl start {place.unit}"
        try:
            port = (place.data / "postmaster.pid").read_text().splitlines()[3]
        except (OSError, IndexError):
            return told, f"systemctl restart {place.unit}"
        if port != str(place.record["postgresql"]["port"]):
            return f"{told}; the server runs on port {port}", place.site("postgresql")
        return told, f"journalctl -u {place.unit} -n 20"
    others = [port for port in PORTS if str(port) != about["port"] and _listens(about["host"], port)]
    if others:
        return f"{told}; port {others[0]} of {about['host']} answers", f"use port {others[0]} in the URL"
    return told, fix


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), PROBE_S).close()
    except OSError:
        return False
    return True
