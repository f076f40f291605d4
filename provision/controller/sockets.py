"""Ports of this machine: choose free ones, find the program that uses one, wait for a greeting. Does IO."""

import contextlib
import socket
from collections.abc import Iterable

from provision.controller.machine import run

LOCAL = "127.0.0.1"
GREETING_TIMEOUT_S = 2


def choose(inner: Iterable[int], *, fixed: bool) -> dict[int, int]:
    """Map each of a host's ports to a free port of 127.0.0.1, the same number if `fixed` and free."""
    chosen: dict[int, int] = {}
    with contextlib.ExitStack() as held:  # held until all are chosen, so that no two are equal
        for port in inner:
            listener = held.enter_context(socket.socket())
            if not (fixed and _bind(listener, port)):
                listener.bind((LOCAL, 0))
            chosen[port] = listener.getsockname()[1]
    return chosen


def is_free(port: int) -> bool:
    """Return whether a port of 127.0.0.1 is free."""
    with socket.socket() as listener:
        return _bind(listener, port)


def _bind(listener: socket.socket, port: int) -> bool:
    # Otherwise old connections of a closed port would make it look taken.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((LOCAL, port))
    except OSError:
        return False
    return True


def holder(port: int) -> str:
    """Return the program and pid listening on a port, as far as `ss` may see them."""
    try:
        lines = run(["ss", "-Hltnp", f"sport = :{port}"]).stdout.splitlines()
    except FileNotFoundError:
        return "another program"
    return "; ".join(" ".join(line.split()[3:]) for line in lines) or "another program"


def greets(address: str, port: int, greeting: bytes = b"SSH-") -> bool:
    """Return whether a server at an address sends a greeting."""
    try:
        with socket.create_connection((address, port), timeout=GREETING_TIMEOUT_S) as connection:
            return connection.recv(len(greeting)) == greeting
    except OSError:
        return False
