"""Reload the services that serve another certificate than the one in place, and see them serve it.

Each service is asked on every run, because an interrupted run may have placed a certificate without a reload. Reads
/etc/provision/plan.json and the certificate, connects to the services, and runs systemctl. Open sessions go on.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import struct
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from provision import addresses, secure_path
from provision.errors import HostError
from provision.plan.schema import Plan
from provision.system import run

SSL_REQUEST = struct.pack("!ii", 8, 80877103)
"""PostgreSQL's request for TLS (protocol, section "SSLRequest"); the answer is S or N."""
NO_CHECK_TIME = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME: an expired certificate of our authority is still one of ours."""
TIMEOUT_S = 10
WAIT_S = 10
POLL_S = 0.2
PROC = Path("/proc/net")
LISTEN = "0A"
"""State of a listening socket (include/net/tcp_states.h, TCP_LISTEN)."""


@dataclass(frozen=True)
class Endpoint:
    """A service that speaks PostgreSQL: its systemd unit, and its address on this host; "" if it does not listen."""

    unit: str
    address: str
    port: int


def endpoints(plan: Plan) -> list[Endpoint]:
    """Return the services of a host that serve its certificate."""
    server, pooler = plan.server, plan.pooler
    ports = [(server.unit, serving_port(Path(server.data_directory), server.port))] if not plan.pooler_alone else []
    ports += [("pgbouncer.service", pooler.port)] if pooler.enabled else []
    return [Endpoint(unit, listening(port), port) for unit, port in ports]


def listening(port: int) -> str:
    """Return an address at which this host reaches the current listener of a port; "" if there is none.

    Read from the kernel, because addresses of the plan wait for a restart, and the loopback need not be among them.
    """
    found = []
    for name in ("tcp", "tcp6"):
        with suppress(OSError):  # no tcp6 where IPv6 is off
            rows = [line.split() for line in (PROC / name).read_text().splitlines()[1:]]
            found += [
                _address(row[1]) for row in rows if row[3] == LISTEN and int(row[1].rpartition(":")[2], 16) == port
            ]
    return addresses.reached(found) if found else ""


def _address(column: str) -> str:
    """Read an address of /proc/net/tcp or tcp6: 32-bit words in the host's byte order."""
    digits = column.partition(":")[0]
    words = [bytes.fromhex(digits[at : at + 8]) for at in range(0, len(digits), 8)]
    packed = b"".join(word[::-1] if sys.byteorder == "little" else word for word in words)
    return str(ipaddress.ip_address(packed))


def serving_port(data: Path, otherwise: int) -> int:
    """Return the port where the server listens now; a new port in the plan waits for a restart."""
    try:
        return int(secure_path.text(data / "postmaster.pid").splitlines()[3])
    except (OSError, IndexError, ValueError):
        return otherwise


def serve(plan: Plan) -> list[str]:
    """Reload every service that serves another certificate; give the units that were reloaded.

    Without systemd there are no units to ask, nor the program systemctl in a minimal container. Raises HostError where
    a service still serves another certificate of our authority after the reload.
    """
    if not plan.tls.enabled or not plan.host.systemd:
        return []
    placed = Path(plan.tls.certificate("server").certificate)
    return converge(endpoints(plan), placed, Path(plan.tls.ca), active=_active, reload=_reload)


def converge(
    services: Sequence[Endpoint],
    certificate: Path,
    authority: Path,
    *,
    active: Callable[[str], bool],
    reload: Callable[[str], None],
) -> list[str]:
    """Do it for these services, with this way to ask for and to reload a unit.

    Left alone: a unit that is not active, and a service that listens on no address or without TLS. Not an error: a
    service that serves a certificate of another authority after the reload. The role that configures either comes later
    in the run. Raises HostError for a service that does not answer where it listens.
    """
    placed = _first(certificate)
    reloaded = []
    for each in services:
        if not each.address or not active(each.unit) or served(each) in (None, placed):
            continue
        reload(each.unit)
        deadline = time.monotonic() + WAIT_S
        while served(each) != placed and time.monotonic() < deadline:
            time.sleep(POLL_S)
        if served(each) == placed:
            reloaded.append(each.unit)
        elif served(each, authority):
            raise HostError(
                f"{each.unit} was reloaded and still serves another certificate",
                where=addresses.endpoint(each.address, each.port),
                allowed=str(certificate),
                run=f"journalctl -u {each.unit} -n 50",
            )
    return reloaded


def served(service: Endpoint, authority: Path | None = None) -> bytes | None:
    """Return the certificate (DER) that a service serves; None without TLS, or where the authority did not issue it.

    Raises HostError where no connection is made.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if authority:
        context.load_verify_locations(authority)
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags = ssl.VerifyFlags(context.verify_flags | NO_CHECK_TIME)
    try:
        link = socket.create_connection((service.address, service.port), TIMEOUT_S)
    except OSError as error:
        raise HostError(
            f"{service.unit} does not answer, so its certificate cannot be checked",
            where=addresses.endpoint(service.address, service.port),
            seen=str(error),
            run=f"journalctl -u {service.unit} -n 50",
        ) from None
    try:
        with link:
            link.sendall(SSL_REQUEST)
            if link.recv(1) != b"S":
                return None
            with context.wrap_socket(link) as tls:
                return tls.getpeercert(binary_form=True)
    except OSError:  # closed, or a failed handshake
        return None


def _first(path: Path) -> bytes:
    try:
        text = path.read_text()
        begin, end = text.index("-----BEGIN CERTIFICATE-----"), text.index("-----END CERTIFICATE-----")
        return ssl.PEM_cert_to_DER_cert(text[begin:end] + "-----END CERTIFICATE-----\n")
    except (OSError, ValueError) as error:
        raise HostError("cannot read the certificate in place", where=str(path), seen=str(error)) from None


def _active(unit: str) -> bool:
    return run("systemctl", "is-active", "--quiet", unit, check=False).ok


def _reload(unit: str) -> None:
    done = run("systemctl", "reload", unit, check=False)
    if not done.ok:
        raise HostError(f"cannot reload {unit}", seen=done.last, run=f"journalctl -u {unit} -n 50")
