"""The operating system: run a program, act as another user, write a file, read the clock, keep evidence.

Does IO. Standard library only, for the command on a database host imports it too. Evidence are small JSON files in
/var/lib/provision that record what a command found; they hold no secrets and every local user may read them. The group
postgres may write there, so that root follows no link in it.
"""

from __future__ import annotations

import json
import os
import pwd
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from provision import secure_path
from provision.errors import HostError, ProvisionError

POSTGRES = "postgres"
"""The operating system user that runs the server and its tools."""
EVIDENCE = Path("/var/lib/provision")
SHOWN_CHARACTERS = 300
LAST_LINES = 8


@dataclass(frozen=True)
class Finished:
    """A program that has ended. `returncode` is negative for a signal; `stdout` and `stderr` are text."""

    words: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str

    @property
    def ok(self) -> bool:
        """Whether the exit code is 0."""
        return self.returncode == 0

    @property
    def shown(self) -> str:
        """The command line, shortened for a message."""
        return " ".join(self.words)[:SHOWN_CHARACTERS]

    @property
    def last(self) -> str:
        """The last lines of the error output, or of the output where that is empty."""
        if self.returncode < 0:
            return f"killed by signal {-self.returncode}"
        lines = [line.strip() for line in (self.stderr.strip() or self.stdout).splitlines() if line.strip()]
        return "; ".join(lines[-LAST_LINES:])


