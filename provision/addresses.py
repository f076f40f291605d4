"""Format addresses for each target, and find the address of a service. Pure; standard library only.

An IPv6 address needs brackets before a port and in a URL, but not in libpq, SSH and pg_hba.conf. Each target has one
function; no other code joins an address and a port.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
SSH_PORT = 22
ANY_IPV4, ANY_IPV6 = "0.0.0.0", "::"  # noqa: S104 - compared, not bound
LOOPBACK_IPV4, LOOPBACK_IPV6 = "127.0.0.1", "::1"
LOCALHOST = "localhost"
LOOPBACKS = (LOOPBACK_IPV4, LOOPBACK_IPV6)
LOOPBACK_NETWORKS = ("127.0.0.1/32", "::1/128")


def parsed(text: str) -> Address | None:
    """Parse an address; None for a name, a network, or an address with brackets, port or zone."""
    try:
        return None if "%" in text else ipaddress.ip_address(text)
    except ValueError:
        return None


def canonical(text: str) -> str:
    """Write an address in its shortest form, a name in lower case."""
    found = parsed(text)
    return str(found) if found else text.lower()


def in_url(host: str) -> str:
    """Write a host for a URL (RFC 3986, section 3.2.2): an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def endpoint(host: str, port: int | str) -> str:
    """Write a host with its port, for URLs, Prometheus targets and listen addresses of exporters."""
    return f"{in_url(host)}:{port}"


def single(text: str) -> str:
    """Write an address as the network of this address alone (CIDR), for pg_hba.conf."""
    found = ipaddress.ip_address(text)
    return f"{found}/{found.max_prefixlen}"


def known_host(host: str, port: int) -> str:
    """Return the first column of a line of known_hosts (sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT")."""
    return host if port == SSH_PORT else f"[{host}]:{port}"


def listened(listen: Sequence[str], resolved: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the addresses behind a list of listen addresses: names as the host resolves them, * as both wildcards.

    A name missing in `resolved` is unchanged, except localhost, which becomes both loopback addresses.
    """
    known = {LOCALHOST: (LOOPBACK_IPV4, LOOPBACK_IPV6), "*": (ANY_IPV4, ANY_IPV6), **resolved}
    return list(dict.fromkeys(canonical(address) for each in listen for address in known.get(each, ()) or (each,)))


def reached(listen: Sequence[str], resolved: Mapping[str, Sequence[str]] | None = None) -> str:
    """Return the address at which the host itself reaches a service with these listen addresses."""
    found = listened(listen, resolved or {})
    if {ANY_IPV4, LOOPBACK_IPV4} & set(found):
        return LOOPBACK_IPV4
    return LOOPBACK_IPV6 if {ANY_IPV6, LOOPBACK_IPV6} & set(found) else found[0]


def advertised(
    listen: Sequence[str], client: str, own: Sequence[str] = (), resolved: Mapping[str, Sequence[str]] | None = None
) -> str:
    """Return the address or name that clients connect to: `client`, unless the service does not listen there.

    `own` are the host's addresses. An address that the host does not have, such as a NAT's public address, is kept,
    because nothing is known about it. A name is kept too, because certificates are checked against it.
    """
    found = listened(listen, resolved or {})
    if all((address := parsed(each)) and address.is_loopback for each in found):
        return reached(listen, resolved)
    wanted = parsed(client)
    if wanted is None or _covers(found, wanted) or str(wanted) not in map(canonical, own):
        return client
    others = [each for each in own if (address := parsed(each)) and not address.is_loopback and _covers(found, address)]
    return next((each for each in found if parsed(each) and not _unusable(each)), (others or [client])[0])


def covers(listen: Sequence[str], address: str) -> bool:
    """Return whether a service with these listen addresses, from `listened`, is reached at an IP address."""
    return _covers(listen, ipaddress.ip_address(address))


def _covers(listen: Sequence[str], address: Address) -> bool:
    return str(address) in listen or (ANY_IPV4 if address.version == 4 else ANY_IPV6) in listen


def _unusable(text: str) -> bool:
    address = ipaddress.ip_address(text)
    return address.is_loopback or address.is_unspecified
