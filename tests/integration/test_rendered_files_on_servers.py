"""Every major's real server starts and reloads with the files that the role places: settings, access rules, TLS.

The files are the approved ones of tests/templates, as they are rendered for the default major. What names a place or a
size of another host is replaced, by what REPLACED lists; the rest is taken as it is.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.embedded import VERSIONS, Server, cluster
from tests.until import until

GOLDEN = Path(__file__).parents[1] / "templates" / "golden"
RULES = ("pg_hba.conf", "pg_ident.conf")
REPLACED = {
    "listen_addresses": "",  # as tests.embedded starts it
    "shared_buffers": "128MB",
    "huge_pages": "off",
    "archive_command": "/bin/true",
    "ssl": "on",
    "ssl_cert_file": "server.crt",
    "ssl_key_file": "server.key",
    "ssl_ca_file": "server.crt",
    "ssl_crl_file": "",
}
CERTIFICATE = (
    "openssl",
    "req",
    "-x509",
    "-newkey",
    "ec",
    "-pkeyopt",
    "ec_paramgen_curve:P-256",
    "-nodes",
    "-days",
    "1",
)


@pytest.fixture(scope="module", params=sorted(VERSIONS))
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with cluster(request.param) as made:
        files = ("-keyout", str(made.data / "server.key"), "-out", str(made.data / "server.crt"))
        subprocess.run([*CERTIFICATE, "-subj", "/CN=localhost", *files], check=True, capture_output=True)
        owner = (made.data / "PG_VERSION").stat()
        os.chown(made.data / "server.key", owner.st_uid, owner.st_gid)
        yield made


@pytest.mark.parametrize("profile", ["dev", "prod"])
def test_server_starts_and_reloads_with_what_the_role_places(server: Server, profile: str) -> None:
    rules = {name: (GOLDEN / profile / f"postgresql-{name}").read_text() for name in RULES}
    for name, text in rules.items():
        # The test itself comes over the socket, and may be root.
        (server.data / name).write_text("local all postgres trust\n" + text if name == "pg_hba.conf" else text)
    conf = (GOLDEN / profile / "postgresql-50-provision.conf").read_text()
    server.configure(conf + "\n".join(["", *(f"{name} = '{value}'" for name, value in REPLACED.items()), ""]))
    assert server.check("ssl") == "on"
    with server.running() as session:
        judge(session, rules["pg_hba.conf"])
        loaded = session.execute("SELECT pg_conf_load_time()").fetchone()
        session.execute("SELECT pg_reload_conf()")
        assert until(lambda: session.execute("SELECT pg_conf_load_time()").fetchone() != loaded, 10)
        judge(session, rules["pg_hba.conf"])
        log = (server.socket / "log").read_text()
    assert "was not reloaded" not in log
    assert "not applied" not in log


def judge(session: psycopg.Connection[tuple[object, ...]], rules: str) -> None:
    """Compare what the server says of its files with what is in them."""
    errors = session.execute(
        "SELECT name, error FROM pg_file_settings WHERE error IS NOT NULL"
        " UNION ALL SELECT line_number::text, error FROM pg_hba_file_rules WHERE error IS NOT NULL"
    ).fetchall()
    assert errors == []
    wanted = (
        sum(1 for line in rules.splitlines() if line.strip() and not line.startswith("#")) + 1
    )  # and the test's own
    seen = session.execute("SELECT count(*), current_setting('ssl') FROM pg_hba_file_rules").fetchall()
    assert seen == [(wanted, "on")]


def test_a_broken_rule_is_seen_so_that_none_seen_means_something(server: Server) -> None:
    (server.data / "pg_hba.conf").write_text("local all postgres trust\nhost all all 127.0.0.1/33 scram-sha-256\n")
    server.configure("")
    with pytest.raises(AssertionError, match=r"could not load .*pg_hba.conf"), server.running():
        pass
