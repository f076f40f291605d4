"""Servers of every major load the prod profile's certificates on a reload, and refuse bad ones."""

from __future__ import annotations

import os
import re
import shutil
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from provision.errors import HostError
from provision.host import tls
from tests.authority import Authority, Pair
from tests.clusters import free_port
from tests.embedded import MAJORS, Server, cluster
from tests.until import until

Session = psycopg.Connection[tuple[object, ...]]
GOLDEN = Path(__file__).parents[1] / "templates" / "golden" / "prod"
PLACE = "/etc/provision/tls"
# The superuser's door of the test: it runs as root, which is not the system user postgres.
DOOR = "local all postgres trust\n"


@pytest.fixture(scope="module", params=MAJORS)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with cluster(request.param) as made:
        yield made


def place(server: Server, pair: Pair, authority: Authority, mode: int = 0o600) -> None:
    """Write the files where the rendered settings expect them, below the test's own folder."""
    folder = server.socket / "tls"
    folder.mkdir(exist_ok=True)
    for name, text in (("server.crt", pair.certificate), ("server.key", pair.key), ("ca.crt", authority.text)):
        path = folder / name
        path.write_text(text)
        path.chmod(mode if name.endswith("key") else 0o644)
        if os.geteuid() == 0:
            shutil.chown(path, "postgres", "postgres")


def configure(server: Server) -> None:
    """Configure it as prod renders access: the settings of TLS, and the rules."""
    conf = (GOLDEN / "postgresql-50-provision.conf").read_text().replace(PLACE, str(server.socket / "tls"))
    server.configure("\n".join(re.findall(r"(?m)^(?:ssl|password_encryption).*", conf)) + "\n")
    (server.data / "pg_hba.conf").write_text(DOOR + (GOLDEN / "postgresql-pg_hba.conf").read_text())
    (server.data / "pg_ident.conf").write_text((GOLDEN / "postgresql-pg_ident.conf").read_text())


def ask(session: Session, query: str) -> list[tuple[object, ...]]:
    return session.execute(query.encode()).fetchall()


