"""Hardening of the pooler on this host, judged by its console, its files and its process.

Does IO, read-only, as root or postgres. The settings judged are those in effect (SHOW CONFIG), not those in files.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from provision import compatibility, secure_path
from provision.checks.finding import Finding, Severity
from provision.checks.placed import ask
from provision.checks.registry import Row, Scope, check, examine, get
from provision.errors import ProvisionError
from provision.host import lookup
from provision.host.pooler import configuration, console
from provision.host.pooler.take import CONFIGURATION
from provision.plan.schema import Plan
from provision.system import POSTGRES, as_user

AREA = "pooler"
RESTART = "-e pgbouncer_restart_allowed=true"
"""For settings that PgBouncer reads only at its start."""
FOLLOWED = "follow"
"""Directory in which provision-follow.service writes the primary's address, as postgres, who runs the pooler too."""


@dataclass(frozen=True)
class Seen:
    """The state of a pooler: settings in effect, hosts of its databases, user id, package version, unsafe files."""

    settings: Mapping[str, str]
    servers: Mapping[str, str]
    user: int
    package: str
    open_files: tuple[str, ...]
    secrets: tuple[str, ...]


@check(
    "pooler",
    scope=Scope.LOCAL,
    area=AREA,
    severity=Severity.CRITICAL,
    expected="a running pooler",
    why="clients of its port get no answer",
    fix=f"journalctl -u {console.UNIT} -n 50; systemctl start {console.UNIT}",
)
def down(plan: Plan) -> Iterator[Row]:
    """Report a pooler that does not run."""
    if plan.pooler.enabled and not _running():
        yield "the pooler is down"


def _unless(name: str, *allowed: str) -> Callable[[Seen], Iterator[Row]]:
    """Make a check of one setting and its allowed values."""

    def look(seen: Seen) -> Iterator[Row]:
        value = seen.settings.get(name, "")
        if value not in allowed:
            yield f"{name} = {value}"

    return look


check(
    "pooler-client-tls",
    scope=Scope.POOLER,
    area=AREA,
    severity=Severity.CRITICAL,
    expected="client_tls_sslmode = require",
    why="traffic is unencrypted",
    tags="pgbouncer",
    development=True,
)(_unless("client_tls_sslmode", "require", "verify-ca", "verify-full"))

check(
    "pooler-tls-version",
    scope=Scope.POOLER,
    area=AREA,
    expected="client_tls_protocols = secure (1.2 and newer)",
    why="TLS 1.0 and 1.1 are deprecated as insecure (RFC 8996)",
    tags="pgbouncer",
)(_unless("client_tls_protocols", "secure", "tlsv1.2,tlsv1.3", "tlsv1.3"))

check(
    "pooler-auth-type",
    scope=Scope.POOLER,
    area=AREA,
    severity=Severity.CRITICAL,
    expected="auth_type = hba",
    why="the method does not authenticate, or exposes the password",
    tags="pgbouncer",
)(_unless("auth_type", "hba", "scram-sha-256", "cert"))

check(
    "pooler-auth-query",
    scope=Scope.POOLER,
    area=AREA,
    severity=Severity.CRITICAL,
    expected=f"auth_query = {lookup.QUERY}",
    why="another query may authenticate superusers or expired roles",
    tags="pgbouncer",
)(_unless("auth_query", lookup.QUERY))

check(
    "pooler-socket",
    scope=Scope.POOLER,
    area=AREA,
    expected="unix_socket_mode = 0700",
    why="every user of the host can try passwords",
    tags="pgbouncer",
    extra=RESTART,
)(_unless("unix_socket_mode", "0700"))


@check(
    "pooler-user",
    scope=Scope.POOLER,
    area=AREA,
    severity=Severity.CRITICAL,
    expected="the system user postgres",
    why="a vulnerability of the pooler gives control of the host",
    fix=f"systemctl cat {console.UNIT}  # find the file that sets User, and remove it",
)
def user(seen: Seen) -> Iterator[Row]:
    """Report a pooler that runs as root."""
    if seen.user == 0:
        yield "the pooler runs as root"


@check(
    "pooler-server-tls",
    scope=Scope.POOLER,
    area=AREA,
    severity=Severity.CRITICAL,
    expected="the server's socket, or server_tls_sslmode = verify-full",
    why="another host can impersonate the server",
    tags="pgbouncer",
)
def servers(seen: Seen) -> Iterator[Row]:
    """Report databases reached over TCP without verification of the server."""
    remote = {name: host for name, host in seen.servers.items() if not host.startswith("/")}
    if remote and seen.settings.get("server_tls_sslmode") != "verify-full":
        yield "; ".join(f"{name} is reached at {host} without verify-full" for name, host in remote.items())


@check(
    "pooler-secrets",
    scope=Scope.POOLER,
    area=AREA,
    severity=Severity.CRITICAL,
    expected="no secrets in the pooler's files",
    why="a reader of the file can log in as the role, also after the password was rotated",
    tags="pgbouncer",
)
def secrets(seen: Seen) -> Iterator[Row]:
    """Report passwords and verifiers in files."""
    if seen.secrets:
        yield "; ".join(seen.secrets)


