"""How a hardened pooler looks, asked of the one that runs on this host: its console, its files, its process.

Does IO, read-only, as root or postgres. On a machine that is no host of ours, or that has no pooler, nothing is to be
found. What is judged is what is in force (SHOW CONFIG), not what the files say.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from provision import compatibility
from provision.checks.finding import Finding, Severity
from provision.errors import ProvisionError
from provision.host import lookup
from provision.host.pooler import configuration, console
from provision.host.pooler.take import CONFIGURATION
from provision.plan import record

SITE = "ansible-playbook site.yml -i inventories/prod --tags pgbouncer"


@dataclass(frozen=True)
class Seen:
    """What a pooler is: settings in force, hosts of its databases, its process's user, its package, unsafe files."""

    settings: Mapping[str, str]
    servers: Mapping[str, str]
    user: int
    package: str
    open_files: tuple[str, ...]
    secrets: tuple[str, ...]


@dataclass(frozen=True)
class Check:
    """`wrong` says what is wrong, or nothing; `dev` says that development may do it."""

    id: str
    wrong: Callable[[Seen], str]
    wanted: str
    why: str
    fix: str = SITE
    severity: Severity = Severity.WARNING
    dev: bool = False


def _differs(name: str, *allowed: str) -> Callable[[Seen], str]:
    def wrong(seen: Seen) -> str:
        value = seen.settings.get(name, "")
        return "" if value in allowed else f"{name} = {value}"

    return wrong


def _servers(seen: Seen) -> str:
    if seen.settings.get("server_tls_sslmode") == "verify-full":
        return ""
    return "; ".join(f"{name} is reached at {host} without verify-full" for name, host in seen.servers.items()
                     if not host.startswith("/"))  # fmt: skip


def _endless(seen: Seen) -> str:
    return "query_wait_timeout = 0" if float(seen.settings.get("query_wait_timeout") or 0) == 0 else ""


CHECKS = (
    Check(
        "pooler-user", lambda seen: "the pooler runs as root" if seen.user == 0 else "",
        "the user postgres", "a hole in it is a hole in the host", "systemctl cat pgbouncer shows who set User",
        Severity.CRITICAL,
    ),
    Check(
        "pooler-client-tls", _differs("client_tls_sslmode", "require", "verify-ca", "verify-full"),
        "client_tls_sslmode = require", "rows travel in the clear", severity=Severity.CRITICAL, dev=True,
    ),
    Check(
        "pooler-tls-version", _differs("client_tls_protocols", "secure", "tlsv1.2,tlsv1.3", "tlsv1.3"),
        "client_tls_protocols = secure (1.2 and newer)", "1.0 and 1.1 are broken",
    ),
    Check(
        "pooler-server-tls", _servers, "the server's socket, or server_tls_sslmode = verify-full",
        "somebody else may stand in for the server", severity=Severity.CRITICAL,
    ),
    Check(
        "pooler-auth-type", _differs("auth_type", "hba", "scram-sha-256", "cert"), "auth_type = hba",
        "a method that lets in whom it does not know, or shows the password", severity=Severity.CRITICAL,
    ),
    Check(
        "pooler-auth-query", _differs("auth_query", lookup.QUERY), f"auth_query = {lookup.QUERY}",
        "another query may answer for superusers, or for roles that have expired", severity=Severity.CRITICAL,
    ),
    Check(
        "pooler-secrets", lambda seen: "; ".join(seen.secrets), "no secret in a file of the pooler",
        "whoever reads it is that role; a rotated password lives on in it", severity=Severity.CRITICAL,
    ),
    Check(
        "pooler-admins", lambda seen: "; ".join(
            f"{name} = {seen.settings[name]}" for name in ("admin_users", "stats_users") if seen.settings.get(name)),
        "nobody: the console is for the system user postgres, over its socket",
        "a role can stop or redirect every client",
    ),
    Check(
        "pooler-socket", _differs("unix_socket_mode", "0700"), "unix_socket_mode = 0700",
        "every user of the host may try passwords",
    ),
    Check(
        "pooler-listen", lambda seen: "listen_addr = *" if "*" in seen.settings.get("listen_addr", "") else "",
        "the addresses that applications use", "a new network card is a new door",
        "name them in pgbouncer_listen_addresses", dev=True,
    ),
    Check(
        "pooler-wait", _endless,
        "a limit to how long clients wait", "an exhausted pool hangs every caller, without an error",
    ),
    Check(
        "pooler-files", lambda seen: "; ".join(seen.open_files), "files of root that others neither read nor write",
        "whoever writes them sends clients elsewhere", severity=Severity.CRITICAL,
    ),
    Check(
        "pooler-version", lambda seen: "; ".join(compatibility.pooler_defects(seen.package)[0]) if seen.package else "",
        "a version without known defects that the configuration does not keep away",
        "anybody who reaches its port may use them",
        "apt-get update && apt-get install pgbouncer; until a fixed one is there: pgbouncer_allowed_networks", dev=True,
    ),
)  # fmt: skip