def test_a_reload_takes_a_good_certificate_and_keeps_the_old_one_for_a_bad(server: Server, tmp_path: Path) -> None:
    authority = Authority()
    root = tmp_path / "ca.crt"
    root.write_text(authority.text)
    first, second = (authority.issue("localhost") for _ in range(2))
    place(server, first, authority)
    configure(server)
    port = free_port()

    def log_in() -> Session:
        where = f"host=localhost hostaddr=127.0.0.1 port={port} dbname=postgres user=somebody password=right"
        return psycopg.connect(f"{where} sslmode=verify-full sslrootcert={root}")

    with server.running(port) as session:
        session.execute("CREATE ROLE somebody LOGIN PASSWORD 'right'")
        session.execute("CREATE ROLE minion_pooler LOGIN PASSWORD 'right'")
        with log_in() as before:
            place(server, Pair(second.certificate, first.key), authority)
            session.execute("SELECT pg_reload_conf()")
            refusals = ("could not be loaded", "not match", "mismatch")
            assert until(lambda: any(each in log(server) for each in refusals), 10)
            log_in().close()
            place(server, second, authority, mode=0o644)
            session.execute("SELECT pg_reload_conf()")
            assert until(lambda: "has group or world access" in log(server), 10)  # the server's own words
            log_in().close()
            place(server, Authority("another").issue("localhost"), authority)
            session.execute("SELECT pg_reload_conf()")
            assert until(lambda: refused(log_in, "certificate verify failed"), 10)
            assert ask(before, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()") == [(True,)]
        mine = authority.issue(common_name="minion_pooler", use="client").write(tmp_path, "pooler")
        place(server, second, authority)
        session.execute("SELECT pg_reload_conf()")
        assert until(lambda: not refused(log_in, "certificate verify failed"), 10)
        pooler = f"host=127.0.0.1 port={port} dbname=postgres user=minion_pooler password=right"
        psycopg.connect(f"{pooler} sslcert={mine[0]} sslkey={mine[1]}").close()
        for without in ("sslmode=disable", "sslmode=require sslcert=/nonexistent/client.crt"):
            with pytest.raises(psycopg.OperationalError, match=r"rejects connection|valid client certificate"):
                psycopg.connect(f"{pooler} {without}")


def agreed(port: int, ciphers: str) -> str:
    """Return the TLS 1.2 suite that a server on this port agrees to, "" for none."""
    command = ["openssl", "s_client", "-starttls", "postgres", "-connect", f"127.0.0.1:{port}", "-tls1_2", "-cipher"]
    done = subprocess.run([*command, f"{ciphers}:@SECLEVEL=0"], input="", capture_output=True, text=True, check=False)
    found = re.search(r"^ *Cipher *: (\S+)", done.stdout, re.M)
    return found[1] if found and found[1] != "0000" else ""


def test_only_suites_with_forward_secrecy_and_aead_are_agreed(server: Server) -> None:
    authority = Authority()
    place(server, authority.issue("localhost"), authority)
    configure(server)
    port = free_port()
    with server.running(port):
        for weak in ("CAMELLIA", "AES128-SHA256:AES256-SHA", "ECDHE+AES+SHA256:ECDHE+AES+SHA384:ECDHE+AES+SHA1",
                     "DHE", "AESGCM+kRSA", "ECDHE+AESCCM"):  # fmt: skip
            assert agreed(port, weak) == ""
        for strong in ("ECDHE+AESGCM", "ECDHE+CHACHA20"):
            assert agreed(port, strong).startswith("ECDHE-")


@pytest.mark.parametrize(("address", "reached"), [("::1", "::1"), ("*", "127.0.0.1"), ("127.0.0.2", "127.0.0.2")])
def test_services_that_serve_another_certificate_are_reloaded(
    server: Server, address: str, reached: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "WAIT_S", 1)
    authority, stranger, port = Authority(), Authority("a stranger"), free_port()
    first, second, third = (authority.issue("localhost") for _ in range(3))
    place(server, first, authority)
    configure(server)
    folder = server.socket / "tls"
    service = tls.Endpoint("postgresql@0-main.service", reached, port)
    reloads: list[str] = []

    def serve(active: bool = True, certificate: Path = folder / "server.crt") -> list[str]:
        def reload(unit: str) -> None:
            reloads.append(unit)
            session.execute("SELECT pg_reload_conf()")

        root = certificate.with_name("ca.crt")
        return tls.converge([service], certificate, root, active=lambda _: active, reload=reload)

    with server.running(port, address) as session:
        assert tls.serving_port(server.data, 1) == port
        assert tls.listening(port) == reached  # whatever the plan says
        assert serve() == []  # it serves the one in place
        place(server, second, authority)
        assert serve(active=False) == []
        assert tls.served(service) == der(first)
        assert serve() == [service.unit]
        assert tls.served(service) == der(second)
        # The server cannot load it: the certificate of our authority that it goes on serving is the old one.
        place(server, Pair(third.certificate, second.key), authority)
        with pytest.raises(HostError, match="was reloaded and still serves another certificate") as failed:
            serve()
        assert failed.value.run == f"journalctl -u {service.unit} -n 50"
        # Files that the server has not been configured for yet are no error: what it serves is another authority's.
        (tmp_path / "server.crt").write_text(stranger.issue("localhost").certificate)
        (tmp_path / "ca.crt").write_text(stranger.text)
        assert serve(certificate=tmp_path / "server.crt") == []
        assert reloads == [service.unit] * 3
        session.execute("ALTER SYSTEM SET ssl = off")
        session.execute("SELECT pg_reload_conf()")
        assert until(lambda: tls.served(service) is None, 10)
        assert serve() == []
        session.execute("ALTER SYSTEM RESET ssl")
        assert len(reloads) == 3
    assert tls.listening(port) == ""  # stopped
    with pytest.raises(HostError, match="does not answer, so its certificate cannot be checked") as failed:
        tls.served(service)
    assert failed.value.where == f"{f'[{reached}]' if ':' in reached else reached}:{port}"
    assert tls.serving_port(server.data, 1) == 1


def der(pair: Pair) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pair.certificate)


def refused(log_in: Callable[[], Session], words: str) -> bool:
    try:
        log_in().close()
    except psycopg.OperationalError as error:
        return words in str(error)
    return False


def log(server: Server) -> str:
    return (server.socket / "log").read_text(errors="replace")
