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

from tests.sandboxes import Answer, Host, Hosts
from tests.system.playbooks import Run
from tests.system.production import Production

REPOSITORY = "/var/lib/pgbackrest"
EVIDENCE = "/var/lib/provision"


@dataclass(frozen=True)
class Site:
    """The hosts, the run that made them, and how to use them."""

    production: Production
    second: Host
    first_run: Run

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
    with Hosts.made(tmp_path_factory.mktemp("project")) as hosts:
        production = Production.make(hosts, tmp_path_factory.mktemp("inventory"))
        second = hosts.up("prod2", os="debian13", group="database")
        run = production.play()
        assert run.code == 0, run.output
        settled(production.database)
        yield Site(production, second, run)


def settled(host: Host) -> None:
    """Wait for the backup that a run or a restore has started."""
    wait = "while systemctl is-active 'provision-backup@*' | grep -q activ; do sleep 0.2; done"
    assert host.run(f'timeout 60 sh -c "{wait}"').returncode == 0


def sql(host: Host, statement: str, port: int = 5432, database: str = "minion") -> str:
    words = f"runuser -u postgres -- psql -XAtq -v ON_ERROR_STOP=1 -p {port} -d {database}"
    answer = host.run(f"{words} <<'SQL'\n{statement}\nSQL")
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip()


def agents(host: Host, port: int = 5432, database: str = "minion") -> list[str]:
    return sql(host, "SELECT name FROM agents ORDER BY name", port, database).split()


def moment(host: Host) -> str:
    """Give a moment that lies well between what was done before and what is done next."""
    time.sleep(0.5)
    now = sql(host, "SET timezone = 'UTC'; SELECT clock_timestamp()")
    time.sleep(0.5)
    return now


def restore(host: Host, *words: str) -> Answer:
    return host.run(f"provision restore run {' '.join(words)}")


