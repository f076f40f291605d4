"""Certificates and access on a prod host, from outside: refusals, renewal, and the certificate served meanwhile.

Wrong passwords, locked and expired roles are in test_access.py.
"""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from cryptography.x509 import load_pem_x509_certificate

from tests.authority import Authority, Pair
from tests.sandboxes import Host
from tests.system.playbooks import ROOT, Run, kill_commands, watched, words
from tests.system.production import Production
from tests.until import until

Session = psycopg.Connection[tuple[object, ...]]
TLS = "/etc/provision/tls"
# Without this, OpenSSL 3 refuses a version that it considers broken.
ANY_VERSION = ("-cipher", "ALL:@SECLEVEL=0")
PLAIN_STARTUP = """
import socket, struct
body = struct.pack('!I', 196608) + b'user\\0minion\\0database\\0minion\\0\\0'
link = socket.create_connection(('{address}', 5432), 10)
link.sendall(struct.pack('!I', len(body) + 4) + body)
print(link.recv(1000).decode(errors='replace'))
"""


def connect(production: Production, role: str = "minion_app", **options: object) -> Session:
    """Log in over the network with the role's password by default."""
    wanted: dict[str, object] = {
        "host": production.database.address,
        "port": 5432,
        "dbname": "minion",
        "user": role,
        "password": production.passwords.get(role, ""),
        "connect_timeout": 10,
        "sslrootcert": str(production.authority / "ca.crt"),
        "sslcert": "/nonexistent/client.crt",
        **options,
    }
    return psycopg.connect(autocommit=True, **wanted)  # type: ignore[arg-type]


def served(production: Production) -> str:
    """Give the certificate with which the server meets new clients, as PEM."""
    command = ["openssl", "s_client", "-starttls", "postgres", "-connect", f"{production.database.address}:5432"]
    said = subprocess.run(command, input="", capture_output=True, text=True, check=False).stdout
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    assert begin in said, said
    return begin + said.split(begin)[1].split(end)[0] + end


def play(production: Production, *arguments: str) -> Run:
    return production.play("--limit", "prod1", "--tags", "tls", *arguments)


def on_host(host: Host, command: str) -> str:
    done = host.run(command)
    assert done.returncode == 0, done.stderr
    return done.stdout


def place(production: Production, pair: Pair) -> None:
    """Put a certificate on the host by hand, and let the server take it."""
    for name, text in (("server.crt", pair.certificate), ("server.key", pair.key)):
        on_host(production.database, f"cat > {TLS}/{name} <<'END'\n{text}END")
    on_host(production.database, "systemctl reload 'postgresql@*'")


@pytest.fixture
def open_session(production: Production) -> Iterator[Session]:
    """A session that was there before, and is still there afterwards."""
    with connect(production) as session:
        before = session.execute("SELECT pg_backend_pid()").fetchone()
        yield session
        assert session.execute("SELECT pg_backend_pid()").fetchone() == before


@pytest.mark.parametrize("mode", ["allow", "prefer", "require", "verify-ca", "verify-full"])
def test_every_mode_that_can_encrypt_does(production: Production, mode: str) -> None:
    with connect(production, sslmode=mode) as session:
        row = session.execute("SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()").fetchone()
    assert row == (True, "TLSv1.3")


def test_login_without_tls_is_refused(production: Production) -> None:
    with pytest.raises(psycopg.OperationalError, match=r"pg_hba.conf rejects connection .* no encryption"):
        connect(production, sslmode="disable")
    script = PLAIN_STARTUP.format(address=production.database.address)
    said = on_host(production.peer, f'python3 -c "{script}"')
    assert "rejects connection" in said
    assert "no encryption" in said


def test_on_the_host_itself_tls_is_not_needed(production: Production) -> None:
    password = production.passwords["minion"]
    url = f"postgresql://minion:{password}@localhost:5432/minion?sslmode=disable"
    assert on_host(production.database, f"psql -XAtc 'SELECT current_user' '{url}'") == "minion\n"