@check(
    "pooler-admins",
    scope=Scope.POOLER,
    area=AREA,
    expected="empty: only the system user postgres has access to the console, over its socket",
    why="the role can stop the pooler or redirect every client",
    tags="pgbouncer",
)
def admins(seen: Seen) -> Iterator[Row]:
    """Report roles with access to the console."""
    found = [f"{name} = {seen.settings[name]}" for name in ("admin_users", "stats_users") if seen.settings.get(name)]
    if found:
        yield "; ".join(found)


@check(
    "pooler-listen",
    scope=Scope.POOLER,
    area=AREA,
    expected="only the addresses that applications use",
    why="the pooler also listens on every interface added later",
    fix="{site}  # disconnects clients; if the inventory has *, set pgbouncer_listen_addresses first",
    tags="pgbouncer",
    extra=RESTART,
    development=True,
)
def listen(seen: Seen) -> Iterator[Row]:
    """Report a pooler that listens on all interfaces."""
    if "*" in seen.settings.get("listen_addr", ""):
        yield "listen_addr = *"


@check(
    "pooler-wait",
    scope=Scope.POOLER,
    area=AREA,
    expected="a limit on the waiting time of clients",
    why="clients of an exhausted pool wait for ever, without an error",
    tags="pgbouncer",
)
def wait(seen: Seen) -> Iterator[Row]:
    """Report an unlimited query_wait_timeout."""
    if float(seen.settings.get("query_wait_timeout") or 0) == 0:
        yield "query_wait_timeout = 0"


@check(
    "pooler-files",
    scope=Scope.POOLER,
    area=AREA,
    severity=Severity.CRITICAL,
    expected="files of root, closed to other users",
    why="a user who can write them can redirect clients",
    tags="pgbouncer",
)
def open_files(seen: Seen) -> Iterator[Row]:
    """Report configuration files with a wrong owner or mode."""
    if seen.open_files:
        yield "; ".join(seen.open_files)


@check(
    "pooler-version",
    scope=Scope.POOLER,
    area=AREA,
    expected="a version without known defects, apart from those that the configuration prevents",
    why="any client that reaches the port can exploit the defect",
    fix="apt-get update && apt-get install -y --only-upgrade pgbouncer"
    "  # without a fixed version: restrict pgbouncer_allowed_networks",
    development=True,
)
def version(seen: Seen) -> Iterator[Row]:
    """Report known defects of the installed version."""
    found = compatibility.pooler_defects(seen.package)[0] if seen.package else []
    if found:
        yield "; ".join(found)


def examine_host(plan: Plan) -> list[Finding]:
    """Judge the running pooler of this host; one that the caller may not access is UNSEEN."""
    if not plan.pooler.enabled or not _running():
        return []
    try:
        seen = look(console.Place(plan.pooler.socket_directory, plan.pooler.port))
    except (ProvisionError, PermissionError) as error:
        return [get("pooler").finding(no_answer(error), plan.site)]
    return examine(Scope.POOLER, seen, site=plan.site, development=not plan.access.guard)


def no_answer(error: Exception) -> Row:
    """Return the row of a running pooler whose console fails: hung or full for a user who may use it, else UNSEEN."""
    if os.geteuid() in (0, pwd.getpwnam(POSTGRES).pw_uid):
        seen = error.seen if isinstance(error, ProvisionError) else str(error)
        return f"the pooler runs but its console does not answer: {seen}", f"systemctl restart {console.UNIT}"
    return str(error).partition("\n")[0], "run it as root or postgres", Severity.UNSEEN


def look(place: console.Place) -> Seen:
    """Read the state of the pooler. Raises ProvisionError, and PermissionError where the caller may not read it."""
    with place.console() as session:
        settings = {key: value for key, (value, _) in console.settings(session).items()}
        databases = [row for row in console.show(session, "DATABASES") if row["name"] != "pgbouncer"]
    pid = ask("systemctl", "show", "--property=MainPID", "--value", console.UNIT).strip()
    files = [CONFIGURATION, *sorted((CONFIGURATION.parent / "provision").glob("*"))]
    files = [path for path in files if path.name != FOLLOWED]
    return Seen(
        settings=settings,
        servers={row["name"]: str(row["host"]) for row in databases},
        user=Path(f"/proc/{pid}").stat().st_uid,
        package=ask("dpkg-query", "--show", "--showformat=${Version}", "pgbouncer").strip(),
        open_files=tuple(_open(path) for path in files if _open(path)),
        secrets=tuple(_secrets(settings.get("auth_file", ""), configuration.databases_text(CONFIGURATION))),
    )


def _running() -> bool:
    return ask("systemctl", "is-active", console.UNIT).strip() in ("active", "reloading")


def _open(path: Path) -> str:
    about = path.stat()
    wrong = about.st_uid != 0 or about.st_mode & 0o027
    return f"{path} is {about.st_mode & 0o777:04o} of user {about.st_uid}" if wrong else ""


def _secrets(auth_file: str, databases: list[str]) -> list[str]:
    found = [f"{line.partition('=')[0].strip()} has a password" for line in databases if " password=" in line]
    with as_user():  # the user that runs the pooler names the file
        text = secure_path.text(Path(auth_file)) if auth_file and Path(auth_file).is_file() else ""
    names = [line.split('"')[1] for line in text.splitlines() if line.startswith('"')]
    found += [f"{auth_file} has {name}" for name in names]
    return found
