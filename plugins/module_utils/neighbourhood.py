"""Network facts of a host: its addresses, resolved names, and the SSH server of its backup repository.

Reads, binds a socket to a free port for a moment, and opens one connection. Standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
from collections.abc import Iterable
from typing import Any

from .program import run

SIOCGIFADDR = 0x8915
REACH_S = 5
"""Seconds for the other host's answer; a firewall that drops packets gives none."""


def own_addresses() -> list[str]:
    """Return the host's addresses, but for loopback and link-local ones."""
    return run("hostname", "-I").stdout.split()


def own_interfaces() -> dict[str, str]:
    """Return the interface of each first IPv4 address (netdevice(7): SIOCGIFADDR)."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                answer = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                found[socket.inet_ntoa(answer[20:24])] = name
    return found


def listen(names: Iterable[str]) -> dict[str, dict[str, bool]]:
    """Resolve names and addresses as a server would, and say of each address whether a service can bind to it.

    Tested with bind() rather than against the interfaces, because net.ipv4.ip_nonlocal_bind allows other addresses.
    """
    return {name: {address: _binds(address) for address in _resolve(name)} for name in names}


def _resolve(name: str) -> list[str]:
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return list(dict.fromkeys(str(each[4][0]) for each in found))


def _binds(address: str) -> bool:
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


def ssh_server(host: str, port: int) -> dict[str, Any]:
    """Return how an SSH server answers there: its `banner`, or the `problem`. {} where no host is given."""
    if not host:
        return {}
    try:
        with socket.create_connection((host, port), REACH_S) as link:
            link.settimeout(REACH_S)
            banner = link.recv(255).decode(errors="replace").strip()
    except (OSError, UnicodeError) as error:
        return {"banner": "", "problem": getattr(error, "strerror", None) or str(error) or "no answer"}
    known = banner.startswith("SSH-")
    other = "a service other than SSH answers" if banner else "it closes the connection without an answer"
    return {"banner": banner if known else "", "problem": "" if known else other}