def test_no_version_before_1_2_is_spoken(production: Production, tmp_path: Path) -> None:
    server = production.database.address
    certificate, key = Authority().issue("control").write(tmp_path, "control")
    control: list[str | Path] = [
        "openssl",
        "s_server",
        "-accept",
        "127.0.0.1:45433",
        "-cert",
        certificate,
        "-key",
        key,
        "-tls1_1",
    ]
    with subprocess.Popen([*control, *ANY_VERSION], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            time.sleep(0.5)
            accepted = shaken("-tls1_1", "-connect", "127.0.0.1:45433")
        finally:
            process.kill()
    assert "TLSv1.1" in accepted  # this client does speak it, to a server that does
    target = ("-starttls", "postgres", "-connect", f"{server}:5432")
    for version in ("-tls1", "-tls1_1"):
        assert "alert protocol version" in shaken(version, *target)
    assert "TLSv1.2" in shaken("-tls1_2", *target)


def shaken(version: str, *options: str) -> str:
    """Shake hands with one version of TLS alone, and give everything that openssl says of it."""
    command = ["openssl", "s_client", version, *ANY_VERSION, *options]
    done = subprocess.run(command, input="Q\n", capture_output=True, text=True, check=False, timeout=20)
    return done.stdout + done.stderr


def test_verify_full_refuses_another_name_and_another_authority(production: Production, tmp_path: Path) -> None:
    address = production.database.address
    with pytest.raises(psycopg.OperationalError, match="does not match host name"):
        connect(production, sslmode="verify-full", host="db.elsewhere.example", hostaddr=address)
    other = tmp_path / "other.crt"
    other.write_text(Authority("another").text)
    for mode in ("verify-ca", "verify-full"):
        with pytest.raises(psycopg.OperationalError, match="certificate verify failed"):
            connect(production, sslmode=mode, sslrootcert=str(other))
    for name in ("prod1", "localhost"):
        connect(production, sslmode="verify-full", host=name, hostaddr=address).close()


def test_a_map_admits_the_user_of_the_certificate_alone(production: Production, tmp_path: Path) -> None:
    clients = production.authority / "clients"
    assert (clients / "reporter.key").stat().st_mode & 0o777 == 0o600
    mine = {"sslcert": str(clients / "reporter.crt"), "sslkey": str(clients / "reporter.key")}
    with connect(production, "minion_readonly", dbname="template1", password="", **mine) as session:
        assert session.execute("SELECT current_user").fetchone() == ("minion_readonly",)
    with pytest.raises(psycopg.OperationalError, match="requires a valid client certificate"):
        connect(production, "minion_readonly", dbname="template1")
    stranger = Authority("another").issue(common_name="reporter", use="client").write(tmp_path, "reporter")
    paths = {"sslcert": str(stranger[0]), "sslkey": str(stranger[1])}
    with pytest.raises(psycopg.OperationalError, match=r"unknown ca|certificate verify failed"):
        connect(production, "minion_readonly", dbname="template1", **paths)
    with pytest.raises(psycopg.OperationalError, match="password"):  # the same certificate is nobody else's
        connect(production, "minion_app", password="", **mine)


def test_the_pooler_logs_in_with_its_certificate_on_this_host_alone(production: Production, tmp_path: Path) -> None:
    place = f"host=127.0.0.1 dbname=minion user=minion_pooler sslmode=verify-full sslrootcert={TLS}/ca.crt"
    mine = f"sslcert={TLS}/pooler-client.crt sslkey={TLS}/pooler-client.key"
    ask = "runuser -u postgres -- psql -XAtc 'SELECT current_user'"
    assert on_host(production.database, f"{ask} '{place} {mine}'") == "minion_pooler\n"
    assert "requires a valid client certificate" in production.database.run(f"{ask} '{place}'").stderr
    stolen = Pair(*(on_host(production.database, f"cat {TLS}/pooler-client.{end}") for end in ("crt", "key")))
    certificate, key = stolen.write(tmp_path, "stolen")
    with pytest.raises(psycopg.OperationalError, match=r"pg_hba\.conf rejects connection"):
        connect(production, "minion_pooler", sslcert=str(certificate), sslkey=str(key))


def test_files_are_where_they_were_agreed_and_keys_are_kept(production: Production) -> None:
    wanted = {
        "ca.crt": "root:root 644",
        "server.crt": "root:root 644",
        "server.key": "root:ssl-cert 640",
        "pooler-client.crt": "root:root 644",
        "pooler-client.key": "root:ssl-cert 640",
    }
    listed = on_host(production.database, f"cd {TLS} && stat -c '%n %U:%G %a' *").splitlines()
    assert dict(line.split(" ", 1) for line in listed) == wanted
    on_host(production.database, f"runuser -u postgres -- cat {TLS}/pooler-client.key")
    assert production.database.run(f"runuser -u nobody -- cat {TLS}/server.key").returncode != 0
    beside = on_host(production.peer, f"cd {TLS} && stat -c '%n %U:%G %a' *").splitlines()
    assert dict(line.split(" ", 1) for line in beside) == {name: wanted[name] for name in list(wanted)[:3]}
    check = f"openssl verify -CAfile {TLS}/ca.crt -verify_ip {production.peer.address} {TLS}/server.crt"
    assert on_host(production.peer, check).endswith("OK\n")
    assert (production.authority / "ca.key").read_text().startswith("-----BEGIN ENCRYPTED PRIVATE KEY-----")


def given(tmp_path: Path, pair: Pair, authority: str) -> list[str]:
    """Write a certificate of one's own, and give the options that ask for it."""
    certificate, key = pair.write(tmp_path, "given")
    root = tmp_path / "given-root.crt"
    root.write_text(authority)
    variables = {"certificate": certificate, "key": key, "ca": root}
    return ["-e", json.dumps({f"tls_provided_{name}": str(path) for name, path in variables.items()})]


@pytest.mark.parametrize("kind", ["expired, for others, of a stranger", "too early, with another key", "no authority"])
@pytest.mark.usefixtures("open_session")
def test_a_bad_certificate_is_refused_and_the_old_one_is_still_served(
    production: Production, tmp_path: Path, kind: str
) -> None:
    address, authority, before = production.database.address, Authority(), served(production)
    root = authority.text
    if kind.startswith("expired"):
        pair = Authority("stranger").issue("db.elsewhere.example", begins=-400, ends=-3)
        said = [
            "server.crt: expired on",
            f"valid for db.elsewhere.example, not for {address}",
            "server.crt: not issued by",
        ]
    elif kind.startswith("too early"):
        early, other = authority.issue(address, begins=2), authority.issue(address)
        pair = Pair(early.certificate, other.key)
        said = ["server.crt: not valid before", "server.crt: does not match the key"]
    else:
        pair = authority.issue(address)
        root = pair.certificate
        said = ["ca.crt: contains a certificate that is not a CA certificate"]
    run = play(production, *given(tmp_path, pair, root))
    assert run.code != 0
    assert "nothing was placed; the old certificate is still served" in run.text()
    assert [each for each in said if each not in run.text()] == []
    assert served(production) == before
    assert on_host(production.database, f"cat {TLS}/server.crt").strip() == before
    assert "PRIVATE KEY" not in run.output


def test_a_provided_key_that_other_users_can_read_is_refused(production: Production, tmp_path: Path) -> None:
    before = served(production)
    options = given(tmp_path, Authority().issue(production.database.address), Authority().text)
    (tmp_path / "given.key").chmod(0o644)
    run = play(production, *options)
    assert run.code != 0
    assert f"{tmp_path}/given.key: mode 0644 gives other users access" in run.text()
    assert served(production) == before


def test_a_provided_certificate_is_served_and_manual_damage_is_fixed(production: Production, tmp_path: Path) -> None:
    authority = Authority()
    mine = authority.issue(production.database.address)
    run = play(production, *given(tmp_path, mine, authority.text))
    assert run.code == 0, run.output
    assert served(production) == mine.certificate.strip()
    root = str(tmp_path / "given-root.crt")
    connect(production, sslmode="verify-full", sslrootcert=root).close()

    # By hand: the server itself takes no key that others may read, and serves on with what it had.
    on_host(production.database, f"chmod 644 {TLS}/server.key && chown nobody {TLS}/pooler-client.key")
    on_host(production.database, "systemctl reload 'postgresql@*'")
    connect(production, sslmode="verify-full", sslrootcert=root).close()
    doctor = production.database.run("runuser -u postgres -- provision doctor --database dbname=minion").stdout
    assert f"{TLS}/server.key: mode 0644 gives other users access to the key" in doctor
    assert f"{TLS}/pooler-client.key: owner nobody:ssl-cert; expected root:ssl-cert" in doctor

    mended = play(production, "--diff", "-vvv")
    assert mended.code == 0, mended.output
    for each in (
        "server.key: mode 0644 gives other users",
        "server.crt: not issued by",
        "pooler-client.key: owner nobody",
    ):
        assert each in mended.text()
    assert "PRIVATE KEY" not in mended.output
    connect(production, sslmode="verify-full").close()
    doctor = production.database.run("runuser -u postgres -- provision doctor --database dbname=minion").stdout
    assert "(certificate" not in doctor


@pytest.mark.usefixtures("open_session")
def test_a_certificate_is_renewed_under_load(production: Production) -> None:
    passphrase = production.secrets["tls_ca_passphrase"].encode()
    authority = Authority.of(production.authority / "ca.crt", production.authority / "ca.key", passphrase)
    address = production.database.address
    place(production, authority.again(served(production), begins=-300, ends=97))
    assert until(lambda: days_left(production) == 96, 10)
    doctor = production.database.run("runuser -u postgres -- provision doctor --database dbname=minion").stdout
    assert "server.crt: 96 days left" in doctor

    failures: list[str] = []
    logins = 0
    finished = threading.Event()

    def load() -> None:
        nonlocal logins
        while not finished.is_set():
            try:
                with connect(production, sslmode="verify-full", host="prod1", hostaddr=address) as session:
                    session.execute("SELECT count(*) FROM memories")
                logins += 1
            except psycopg.Error as error:
                failures.append(str(error))

    worker = threading.Thread(target=load)
    worker.start()
    try:
        run = play(production)
    finally:
        finished.set()
        worker.join()
    assert run.code == 0, run.output
    assert failures == []
    assert logins > 5
    assert days_left(production) == 396
    assert run.recap["prod1"].changed == 2  # placed, and taken


def days_left(production: Production) -> int:
    ends = load_pem_x509_certificate(served(production).encode()).not_valid_after_utc
    return int((ends.timestamp() - time.time()) // 86400)


def test_check_mode_on_a_fresh_host_names_every_file_and_shows_no_key(production: Production) -> None:
    on_host(production.peer, f"mv {TLS} {TLS}.aside")
    try:
        plan = production.play("--limit", "peer", "--tags", "tls", "--check", "--diff")
        assert production.peer.run(f"ls {TLS}").returncode != 0
    finally:
        on_host(production.peer, f"rm -rf {TLS} && mv {TLS}.aside {TLS}")
    assert plan.code == 0, plan.output
    for name in ("ca.crt", "server.crt", "server.key"):
        assert f"+++ after: {TLS}/{name}" in plan.output
    assert "PRIVATE KEY" not in plan.output


@pytest.mark.faults
@pytest.mark.parametrize("point", ["Issue and place certificates", "Reload services"])
def test_a_killed_run_is_completed_by_the_next_and_makes_no_second_authority(
    production: Production, point: str
) -> None:
    authority = {path.name: path.read_bytes() for path in production.authority.glob("ca.*")}
    on_host(production.database, f"rm {TLS}/server.crt")
    options = ["--vault-password-file", str(production.key), "--limit", "prod1", "--tags", "tls"]
    command = words("site.yml", production.database.inventory, *options, environment=production.inventory)
    with subprocess.Popen(command, cwd=ROOT, env=watched(), stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        assert any(f"TASK [tls : {point}" in line for line in killed.stdout)
        killed.kill()
    kill_commands(production.database)
    mended = play(production)
    assert mended.code == 0, mended.output
    assert play(production).recap["prod1"].changed == 0
    assert {path.name: path.read_bytes() for path in production.authority.glob("ca.*")} == authority
    connect(production, sslmode="verify-full").close()


def test_an_access_rule_that_the_server_cannot_read_is_found_before_it_is_asked_to(production: Production) -> None:
    rules = on_host(production.database, "cat /etc/postgresql/*/main/pg_hba.conf")
    broken = [{"users": ["/a{300}"], "from": ["samenet"], "method": "scram-sha-256"}]
    wanted = json.dumps({"postgresql_extra_rules": broken})
    run = production.play("--limit", "prod1", "--tags", "postgresql", "-e", wanted)
    assert run.code != 0
    assert "invalid regular expression" in run.text()
    assert on_host(production.database, "cat /etc/postgresql/*/main/pg_hba.conf") == rules
    connect(production).close()
    errors = "SELECT count(*) FROM pg_hba_file_rules WHERE error IS NOT NULL"
    assert on_host(production.database, f'runuser -u postgres -- psql -XAtc "{errors}"') == "0\n"


def test_doctor_has_no_finding_about_certificates_and_rules(production: Production) -> None:
    said = production.database.run("runuser -u postgres -- provision doctor --database dbname=minion --json").stdout
    seen = {each["id"] for each in json.loads(said)["findings"]}
    assert seen & {"certificate", "certificate-age", "tls", "tls-version", "hba-plain", "hba-everywhere"} == set()
    assert seen & {"hba-methods", "hba-superuser", "hba-errors"} == set()
