"""What the probe finds on the network, asked of this machine: addresses to listen on, and an SSH server elsewhere."""

from __future__ import annotations

import socket
import threading

import pytest

from plugins.module_utils import neighbourhood


def test_addresses_are_those_that_a_service_can_bind_to() -> None:
    found = neighbourhood.listen(["127.0.0.1", "127.0.0.9", "203.0.113.7", "localhost", "no-such-name.invalid"])
    assert found["127.0.0.1"] == {"127.0.0.1": True}
    assert found["127.0.0.9"] == {"127.0.0.9": True}  # all of 127.0.0.0/8 is the loopback
    assert found["203.0.113.7"] == {"203.0.113.7": False}  # reserved for documentation (RFC 5737)
    assert any(found["localhost"].values())
    assert found["no-such-name.invalid"] == {}


@pytest.mark.parametrize(
    ("greeting", "expected"),
    [
        (b"SSH-2.0-OpenSSH_10.0p2 Debian-7\r\n", {"banner": "SSH-2.0-OpenSSH_10.0p2 Debian-7", "problem": ""}),
        (b"220 mail.example.com ESMTP\r\n", {"banner": "", "problem": "a service other than SSH answers"}),
        (b"", {"banner": "", "problem": "it closes the connection without an answer"}),
    ],
)
def test_ssh_server_is_distinguished_from_other_services(greeting: bytes, expected: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            link, _ = server.accept()
            with link:
                link.sendall(greeting)

        thread = threading.Thread(target=answer)
        thread.start()
        assert neighbourhood.ssh_server("127.0.0.1", server.getsockname()[1]) == expected
        thread.join()


def test_closed_port_and_unknown_name_are_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert neighbourhood.ssh_server("127.0.0.1", port) == {"banner": "", "problem": "Connection refused"}
    assert neighbourhood.ssh_server("no-such-name.invalid", 22)["problem"]
    assert neighbourhood.ssh_server("", 22) == {}
