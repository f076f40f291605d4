"""Ports of this machine: choose free ones, name who holds one, listen for a greeting. Does IO, changes nothing."""

import contextlib
import socket
from collections.abc import Iterable

from provision.controller.machine import run

LOCAL = "127.0.0.1"
GREETING_TIMEOUT_S = 2


def choose(inner: Iterable[int], *, fixed: bool) -> dict[int, int]:
    """Return a free port of 127.0.0.1 for each of a host's ports: the same number if `fixed` and free."""
    chosen: dict[int, int] = {}
    with contextlib.ExitStack() as held:  # all at once, so that no two get the same
        for port in inner:
            listener = held.enter_context(socket.socket())
            if not (fixed and _bind(listener, port)):
                listener.bind((LOCAL, 0))
            chosen[port] = listener.getsockname()[1]
    return chosen


def is_free(port: int) -> bool:
    """Say whether nothing listens on a port of 127.0.0.1."""
    with socket.socket() as listener:
        return _bind(listener, port)


def _bind(listener: socket.socket, port: int) -> bool:
    # A port that has just been closed is free: without this its old connections would make it look taken.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((LOCAL, port))
    except OSError:
        return False
    return True


def holder(port: int) -> str:
    """Return what `ss` tells about who listens on a port: a program's name and pid where we may see them."""
    try:
        lines = run(["ss", "-Hltnp", f"sport = :{port}"]).stdout.splitlines()
    except FileNotFoundError:
        return "another program"
    return "; ".join(" ".join(line.split()[3:]) for line in lines) or "another program"


def greets(address: str, port: int, greeting: bytes = b"SSH-") -> bool:
    """Say whether a server at an address opens the conversation with a greeting."""
    try:
        with socket.create_connection((address, port), timeout=GREETING_TIMEOUT_S) as connection:
            return connection.recv(len(greeting)) == greeting
    except OSError:
        return False
