"""Make the new data directory and run pg_upgrade. Does IO as root, for the user postgres.

Every function can be repeated after a kill: `make` starts from an empty directory, and a cluster that pg_upgrade has
begun to link gets its pg_control back, because its files are unchanged until the new server starts (manual,
pg_upgrade, "Reverting to old cluster").
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from provision import pins, secure_path
from provision.database import Connection, ask
from provision.errors import HostError
from provision.host.upgrade import side
from provision.host.upgrade.side import Side
from provision.system import POSTGRES, Finished, run

OLD_OPTIONS = "-c synchronous_standby_names="
"""Of the servers that pg_upgrade starts: no replica confirms anything, and CREATE DATABASE always waits for it."""
NEW_OPTIONS = f"-c shared_buffers=64MB -c huge_pages=off -c archive_mode=off {OLD_OPTIONS}"
"""Of the servers that pg_upgrade starts: little memory beside the running server, and no WAL into the stanza."""
STOP_S = "3600"
"""How long pg_upgrade's own pg_ctl waits for the start or the stop of a server: not 60 s, its default, which a slow
checkpoint exceeds."""
TIMEOUT_S = 24 * 3600
CHECKSUMS_ARE_DEFAULT = 18
PROVIDER_SINCE, BUILTIN_SINCE = 15, 17
PROVIDERS = {"c": "libc", "i": "icu", "b": "builtin"}
SHOWN_LINES = 12


@dataclass(frozen=True)
class Form:
    """Options of initdb with which pg_upgrade accepts the new cluster: the form of the old one."""

    encoding: str
    collate: str
    ctype: str
    provider: str
    """libc, icu or builtin."""
    locale: str
    """Of icu and builtin."""
    checksums: bool
    segment_mb: int

    def words(self, major: int) -> list[str]:
        """Return initdb's options for a major."""
        found = [f"--encoding={self.encoding}", f"--lc-collate={self.collate}", f"--lc-ctype={self.ctype}"]
        found.append(f"--wal-segsize={self.segment_mb}")
        if self.provider == "icu":
            found += ["--locale-provider=icu", f"--icu-locale={self.locale}"]
        elif self.provider == "builtin":
            found += ["--locale-provider=builtin", f"--builtin-locale={self.locale}"]
        if self.checksums:
            found.append("--data-checksums")
        elif major >= CHECKSUMS_ARE_DEFAULT:
            found.append("--no-data-checksums")
        return found


def form(session: Connection) -> Form:
    """Ask the old server. Raises DatabaseError."""
    major = session.info.server_version // 10000
    provider = "datlocprovider::text" if major >= PROVIDER_SINCE else "'c'"
    locale = "datlocale" if major >= BUILTIN_SINCE else "daticulocale" if major >= PROVIDER_SINCE else "''"
    rows = ask(
        session,
        f"SELECT pg_encoding_to_char(encoding), datcollate, datctype, {provider}, coalesce({locale}, ''),"  # noqa: S608
        " current_setting('data_checksums') = 'on',"
        " (SELECT setting::bigint / 1048576 FROM pg_settings WHERE name = 'wal_segment_size')"
        " FROM pg_database WHERE datname = 'template0'",
    )
    encoding, collate, ctype, kind, name, checksums, segment = rows[0]
    return Form(
        str(encoding), str(collate), str(ctype), PROVIDERS[str(kind)], str(name), bool(checksums), int(str(segment))
    )


def of_facts(facts: dict[str, Any]) -> Form:
    """Read a form from a journal."""
    return Form(**facts)


def make(new: Side, like: Form, work: Path, auth: str = "peer") -> None:
    """Make an empty cluster in the new data directory, and delete what an earlier attempt left. Raises HostError."""
    if new.running:
        raise HostError("a server is running on the new data directory", where=str(new.data))
    _prepare(work)
    side.end_strays(work)  # an initdb that fails would delete what the next one has made
    empty(new)
    words = ("--username=postgres", f"--auth={auth}", f"--pgdata={new.data}", *like.words(new.major))
    run(new.programs / "initdb", *words, user=POSTGRES, directory=work, umask=0o077)
    # Debian's configuration in /etc is used: a second one would confuse pg_upgrade.
    for name in ("postgresql.conf", "pg_hba.conf", "pg_ident.conf"):
        if new.configuration != new.data:
            secure_path.remove(new.data / name)


def empty(new: Side) -> None:
    """Delete the contents of the new data directory. Files that pg_upgrade has linked stay in the old one."""
    if secure_path.about(new.data) is not None:
        run("find", new.data, "-mindepth", "1", "-delete", user=POSTGRES, directory=Path("/"))


def _prepare(work: Path) -> None:
    run("install", "--directory", "--mode=0700", work, user=POSTGRES, directory=Path("/"))


def check(old: Side, new: Side, work: Path) -> list[str]:
    """Run pg_upgrade --check, also beside a running old server, and return the problems that it names."""
    done = _pg_upgrade(old, new, work, "--check")
    return [] if done.ok else problems(done, work, new)


def transfer(old: Side, new: Side, work: Path, method: str, jobs: int) -> None:
    """Run pg_upgrade with both servers stopped. Raises HostError with pg_upgrade's own words."""
    words = ["--jobs", str(max(1, jobs)), *(["--link"] if method == "link" else [])]
    done = _pg_upgrade(old, new, work, *words)
    if not done.ok:
        raise HostError(
            "pg_upgrade failed; the old cluster is unchanged",
            where=str(work),
            seen="; ".join(problems(done, work, new)),
            run="provision upgrade status",
        )


def _pg_upgrade(old: Side, new: Side, work: Path, *words: str) -> Finished:
    _prepare(work)
    places = (
        f"--old-bindir={old.programs}", f"--new-bindir={new.programs}", f"--old-datadir={old.configuration}",
        f"--new-datadir={new.configuration}", f"--old-options={OLD_OPTIONS}", f"--new-options={NEW_OPTIONS}",
        "--username=postgres",
    )  # fmt: skip
    return run(
        new.programs / "pg_upgrade", *places, *words, user=POSTGRES, directory=work, timeout=TIMEOUT_S, check=False,
        environment={"LC_ALL": "C.UTF-8", "PGCTLTIMEOUT": STOP_S, **pins.environment()},
    )  # fmt: skip


def problems(done: Finished, work: Path, new: Side) -> list[str]:
    """Read what pg_upgrade reported: its messages, and the lists and logs that it names."""
    text = done.stdout + "\n" + done.stderr
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    messages = [line for line in lines if not re.search(r"\bok$|^Performing|^-{3,}|^Checking .*\bok", line)]
    named = re.findall(r"(/[^\s\"']+\.(?:txt|log))|\"([^\"]+\.(?:txt|log))\"", text)
    for path in dict.fromkeys(Path(one or two) for one, two in named):
        place = path if path.is_absolute() else work / path
        if place.is_relative_to(new.data) or place.is_relative_to(work):
            messages += _tail(place)
    return messages[-SHOWN_LINES * 2 :] or [f"exit {done.returncode}"]


def _tail(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in secure_path.text(path).splitlines() if line.strip()]
    except OSError:
        return []
    return lines[-SHOWN_LINES:]


def program(side: Side, name: str, *words: str, **settings: str) -> Finished:
    """Run a client program of a cluster as postgres; its sessions have these settings. Raises HostError."""
    return run(
        side.programs / name, *words, user=POSTGRES, directory=Path("/"), timeout=TIMEOUT_S,
        environment={"LC_ALL": "C.UTF-8", **pins.environment(**settings)},
    )  # fmt: skip
