"""Backups on real hosts: a repository on another host, any moment brought back, and every kind of damage noticed.

Three hosts of this file's own, for restores take them apart: prod1 with data, prod2 that is to take its place, and
peer, which keeps the repository. The order of the file is the order of their life.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import yaml

from tests.sandboxes import INSTALLED, Answer, Host, Hosts
from tests.system.playbooks import Run
from tests.system.production import Production

REPOSITORY = "/var/lib/pgbackrest"
KEYS = "/etc/ssh/provision-keys"
EVIDENCE = "/var/lib/provision"


@dataclass(frozen=True)
class Site:
    """The hosts, the run that made them, and how to use them."""

    production: Production
    second: Host
    first_run: Run
    first_findings: list[dict[str, str]]

    @property
    def one(self) -> Host:
        return self.production.database

    @property
    def peer(self) -> Host:
        return self.production.peer

    def play(self, playbook: str, *arguments: str, limit: str = "prod1") -> Run:
        return self.production.play("--limit", limit, *arguments, playbook=playbook, timeout=300)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Hosts.made(tmp_path_factory.mktemp("project"), INSTALLED) as hosts:
        production = Production.make(hosts, tmp_path_factory.mktemp("inventory"))
        # Ansible keeps port 22; the database hosts reach the backup host at a port of their own.
        ports = "printf 'Port 22\\nPort 2222\\n' > /etc/ssh/sshd_config.d/10-ports.conf; systemctl restart ssh"
        assert production.peer.run(ports).returncode == 0
        variables = {"backup_repository_port": 2222, "tls_extra_names": ["datenbank.münchen.de", "*.example.org"]}
        (production.inventory / "group_vars/all/neighbours.yml").write_text(yaml.safe_dump(variables))
        second = hosts.up("prod2", os="debian13", group="database")
        run = production.play()
        assert run.code == 0, run.output
        # At once, while the first backup runs in the background.
        doctor = production.database.run("provision doctor --json")
        settled(production.database)
        yield Site(production, second, run, json.loads(doctor.stdout)["findings"])


def settled(host: Host) -> None:
    """Wait for the backup that a run or a restore has started."""
    wait = "while systemctl is-active 'provision-backup@*' | grep -q activ; do sleep 0.2; done"
    assert host.run(f'timeout 60 sh -c "{wait}"').returncode == 0


def sql(host: Host, statement: str, port: int = 5432, database: str = "minion") -> str:
    words = f"runuser -u postgres -- psql -XAtq -v ON_ERROR_STOP=1 -p {port} -d {database}"
    answer = host.run(f"{words} <<'SQL'\n{statement}\nSQL")
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip()


def archived(host: Host, segment: str) -> None:
    """Wait until the server counts a WAL segment as archived. After three failures it pauses for 60 s."""
    reported = f"SELECT last_archived_wal >= '{segment}' FROM pg_stat_archiver"
    for _ in range(180):
        if sql(host, reported) == "t":
            return
        time.sleep(0.5)
    pytest.fail(f"{segment} was not archived within 90 s")


def agents(host: Host, port: int = 5432, database: str = "minion") -> list[str]:
    return sql(host, "SELECT name FROM agents ORDER BY name", port, database).split()


def moment(host: Host) -> str:
    """Give a moment that lies well between what was done before and what is done next."""
    time.sleep(0.5)
    now = sql(host, "SET timezone = 'UTC'; SELECT clock_timestamp()")
    time.sleep(0.5)
    return now


def awake(host: Host) -> None:
    """Let the archiver try again at once: after three failures it sleeps for a minute, or until a segment is full."""
    sql(host, "SELECT pg_create_restore_point('awake'); SELECT pg_switch_wal()", database="postgres")


def restore(host: Host, *words: str) -> Answer:
    return host.run(f"provision restore run {' '.join(words)}")


def evidence(host: Host, name: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(host.run(f"cat {EVIDENCE}/{name}.json").stdout)
    return found


def test_a_first_run_ends_without_an_alarm(site: Site) -> None:
    # Known defects of Debian 13's pgvector 0.8.0, which the inventory does not accept.
    known = {"CVE-2026-3172", "pgvector-hnsw-vacuum"}
    assert {each["seen"].partition(":")[0] for each in site.first_findings} == known
    assert site.one.run("systemctl --failed --plain --no-legend").stdout == ""


def test_host_converges_with_a_repository_elsewhere_and_a_second_run_changes_nothing(site: Site) -> None:
    again = site.play("site.yml", "--tags", "backup,tls")
    assert again.code == 0, again.output
    assert {name: row.changed for name, row in again.recap.items()} == {"prod1": 0}
    # Its free space, from the host that keeps it; other tests write to the same disk meanwhile.
    space = f"df -B1 --output=avail {REPOSITORY} | tail -1"
    before = int(site.peer.run(space).stdout)
    seen = json.loads(site.one.run("provision backup status --json").stdout)
    after = int(site.peer.run(space).stdout)
    assert min(before, after) - 2**30 < seen["repository"]["free_bytes"] < max(before, after) + 2**30
    assert seen["alarms"] == []
    assert seen["repository"]["encrypted"] is True
    shown = site.one.run("openssl x509 -in /etc/provision/tls/server.crt -noout -ext subjectAltName").stdout
    assert "DNS:datenbank.xn--mnchen-3ya.de, DNS:*.example.org" in shown
    known = site.one.run("cut -d' ' -f1 /etc/pgbackrest/ssh/known_hosts").stdout
    assert set(known.split()) == {f"[{site.peer.address}]:2222"}
    assert [row["kind"] for row in seen["sets"]] == ["full"]
    places = f"{REPOSITORY} {REPOSITORY}/archive {REPOSITORY}/backup/prod1"
    assert site.peer.run(f"stat -c '%U:%G %a' {places}").stdout.split("\n")[:3] == [
        "root:provision-repository 750", "root:provision-repository 750", "pgbackrest-prod1:pgbackrest-prod1 750",
    ]  # fmt: skip
    # The key may speak pgBackRest's own protocol and ask for the space that is left, nothing else.
    reach = f"runuser -u postgres -- ssh pgbackrest-prod1@{site.peer.address}"
    assert site.one.run(f"{reach} space").stdout.split()[0] == "Avail"
    for words in ("cat /etc/passwd", "pgbackrest version", "", "pgbackrest --cmd-ssh=/usr/bin/id info", "space; id"):
        tried = site.one.run(f"{reach} '{words}'")
        assert (tried.returncode, tried.stdout) == (1, ""), words
    # Neither the passphrase nor a clear word of the database is in the repository.
    secret = site.one.run(
        "sed -n s/repo1-cipher-pass=//p /etc/pgbackrest/conf.d/50-provision-secrets.conf"
    ).stdout.strip()
    assert len(secret) >= 20
    assert secret not in site.first_run.output
    assert site.peer.run(f"grep -rlF -e '{secret}' -e agent_stats {REPOSITORY} /etc/pgbackrest").stdout == ""


def test_run_that_could_not_reach_its_repository_or_would_part_the_stanza_is_refused(site: Site) -> None:
    keys = site.peer.run(f"cat {KEYS}/*").stdout
    assert sorted(line.split()[-1] for line in keys.splitlines()) == ["postgres@prod1", "postgres@prod2"]
    port = site.play("site.yml", "-e", "backup_repository_port=2299")
    assert port.code != 0
    assert f"no SSH server answers this host at {site.peer.address}:2299 (Connection refused)" in port.text()
    stanza = site.play("site.yml", "--tags", "backup", "-e", "backup_stanza=other")
    assert (
        "postgresql has prod1 on this host; run again with --tags backup,postgresql, or without tags" in stanza.text()
    )
    shared = site.production.play("-e", "backup_stanza=prod2")
    assert "backup_stanza is 'prod2' on prod1 and on prod2, which share a repository" in shared.text()
    assert {run.recap["prod1"].changed for run in (port, stanza, shared)} == {0}
    assert site.peer.run(f"cat {KEYS}/*").stdout == keys


@pytest.mark.faults  # tests/integration/test_cli_plan.py has the same refusal
def test_prod_without_a_repository_elsewhere_is_refused(site: Site) -> None:
    refused = site.play("site.yml", "--tags", "backup", "-e", '{"backup_repository_host": ""}')
    assert refused.code != 0
    assert "put a host into the group backup of the inventory" in refused.text()
    assert "backup_allow_local_only: true" in refused.text()


def test_playbook_takes_a_backup_and_says_what_it_took(site: Site) -> None:
    sql(site.one, "INSERT INTO agents (name) VALUES ('zero')")
    sql(
        site.one,
        "INSERT INTO memories (agent_id, content, embedding) SELECT (SELECT id FROM agents), 'memory ' || n,"
        " (SELECT array_agg(sin(n * i)) FROM generate_series(1, 1536) i)::vector FROM generate_series(0, 39) n",
    )
    taken = site.play("backup.yml", "-e", "backup_type=incr")
    assert taken.code == 0, taken.output
    assert re.search(r"incr backup \d{8}-\d{6}F_\d{8}-\d{6}I: [\d.]+ [kM]B", taken.text())
    assert re.search(r"took [\d.]+ s", taken.text())
    assert re.search(r"WAL [0-9A-F]{24} to [0-9A-F]{24}", taken.text())
    assert re.search(r"restore.yml -i \S+/prod -i \S+ --limit prod1 -e restore_set=\d{8}-\d{6}F_", taken.text())


def test_drill_restores_compares_uses_and_leaves_evidence(site: Site) -> None:
    sql(site.one, "INSERT INTO agents (name) VALUES ('after-the-backup')")
    drilled = site.play("drill.yml")
    assert drilled.code == 0, drilled.output
    found = evidence(site.one, "drill")
    assert found["passed"] is True
    tables = found["tables"]
    assert isinstance(tables, dict)
    assert tables["public.memories"] == 40
    assert found["vector_indexes"] == {"public.memories_embedding_idx": 10}
    assert isinstance(found["rto_s"], float)
    assert found["rto_s"] > 0
    assert site.one.run("ls -d /var/lib/postgresql/provision-drill").returncode != 0
    status = json.loads(site.one.run("provision backup status --record --json").stdout)
    assert status["drill"]["last_passed"]["set"] == found["set"]
    assert evidence(site.one, "backup")["verified"] == status["drill"]["last_passed"]
    verified = site.one.run("provision backup verify")
    assert verified.returncode == 0, verified.stdout


def test_drill_that_finds_other_rows_fails_names_the_table_and_is_an_alarm(site: Site) -> None:
    kept = site.one.run(f"cat {EVIDENCE}/backup-figures.json").stdout
    figures = json.loads(kept)
    newest = figures["sets"][max(figures["sets"])]
    newest["tables"]["public.memories"]["checksum"] = "1"
    site.one.run(f"cat > {EVIDENCE}/backup-figures.json <<'EOF'\n{json.dumps(figures)}\nEOF")
    try:
        failed = site.play("drill.yml")
        assert failed.code != 0
        assert "public.memories" in failed.text()
        found = evidence(site.one, "drill")
        assert "public.memories" in str(found["failure"])
        assert found["set"] == max(figures["sets"])
        assert site.one.run("systemctl is-failed provision-drill").stdout == "failed\n"
        status = site.one.run("provision backup status")
        assert status.returncode == 3
        assert "the last restore test failed: the restored data differs from the backup" in status.stdout
    finally:
        site.one.run(f"cat > {EVIDENCE}/backup-figures.json <<'EOF'\n{kept}\nEOF")


def test_what_is_older_than_its_limit_is_an_alarm(site: Site) -> None:
    path = "/etc/provision/plan.json"
    limits = """s/("(drill_)?age_limit_h"): [0-9]+/\\1: 0.00001/"""
    assert site.one.run(f"cp -a {path} /root/plan; sed -Ei '{limits}' {path}").returncode == 0
    try:
        seen = site.one.run("provision backup status")
        assert seen.returncode == 3
        assert "the newest backup is 0." in seen.stdout
        assert "the last passed restore test is 0." in seen.stdout
    finally:
        site.one.run(f"cp -a /root/plan {path}")


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("time:2026-11-23 14:05:00", "the time has no time zone"),
        ("time:2090-01-01 00:00:00+00", "in the future"),
        ("time:2020-01-01 00:00:00+00", "this target cannot be reached"),
        pytest.param("lsn:FF/0", "this target cannot be reached", marks=pytest.mark.faults),
        ("yesterday", "not a recovery target"),
    ],
)
def test_target_that_cannot_be_reached_is_refused_and_nothing_stops(site: Site, target: str, expected: str) -> None:
    begun = sql(site.one, "SELECT pg_postmaster_start_time()")
    answer = restore(site.one, "--confirm", "prod1", "--target", f"'{target}'")
    assert answer.returncode == 2
    assert expected in answer.stderr
    if "reached" in expected or "future" in expected:
        assert re.search(r"allowed: from 20\d\d-\d\d-\d\d .* \(set ", answer.stderr)
    assert sql(site.one, "SELECT pg_postmaster_start_time()") == begun


def test_restore_needs_the_host_s_name_and_delta_another_word(site: Site) -> None:
    planned = restore(site.one)
    assert planned.returncode == 3
    lines = planned.stdout.splitlines()
    assert lines[0].startswith("1. stop postgresql@17-main.service")
    start = "provision restore run --confirm prod1; or restore.yml with -e restore_confirm=prod1"
    assert lines[-1] == f"nothing was changed; to start: {start}"
    shown = site.play("restore.yml")
    assert (shown.code, shown.recap["prod1"].changed, shown.recap["prod1"].failed) == (0, 0, 0)
    assert start in shown.text()
    for words, expected in (
        (["--confirm", "prod2"], "-e restore_confirm=prod1"),
        (["--confirm", "prod1", "--delta"], "restore_confirm_delta=overwrite"),
        (["--confirm", "prod1", "--set", "20200101-000000F"], "no such set"),
    ):
        answer = restore(site.one, *words)
        assert answer.returncode == 2
        assert expected in answer.stderr
    assert sql(site.one, "SELECT 1") == "1"


@pytest.mark.parametrize(
    ("breaks", "mends", "words", "expected"),
    [
        (
            "mv /usr/share/postgresql/17/extension/vector.control /root/",
            "mv /root/vector.control /usr/share/postgresql/17/extension/",
            "",
            "the backup needs pgvector, which is not installed",
        ),
        (
            'cp -a /etc/provision/plan.json /root/; sed -i \'s/"major": 17/"major": 16/\' /etc/provision/plan.json; '
            "install -D /dev/null /usr/share/postgresql/16/extension/vector.control",
            "cp -a /root/plan.json /etc/provision/; rm -r /usr/share/postgresql/16",
            "",
            "this backup is from another major of PostgreSQL",
        ),
        (
            "mkdir /var/lib/postgresql/restored5498; touch /var/lib/postgresql/restored5498/precious",
            "rm /var/lib/postgresql/restored5498/precious && rmdir /var/lib/postgresql/restored5498",
            "--beside 5498",
            "the directory of the copy is not empty",
        ),
        pytest.param(
            "true", "true", "--beside 5432", "this port is not available for the copy", marks=pytest.mark.faults
        ),
        pytest.param("true", "true", "--stanza nowhere", "nowhere", marks=pytest.mark.faults),
    ],
    ids=["without-pgvector", "another-major", "directory-not-empty", "port-in-use", "unknown-stanza"],
)
def test_restore_that_cannot_work_is_refused_and_nothing_stops(
    site: Site, breaks: str, mends: str, words: str, expected: str
) -> None:
    begun = sql(site.one, "SELECT pg_postmaster_start_time()")
    assert site.one.run(breaks).returncode == 0
    try:
        answer = restore(site.one, "--confirm", "prod1", words)
        assert answer.returncode in (1, 2)
        assert expected in answer.stderr
    finally:
        assert site.one.run(mends).returncode == 0
    assert sql(site.one, "SELECT pg_postmaster_start_time()") == begun


def test_stanza_of_another_cluster_is_not_taken_over(site: Site) -> None:
    files = "/etc/provision/plan.json /etc/pgbackrest/pgbackrest.conf /etc/ssh/ssh_config.d/50-provision-backup.conf"
    assert site.second.run(f"cp -a --parents {files} /root/; sed -i s/prod2/prod1/ {files}").returncode == 0
    key = f"{KEYS}/pgbackrest-prod1"
    try:
        # The backup host lets it in with its own stanza alone.
        stranger = site.second.run("provision backup prepare")
        assert stranger.returncode != 0
        assert "Permission denied" in stranger.stderr
        lend = f"cp -a {key} /root/key; sed s/prod2/prod1/g {KEYS}/pgbackrest-prod2 >> {key}"
        assert site.peer.run(lend).returncode == 0
        refused = site.second.run("provision backup prepare")
        assert refused.returncode == 1
        assert "stanza prod1 holds backups of another cluster" in refused.stderr
        assert "provision backup prepare --take-over prod1" in refused.stderr
    finally:
        site.second.run("cp -a /root/etc/. /etc/")
        site.peer.run(f"test ! -e /root/key || cp -a /root/key {key}")
    assert json.loads(site.one.run("provision backup prepare --json").stdout)["changed"] is False


def test_recovery_to_a_moment_between_two_rows_brings_back_exactly_the_first(site: Site) -> None:
    sql(site.one, "INSERT INTO agents (name) VALUES ('first')")
    between = moment(site.one)
    sql(site.one, "INSERT INTO agents (name) VALUES ('second')")
    done = site.play("restore.yml", "-e", f'restore_target="time:{between}"', "-e", "restore_confirm=prod1")
    assert done.code == 0, done.output
    assert agents(site.one) == ["after-the-backup", "first", "zero"]
    assert "stop postgresql@17-main.service" in done.text()
    assert "state: promoted" in done.text()
    assert "timeline: 2" in done.text()
    settled(site.one)
    assert sql(site.one, "SELECT count(*) FROM pg_file_settings WHERE name LIKE 'recovery_target%'"
                         " OR name = 'restore_command'") == "0"  # fmt: skip


def test_dropped_table_comes_back_beside_the_original_which_serves_on(site: Site) -> None:
    sql(site.one, "INSERT INTO feedback (agent_id, rating) SELECT id, 5 FROM agents LIMIT 1")
    last = sql(site.one, "BEGIN; INSERT INTO agents (name) VALUES ('kept'); SELECT pg_current_xact_id(); COMMIT")
    sql(site.one, "DROP TABLE feedback CASCADE; DELETE FROM agents WHERE name = 'kept'")
    answer = restore(site.one, "--beside 5499 --action pause --json", "--target", f"xid:{last}")
    assert answer.returncode == 0, answer.stderr
    assert sql(site.one, "SELECT count(*), pg_is_in_recovery() FROM feedback", 5499) == "1|t"
    assert "kept" in agents(site.one, 5499)
    assert sql(site.one, "SHOW archive_mode", 5499) == "off"
    assert sql(site.one, "SELECT to_regclass('feedback') IS NULL") == "t"
    found = json.loads(answer.stdout)
    assert (found["aside"], found["state"]) == ("", "paused: read-only, at its target")
    # Paused, one looks; promoted, one writes.
    promoted = site.one.run("provision restore promote --beside 5499 --json")
    assert promoted.returncode == 0, promoted.stderr
    assert json.loads(promoted.stdout)["state"] == "promoted"
    sql(site.one, "INSERT INTO agents (name) VALUES ('of-the-copy')", 5499)
    assert "kept" in agents(site.one, 5499)
    again = site.one.run("provision restore promote --beside 5499")
    assert "no restore is waiting for promotion" in again.stderr
    gone = site.one.run("pg_dropcluster --stop 17 restored5499")
    assert gone.returncode == 0, gone.stderr


def test_lost_data_directory_comes_back_but_for_what_archive_timeout_allows(site: Site) -> None:
    last = "INSERT INTO agents (name) VALUES ('last'); SELECT pg_walfile_name(pg_current_wal_insert_lsn())"
    written = sql(site.one, last)
    # Nothing switches the segment but the timeout.
    sql(site.one, "ALTER SYSTEM SET archive_timeout = 2; SELECT pg_reload_conf()")
    archived(site.one, written)
    sql(site.one, "ALTER SYSTEM RESET archive_timeout; SELECT pg_reload_conf()")
    sql(site.one, "INSERT INTO agents (name) VALUES ('a-moment-old')")
    # Power fails, and the disk is gone.
    site.one.run("systemctl kill --signal=KILL postgresql@17-main; rm -rf /var/lib/postgresql/17/main")
    lost = site.one.run("provision backup status")
    assert lost.returncode == 3
    assert "the state of archiving is unknown" in lost.stdout
    answer = restore(site.one, "--confirm", "prod1", "--json")
    assert answer.returncode == 0, answer.stderr
    facts = json.loads(answer.stdout)
    assert agents(site.one) == ["after-the-backup", "first", "last", "zero"]
    assert (facts["replayed_to"], facts["aside"]) == (facts["archive_ends_at"], "")
    settled(site.one)


def test_another_host_takes_over_and_archives_into_a_stanza_of_its_own(site: Site) -> None:
    settled(site.second)
    # A clean stop archives everything.
    sql(site.one, "INSERT INTO agents (name) VALUES ('moved')")
    assert site.one.run("systemctl stop postgresql@17-main").returncode == 0
    # An acknowledgement of the old cluster's WAL would make pgBackRest skip WAL of the new one.
    noted = "/var/spool/pgbackrest/archive/prod2/in/noted"
    assert site.second.run(f"runuser -u postgres -- install -D /dev/null {noted}").returncode == 0
    done = site.play("restore.yml", "-e", "restore_stanza=prod1", "-e", "restore_confirm=prod2", limit="prod2")
    assert done.code == 0, done.output
    assert site.second.run(f"test -e {noted}").returncode == 1
    assert agents(site.second) == ["after-the-backup", "first", "last", "moved", "zero"]
    assert site.one.run("systemctl start postgresql@17-main").returncode == 0
    sql(site.second, "INSERT INTO agents (name) VALUES ('of-the-second'); SELECT pg_switch_wal()")
    # Without verify, which rightly misses the table that an earlier test has dropped.
    run = site.play("site.yml", "--tags", "database,backup", limit="prod2")
    assert run.code == 0, run.output
    status = site.second.run("provision backup status --json")
    assert json.loads(status.stdout)["stanza"] == "prod2"
    settled(site.second)
    timeline = int(sql(site.second, "SELECT timeline_id FROM pg_control_checkpoint()"))
    listed = {
        name: site.peer.run(f"find {REPOSITORY}/archive/{name} -name '{timeline:08X}*-*'").stdout
        for name in ("prod1", "prod2")
    }
    assert listed["prod1"] == ""
    assert "of-the-second" in agents(site.second)
    assert listed["prod2"] != ""


NEAR = "(SELECT embedding FROM memories WHERE content = 'memory 7')"
HNSW = f"SELECT content FROM memories ORDER BY embedding <=> {NEAR} LIMIT 5"
ROWS = "SELECT md5(string_agg(t::text, '|' ORDER BY id)) FROM memories t"


def test_dump_round_trip_gives_every_row_and_index_back(site: Site) -> None:
    # Sessions that stay: one holds a temporary table while the dump is taken, and the database when it is replaced.
    busy = "CREATE TEMP TABLE mine (n int); CREATE UNLOGGED TABLE IF NOT EXISTS cache (n int); SELECT pg_sleep(120)"
    site.one.run(f"runuser -u postgres -- psql -d minion -c '{busy}' >/dev/null 2>&1 & sleep 1")
    sql(site.one, "ALTER ROLE minion_app IN DATABASE minion SET work_mem = '5MB'")
    sql(site.one, "ALTER DATABASE minion SET search_path = public, extensions")
    taken = site.play("backup.yml", "-e", "backup_type=logical")
    assert taken.code == 0, taken.output
    tested = site.one.run("provision backup drill --type logical --json")
    assert tested.returncode == 0, tested.stderr
    assert json.loads(tested.stdout)["dump_test"]["passed"] is True
    wanted = sql(site.one, ROWS), sql(site.one, HNSW)
    done = site.play("restore.yml", "-e", "restore_source=dump", "-e", "restore_into=copy")
    assert done.code == 0, done.output
    assert (sql(site.one, ROWS, database="copy"), sql(site.one, HNSW, database="copy")) == wanted
    plan = sql(site.one, f"SET enable_seqscan = off; EXPLAIN {HNSW}", database="copy")
    assert "Index Scan using memories_embedding_idx" in plan
    sql(site.one, "DELETE FROM memories")
    planned = site.one.run("provision restore dump")
    assert (
        planned.returncode,
        "--confirm minion; or restore.yml with -e restore_confirm=minion" in planned.stderr,
    ) == (
        3,
        True,
    )
    assert site.one.run("provision restore dump --confirm other").returncode == 2
    restored = site.one.run("provision restore dump --confirm minion --json")
    assert restored.returncode == 0, restored.stderr
    assert sql(site.one, ROWS) == wanted[0]
    kept = json.loads(restored.stdout)["kept"]
    assert sql(site.one, "SELECT count(*) FROM memories", database=kept) == "0"
    assert sql(site.one, "SHOW provision.guard") == "on"
    assert sql(site.one, "SHOW search_path") == "public, extensions"
    sql(site.one, "ALTER DATABASE minion RESET search_path")
    kept_for_role = "SELECT count(*) FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase"
    assert sql(site.one, f"{kept_for_role} WHERE d.datname = 'minion' AND 'work_mem=5MB' = ANY (setconfig)") == "1"
    sql(site.one, f'DROP DATABASE "{kept}"; DROP DATABASE copy', database="postgres")


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        ("f=$(ls -S $d/data/*.zst | head -1); truncate -s -100 $f", "bytes instead of"),
        (
            "f=$(ls -S $d/data/*.zst | head -1); printf X | dd of=$f bs=1 seek=60 conv=notrunc status=none",
            "does not match its SHA-256",
        ),
        pytest.param(
            "printf X | dd of=$d/data/toc.dat bs=1 seek=900 conv=notrunc status=none",
            "toc.dat does not match its SHA-256",
            marks=pytest.mark.faults,
        ),
        pytest.param("rm $(ls $d/data/*.zst | head -1)", "is missing", marks=pytest.mark.faults),
        pytest.param(
            "truncate -s -20 $d/manifest.json", "manifest.json does not match its checksum", marks=pytest.mark.faults
        ),
        pytest.param("rm $d/manifest.json", "no dump minion-20990101T000000Z", marks=pytest.mark.faults),
    ],
)
def test_damaged_dump_is_refused_before_the_target_is_touched(site: Site, damage: str, expected: str) -> None:
    newest = "ls -d /var/backups/provision/minion-2* | tail -1"
    if not (source := site.one.run(newest).stdout.strip()):  # the tests of `make test-faults` alone
        assert site.one.run("systemctl start provision-backup@logical").returncode == 0
        source = site.one.run(newest).stdout.strip()
    name = "minion-20990101T000000Z"
    made = f"cp -a {source} /var/backups/provision/{name}; d=/var/backups/provision/{name}; {damage}"
    assert site.one.run(made).returncode == 0
    try:
        answer = site.one.run(f"provision restore dump --name {name} --into never")
        assert answer.returncode in (1, 2)
        assert expected in answer.stderr
        assert sql(site.one, "SELECT count(*) FROM pg_database WHERE datname LIKE 'never%'") == "0"
        if "truncate" in damage and "manifest" not in damage:
            status = site.one.run("provision backup verify")
            assert status.returncode == 3
            assert f"dump {name}: " in status.stdout
    finally:
        site.one.run(f"rm -rf /var/backups/provision/{name}")


def test_failing_archive_is_an_alarm_and_recovers_by_itself(site: Site) -> None:
    keys = f"{KEYS}/pgbackrest-prod1"
    site.peer.run(f"mv {keys} {keys}.away")
    try:
        sql(site.one, "CREATE TABLE noise (id int); DROP TABLE noise; SELECT pg_switch_wal()")
        seen = Answer([], 0)
        for _ in range(40):
            seen = site.one.run("provision backup status")
            if "archiving has failed since" in seen.stdout:
                break
            time.sleep(0.5)
        assert seen.returncode == 3
        assert "archiving has failed since" in seen.stdout
        assert "docs/the-disk-is-full-of-wal.md" in seen.stdout
        assert site.one.run("systemctl start provision-backup-watch").returncode != 0
        assert sql(site.one, "SELECT 1") == "1"
    finally:
        site.peer.run(f"mv {keys}.away {keys}")
    awake(site.one)
    for _ in range(100):
        seen = site.one.run("provision backup status")
        if "archiving has failed" not in seen.stdout:
            break
        time.sleep(0.5)
    assert "archiving has failed" not in seen.stdout