def run(
    *words: str | Path,
    user: str = "",
    input: str | None = None,  # noqa: A002 - the name that subprocess.run has
    timeout: float | None = None,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
    umask: int = -1,
    detached: bool = False,
    check: bool = True,
    error: type[ProvisionError] = HostError,
) -> Finished:
    """Run a program without a shell and return its output.

    `user` runs the program, where this process is root, and without this process's terminal: into a terminal, a program
    that the user controls could type root's next command (TIOCSTI, ioctl_tty(2)). `detached` takes the terminal from a
    program of root too, which starts such programs. `environment` is added to this process's own; `umask` is inherited
    unless it is given. Raises `error` when the program exceeds `timeout` seconds or, with `check`, exits with another
    code than 0; HostError when it is not installed.
    """
    command = [str(word) for word in words]
    identity, home = _identity(user)
    settings = {**os.environ, **(environment or {}), **home}
    try:
        done = subprocess.run(  # noqa: S603 - words, never a shell
            command, input=input, capture_output=True, text=True, errors="replace", check=False, timeout=timeout,
            env=settings, cwd=directory, umask=umask, **_terminal(bool(user) or detached, input), **identity,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise error(f"{command[0]} did not end within {timeout:g} s", where=" ".join(command)[:300]) from None
    except FileNotFoundError:
        raise HostError(f"{command[0]} is not installed", where=str(directory or "")) from None
    finished = Finished(tuple(command), done.returncode, done.stdout, done.stderr)
    if check and not finished.ok:
        raise failure(finished, error)
    return finished


@contextmanager
def running(
    *words: str | Path, log: Path, directory: Path, user: str = "", stop: int = signal.SIGTERM, wait_s: float = 10
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program for the duration of a `with` block, with its output in the file `log`.

    `user` runs the program and opens the log, where this process is root. The block's end sends the signal `stop`, and
    SIGKILL if the program has not ended after `wait_s` seconds.
    """
    identity, home = _identity(user)
    with as_user(user) if user else nullcontext():
        stream = log.open("w")
    with (
        stream,
        subprocess.Popen(  # noqa: S603 - words, never a shell
            [str(word) for word in words],
            stdout=stream, stderr=stream, env={**os.environ, **home}, cwd=directory,
            **_terminal(bool(user)), **identity,
        ) as program,
    ):  # fmt: skip
        try:
            yield program
        finally:
            program.send_signal(stop)
            try:
                program.wait(wait_s)
            except subprocess.TimeoutExpired:
                program.kill()


def _terminal(without: bool, given: str | None = None) -> dict[str, Any]:
    """Return subprocess's arguments that start a program without this process's terminal, which it could also read."""
    stdin = {"stdin": subprocess.DEVNULL} if given is None else {}
    return {"start_new_session": True, **stdin} if without else {}


def _identity(user: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Return subprocess's arguments that run a program as `user`, and the environment; empty unless this is root."""
    if not user or os.geteuid() != 0:
        return {}, {}
    entry = pwd.getpwnam(user)
    groups = os.getgrouplist(user, entry.pw_gid)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": groups}, {"HOME": entry.pw_dir}


def failure(done: Finished, error: type[ProvisionError] = HostError, *, seen: str = "") -> ProvisionError:
    """Make the error of a failed program: its exit code, its command line and its last lines, or `seen`."""
    return error(
        f"{Path(done.words[0]).name} failed (exit {done.returncode})", where=done.shown, seen=seen or done.last
    )


def become(user: str = POSTGRES) -> None:
    """Become a user permanently. Raises HostError unless this process is root or that user."""
    entry = pwd.getpwnam(user)
    if os.geteuid() == entry.pw_uid:
        return
    if os.geteuid() != 0:
        raise HostError(
            f"this command runs as {user}",
            seen=f"user id {os.geteuid()}",
            allowed=f"root or {user}",
            run="sudo provision ...",
        )
    os.initgroups(user, entry.pw_gid)
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)
    os.environ["HOME"] = entry.pw_dir
    os.chdir("/")


@contextmanager
def as_user(user: str = POSTGRES) -> Iterator[None]:
    """Act as a user within a `with` block, where this process is root: peer authentication checks the client's user."""
    if os.geteuid() != 0:
        yield
        return
    entry = pwd.getpwnam(user)
    groups = os.getgroups()
    os.setgroups(os.getgrouplist(user, entry.pw_gid))
    os.setegid(entry.pw_gid)
    os.seteuid(entry.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def write(path: Path, content: str | bytes, *, mode: int | None = None, owner: tuple[int, int] | None = None) -> None:
    """Replace a file atomically and durably: readers see the old content or the new one, also after a power failure.

    `mode` and `owner` (user id, group id) default to those of the file that is replaced; a new file gets 0600 and the
    process's own ids. A symbolic link is replaced, not followed, and refused above the file where another user can
    exchange it. Raises OSError and leaves no temporary file.
    """
    path = path.absolute()
    old = secure_path.about(path)
    kept = old if old is not None and stat.S_ISREG(old.st_mode) else None
    if owner is None:
        owner = (kept.st_uid, kept.st_gid) if kept and os.geteuid() == 0 else (os.geteuid(), os.getegid())
    if mode is None:
        mode = kept.st_mode & 0o7777 if kept else 0o600
    secure_path.replace(path, content.encode() if isinstance(content, str) else content, mode, owner)


def sync(path: Path) -> None:
    """Flush a file's content, or a directory's entries, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def wait(condition: Callable[[], bool], seconds: float, pause_s: float = 0.5) -> bool:
    """Ask until it is true or the time is over; return the last answer."""
    until = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < until:
        time.sleep(pause_s)
    return found


def stamp(at: float | None = None) -> str:
    """Format Unix time, or now, in UTC: 2026-11-24T01:30:00+00:00."""
    return datetime.fromtimestamp(time.time() if at is None else at, UTC).isoformat(timespec="seconds")


def compact(at: float | None = None) -> str:
    """Format Unix time, or now, for a file name: 20261124T013000Z."""
    return datetime.fromtimestamp(time.time() if at is None else at, UTC).strftime("%Y%m%dT%H%M%SZ")


def moment(text: str) -> float:
    """Parse what `stamp` wrote into Unix time."""
    return datetime.fromisoformat(text).timestamp()


def evidence(name: str, *, of_root: bool = False) -> dict[str, Any]:
    """Read a piece of evidence. {} if it is missing or damaged, or a link.

    `of_root` reads as root only what root wrote: the group postgres can replace every file of the directory.
    """
    try:
        content, about = secure_path.read(EVIDENCE / f"{name}.json")
        found = json.loads(content)
    except (OSError, ValueError, RecursionError):  # thousands of nested lists
        return {}
    if of_root and os.geteuid() == 0 and about.st_uid != 0:
        return {}
    return found if isinstance(found, dict) else {}


def keep(name: str, facts: Mapping[str, Any]) -> bool:
    """Write a piece of evidence; False if it holds the same facts already."""
    text = json.dumps({"schema": 1, **facts}, indent=2, default=str) + "\n"
    if evidence(name) == json.loads(text):
        return False
    path, owner = EVIDENCE / f"{name}.json", (os.geteuid(), os.getegid())
    secure_path.replace(path, text.encode(), 0o644, owner, make=True)
    return True