def examine(path: Path = record.PATH) -> list[Finding]:
    """Judge the pooler of this host. One that may not be looked at comes as unseen, one that is down as critical."""
    if not path.exists():
        return []
    try:
        known = record.read(path)
    except ProvisionError as error:
        return [_unseen(error.seen)]
    if not known.get("pooler"):
        return []
    place = console.present()
    if place is None:
        words = "clients of port {port} get no answer".format(**known["pooler"])
        fix = f"journalctl -u {console.UNIT} -n 50; systemctl start {console.UNIT}"
        return [Finding("pooler", "pooler", Severity.CRITICAL, "no pooler runs", "it runs", words, fix)]
    try:
        seen = look(place)
    except (ProvisionError, PermissionError) as error:
        return [_unseen(str(error).partition("\n")[0])]
    return judge(seen, dev=known.get("profile") != "prod")


def judge(seen: Seen, *, dev: bool) -> list[Finding]:
    """Run every check on what was seen. Pure."""
    found = []
    for check in CHECKS:
        wrong = check.wrong(seen)
        if wrong:
            severity = Severity.ACCEPTED if dev and check.dev else check.severity
            found.append(Finding(check.id, "pooler", severity, wrong, check.wanted, check.why, check.fix))
    return found


def look(place: console.Place) -> Seen:
    """Ask the pooler, its process and its files. Raises ProvisionError, and PermissionError where they are closed."""
    with place.console() as session:
        settings = {key: value for key, (value, _) in console.settings(session).items()}
        databases = [row for row in console.show(session, "DATABASES") if row["name"] != "pgbouncer"]
    pid = _run("systemctl", "show", "--property=MainPID", "--value", console.UNIT)
    files = [CONFIGURATION, *sorted((CONFIGURATION.parent / "provision").glob("*"))]
    return Seen(
        settings=settings,
        servers={row["name"]: str(row["host"]) for row in databases},
        user=Path(f"/proc/{pid}").stat().st_uid,
        package=_run("dpkg-query", "--show", "--showformat=${Version}", "pgbouncer"),
        open_files=tuple(_open(path) for path in files if _open(path)),
        secrets=tuple(_secrets(settings.get("auth_file", ""), configuration.databases_text(CONFIGURATION))),
    )


def _open(path: Path) -> str:
    about = path.stat()
    wrong = about.st_uid != 0 or about.st_mode & 0o027
    return f"{path} is {about.st_mode & 0o777:04o} of user {about.st_uid}" if wrong else ""


def _secrets(auth_file: str, databases: list[str]) -> list[str]:
    found = [f"{line.partition('=')[0].strip()} has a password" for line in databases if " password=" in line]
    if auth_file and Path(auth_file).is_file():
        names = [line.split('"')[1] for line in Path(auth_file).read_text().splitlines() if line.startswith('"')]
        found += [f"{auth_file} has {name}" for name in names]
    return found


def _run(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()  # noqa: S603


def _unseen(why: str) -> Finding:
    return Finding("pooler", "pooler", Severity.UNSEEN, why, "", "", "ask as root or postgres")