def evidence(host: Host, name: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(host.run(f"cat {EVIDENCE}/{name}.json").stdout)
    return found


def test_hosts_converge_with_a_repository_elsewhere_and_a_second_run_changes_nothing(site: Site) -> None:
    again = site.production.play()
    assert again.code == 0, again.output
    assert {name: row.changed for name, row in again.recap.items()} == {"prod1": 0, "prod2": 0, "peer": 0}
    seen = json.loads(site.one.run("provision backup status --json").stdout)
    assert seen["alarms"] == []
    assert seen["repository"]["encrypted"] is True
    assert [row["kind"] for row in seen["sets"]] == ["full"]
    assert site.peer.run(f"stat -c '%U %a' {REPOSITORY}").stdout == "pgbackrest 750\n"
    # The key may run pgbackrest and nothing else.
    tried = site.one.run(f"runuser -u postgres -- ssh pgbackrest@{site.peer.address} cat /etc/passwd")
    assert "root:" not in tried.stdout
    # Neither the passphrase nor a clear word of the database is in the repository.
    secret = site.one.run(
        "sed -n s/repo1-cipher-pass=//p /etc/pgbackrest/conf.d/50-provision-secrets.conf"
    ).stdout.strip()
    assert len(secret) >= 20
    assert secret not in site.first_run.output
    assert site.peer.run(f"grep -rlF -e '{secret}' -e agent_stats {REPOSITORY} /etc/pgbackrest").stdout == ""


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
    assert re.search(r"incr backup \d{8}-\d{6}F_\d{8}-\d{6}I: [\d.]+ MB in [\d.]+ s", taken.text())
    assert re.search(r"WAL [0-9A-F]{24} to [0-9A-F]{24}", taken.text())
    assert re.search(r"restore.yml -i INVENTORY --limit prod1 -e restore_set=\d{8}-\d{6}F_", taken.text())


def test_drill_restores_compares_uses_and_leaves_evidence(site: Site) -> None:
    sql(site.one, "INSERT INTO agents (name) VALUES ('after-the-backup')")
    drilled = site.play("drill.yml")
    assert drilled.code == 0, drilled.output
    found = evidence(site.one, "drill")
    assert found["passed"] is True
    tables = found["tables"]
    assert isinstance(tables, dict)
    assert tables["public.memories"] == 40
    assert found["vector_indexes"] == {"memories_embedding_idx": 10}
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
        failed = site.one.run("systemctl start provision-drill")
        assert failed.returncode != 0
        assert "public.memories" in str(evidence(site.one, "drill")["failure"])
        assert site.one.run("systemctl is-failed provision-drill").stdout == "failed\n"
        status = site.one.run("provision backup status")
        assert status.returncode == 3
        assert "the last drill failed: what was restored is not what was backed up" in status.stdout
    finally:
        site.one.run(f"cat > {EVIDENCE}/backup-figures.json <<'EOF'\n{kept}\nEOF")


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("time:2026-11-23 14:05:00", "this moment has no time zone"),
        ("time:2090-01-01 00:00:00+00", "in the future"),
        ("time:2020-01-01 00:00:00+00", "this target cannot be reached"),
        ("lsn:FF/0", "this target cannot be reached"),
        ("yesterday", "this is no recovery target"),
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
    for words, expected in (
        ([], "-e restore_confirm=prod1"),
        (["--confirm", "prod2"], "-e restore_confirm=prod1"),
        (["--confirm", "prod1", "--delta"], "restore_confirm_delta=overwrite"),
        (["--confirm", "prod1", "--set", "20200101-000000F"], "there is no such set"),
    ):
        answer = restore(site.one, *words)
        assert answer.returncode == 2
        assert expected in answer.stderr
    assert sql(site.one, "SELECT 1") == "1"


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
    assert sql(site.one, "SELECT count(*) FROM pg_file_settings WHERE name LIKE 'recovery_target%'") == "0"


def test_dropped_table_comes_back_beside_the_original_which_serves_on(site: Site) -> None:
    sql(site.one, "INSERT INTO feedback (agent_id, rating) SELECT id, 5 FROM agents LIMIT 1")
    before = moment(site.one)
    sql(site.one, "DROP TABLE feedback CASCADE")
    answer = restore(site.one, "--beside", "5499", "--target", f"'time:{before}'", "--json")
    assert answer.returncode == 0, answer.stderr
    assert sql(site.one, "SELECT count(*) FROM feedback", 5499) == "1"
    assert sql(site.one, "SHOW archive_mode", 5499) == "off"
    assert sql(site.one, "SELECT to_regclass('feedback') IS NULL") == "t"
    assert json.loads(answer.stdout)["aside"] == ""
    gone = site.one.run("pg_dropcluster --stop 17 restored5499")
    assert gone.returncode == 0, gone.stderr


def test_lost_data_directory_comes_back_to_the_last_archived_row(site: Site) -> None:
    sql(site.one, "INSERT INTO agents (name) VALUES ('last')")
    site.one.run("systemctl stop postgresql@17-main")
    assert site.one.run("rm -rf /var/lib/postgresql/17/main").returncode == 0
    answer = restore(site.one, "--confirm", "prod1", "--json")
    assert answer.returncode == 0, answer.stderr
    facts = json.loads(answer.stdout)
    assert agents(site.one) == ["after-the-backup", "first", "last", "zero"]
    assert (facts["replayed_to"], facts["aside"]) == (facts["archive_ends_at"], "")
    settled(site.one)


def test_another_host_takes_over_and_archives_into_a_stanza_of_its_own(site: Site) -> None:
    settled(site.second)
    done = site.play("restore.yml", "-e", "restore_stanza=prod1", "-e", "restore_confirm=prod2", limit="prod2")
    assert done.code == 0, done.output
    assert agents(site.second) == ["after-the-backup", "first", "last", "zero"]
    sql(site.second, "INSERT INTO agents (name) VALUES ('of-the-second'); SELECT pg_switch_wal()")
    run = site.play("site.yml", "--tags", "backup", "-e", "postgresql_restart_allowed=true", limit="prod2")
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
    taken = site.play("backup.yml", "-e", "backup_type=logical")
    assert taken.code == 0, taken.output
    wanted = sql(site.one, ROWS), sql(site.one, HNSW)
    done = site.play("restore.yml", "-e", "restore_source=dump", "-e", "restore_into=copy")
    assert done.code == 0, done.output
    assert (sql(site.one, ROWS, database="copy"), sql(site.one, HNSW, database="copy")) == wanted
    plan = sql(site.one, f"SET enable_seqscan = off; EXPLAIN {HNSW}", database="copy")
    assert "Index Scan using memories_embedding_idx" in plan
    sql(site.one, "DELETE FROM memories")
    refused = site.one.run("provision restore dump")
    assert (refused.returncode, "-e restore_confirm=minion" in refused.stderr) == (2, True)
    restored = site.one.run("provision restore dump --confirm minion --json")
    assert restored.returncode == 0, restored.stderr
    assert sql(site.one, ROWS) == wanted[0]
    kept = json.loads(restored.stdout)["kept"]
    assert sql(site.one, "SELECT count(*) FROM memories", database=kept) == "0"
    assert sql(site.one, "SHOW provision.profile") == "prod"
    sql(site.one, f'DROP DATABASE "{kept}"; DROP DATABASE copy', database="postgres")


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        ("f=$(ls -S $d/data/*.zst | head -1); truncate -s -100 $f", "were written"),
        (
            "f=$(ls -S $d/data/*.zst | head -1); printf X | dd of=$f bs=1 seek=60 conv=notrunc status=none",
            "another SHA-256",
        ),
        ("printf X | dd of=$d/data/toc.dat bs=1 seek=900 conv=notrunc status=none", "toc.dat has another SHA-256"),
        ("rm $(ls $d/data/*.zst | head -1)", "is missing"),
        ("truncate -s -20 $d/manifest.json", "manifest.json is not what was written"),
        ("rm $d/manifest.json", "there is no dump"),
    ],
)
def test_damaged_dump_is_refused_before_the_target_is_touched(site: Site, damage: str, expected: str) -> None:
    names = json.loads(site.one.run("provision backup status --json").stdout)["dumps"]
    source = f"/var/backups/provision/{names[-1]['name']}"
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


def test_failing_archive_is_an_alarm_and_mends_itself(site: Site) -> None:
    keys = f"{REPOSITORY}/.ssh/authorized_keys"
    site.peer.run(f"mv {keys} {keys}.away")
    try:
        sql(site.one, "CREATE TABLE noise (id int); DROP TABLE noise; SELECT pg_switch_wal()")
        seen = Answer([], 0)
        for _ in range(40):
            seen = site.one.run("provision backup status")
            if "archiving fails since" in seen.stdout:
                break
            time.sleep(0.5)
        assert seen.returncode == 3
        assert "archiving fails since" in seen.stdout
        assert "docs/the-disk-is-full-of-wal.md" in seen.stdout
        assert site.one.run("systemctl start provision-backup-watch").returncode != 0
        assert sql(site.one, "SELECT 1") == "1"
    finally:
        site.peer.run(f"mv {keys}.away {keys}")
    sql(site.one, "SELECT pg_switch_wal()")
    for _ in range(100):
        seen = site.one.run("provision backup status")
        if "archiving fails" not in seen.stdout:
            break
        time.sleep(0.5)
    assert "archiving fails" not in seen.stdout
