"""Backups that are killed, cut, flipped, filled and stolen: `make test-faults`. Hosts of its own, mended each time."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.sandboxes import Answer, Host
from tests.system.test_backup import (
    EVIDENCE,
    KEYS,
    REPOSITORY,
    Site,
    agents,
    archived,
    awake,
    evidence,
    moment,
    restore,
    settled,
    site,
    sql,
)

pytestmark = pytest.mark.faults
__all__ = ["site"]
STANZA = f"{REPOSITORY}/backup/prod1"
ARCHIVE = f"{REPOSITORY}/archive/prod1"


@pytest.fixture(autouse=True)
def mended(site: Site) -> Iterator[None]:
    """Put the whole repository back after each test, with a proved full backup on top."""
    settled(site.one)
    assert site.peer.run(f"rm -rf /root/kept; cp -a {REPOSITORY} /root/kept").returncode == 0
    yield
    site.peer.run(f"find {REPOSITORY} -mindepth 1 -delete; cp -a /root/kept/. {REPOSITORY}/")
    site.one.run("rm -rf /var/spool/pgbackrest/archive; systemctl reset-failed; systemctl start postgresql@17-main")
    awake(site.one)
    for _ in range(20):
        # WAL that was archived while the repository was another one is not in it: a new full set begins after it.
        if site.one.run("provision backup take --type full").returncode == 0:
            break
        time.sleep(0.5)
    else:
        raise AssertionError(site.one.run("provision backup status").stdout)


def labels(site: Site) -> list[str]:
    return [row["label"] for row in json.loads(site.one.run("provision backup status --json").stdout)["sets"]]


def test_killed_backup_leaves_no_set_and_the_older_one_restores(site: Site) -> None:
    sql(site.one, "CREATE TABLE bulk AS SELECT n, repeat(md5(n::text), 60) t FROM generate_series(1, 60000) n")
    before = labels(site)
    begin = "provision backup take --type full >/tmp/taken 2>&1 & echo $!"
    site.one.run(begin)
    assert site.one.run("timeout 20 sh -c 'until pgrep -f \"[b]ackup:local\"; do sleep 0.05; done'").returncode == 0
    site.one.run("pkill -9 -f '[p]gbackrest.*backup'")
    for _ in range(50):
        text = site.one.run("cat /tmp/taken").stdout
        if text:
            break
        time.sleep(0.2)
    assert "the full backup failed" in text
    assert labels(site) == before
    assert sql(site.one, "SELECT 1") == "1"
    drilled = site.one.run("provision backup drill --json")
    assert drilled.returncode == 0, drilled.stderr
    again = site.one.run("provision backup take --type incr")
    assert again.returncode == 0, again.stderr
    sql(site.one, "DROP TABLE bulk")


def test_killed_restore_cannot_be_started_by_accident_and_completes_when_run_again(site: Site) -> None:
    sql(site.one, "CREATE TABLE bulk AS SELECT n, repeat(md5(n::text), 60) t FROM generate_series(1, 60000) n")
    assert site.one.run("provision backup take --type full").returncode == 0
    site.one.run("provision restore run --confirm prod1 >/tmp/restored 2>&1 & echo $!")
    wait = "timeout 60 sh -c 'until pgrep -f \"[r]estore:local\"; do sleep 0.02; done'"
    assert site.one.run(wait).returncode == 0
    site.one.run("pkill -9 -f '[p]rovision restore'; pkill -9 -f '[p]gbackrest.*restore'")
    assert not site.one.run("ls /var/lib/postgresql/17/main/global/pg_control").stdout
    assert site.one.run("systemctl start postgresql@17-main").returncode != 0
    done = restore(site.one, "--confirm", "prod1", "--json")
    assert done.returncode == 0, done.stderr
    assert "resume the killed restore" in done.stderr
    assert json.loads(done.stdout)["aside"].startswith("/var/lib/postgresql/17/main.before-")
    assert sql(site.one, "SELECT count(*) FROM bulk") == "60000"
    settled(site.one)
    refused = site.one.run("provision restore release")
    assert (refused.returncode, "--confirm prod1" in refused.stderr) == (2, True)
    assert site.one.run("provision restore release --confirm prod1").returncode == 0
    assert site.one.run("ls -d /var/lib/postgresql/17/main.before-*").stdout == ""
    sql(site.one, "DROP TABLE bulk")


def test_restore_killed_during_replay_accepts_no_client(site: Site) -> None:
    newest = labels(site)[-1]
    sql(site.one, "CREATE TABLE bulk AS SELECT n, repeat(md5(n::text), 60) t FROM generate_series(1, 60000) n")
    sql(site.one, "INSERT INTO agents (name) VALUES ('before-the-point'); SELECT pg_create_restore_point('the point')")
    sql(site.one, "INSERT INTO agents (name) VALUES ('behind-the-point')")
    site.one.run(
        f"provision restore run --confirm prod1 --set {newest} --target 'name:the point' >/tmp/restored 2>&1 & echo $!"
    )
    replays = f"grep -q replaying {EVIDENCE}/restore.json"
    assert site.one.run(f"timeout 60 sh -c 'until {replays}; do sleep 0.02; done'").returncode == 0
    second = restore(site.one, "--confirm", "prod1")
    assert (second.returncode, "another restore is running on this host" in second.stderr) == (1, True)
    site.one.run("pkill -9 -f '[p]rovision restore'")
    # As after a reboot: systemd starts what is there. It recovers to the target and stays read-only.
    site.one.run("systemctl restart postgresql@17-main")
    assert sql(site.one, "SELECT pg_is_in_recovery()") == "t"
    for command in ("provision backup take --type incr", "provision backup take --type logical"):
        refused = site.one.run(command)
        assert refused.returncode == 1
        assert "no backup or restore test before the restore has finished" in refused.stderr
    passed = evidence(site.one, "drill").get("when")
    assert site.one.run("provision backup drill").returncode == 1
    assert evidence(site.one, "drill").get("when") == passed
    status = site.one.run("provision backup status")
    assert (status.returncode, "is not running: repeat the same command to resume it" in status.stdout) == (3, True)
    assert site.one.run("provision restore release --confirm prod1").returncode == 1
    done = restore(site.one, f"--confirm prod1 --set {newest} --target 'name:the point' --action pause --json")
    assert done.returncode == 0, done.stderr
    assert "resume the killed restore" in done.stderr
    assert "before-the-point" in agents(site.one)
    assert "behind-the-point" not in agents(site.one)
    # Killed again, when its promotion had begun: to restore over it would lose what was written since.
    site.one.run(f'sed -i \'s/"state": "paused[^"]*"/"state": "promoting"/\' {EVIDENCE}/restore.json')
    sql(site.one, "SELECT pg_promote()", database="postgres")
    sql(site.one, "INSERT INTO agents (name) VALUES ('written-since')")
    refused = restore(site.one, "--confirm", "prod1")
    assert (refused.returncode, "the server may hold new data" in refused.stderr) == (1, True)
    ended = site.one.run("provision restore promote --json")
    assert ended.returncode == 0, ended.stderr
    assert "written-since" in agents(site.one)
    assert sql(site.one, "SELECT count(*) FROM pg_file_settings WHERE name LIKE 'recovery_target%'") == "0"
    settled(site.one)
    assert site.one.run("provision restore release --confirm prod1").returncode == 0
    sql(site.one, "DROP TABLE bulk")


@pytest.mark.parametrize("kind", ["name", "lsn", "immediate"])
def test_recovery_stops_exactly_at_each_kind_of_target(site: Site, kind: str) -> None:
    sql(site.one, f"INSERT INTO agents (name) VALUES ('before-{kind}')")
    point = sql(site.one, f"SELECT pg_create_restore_point('at {kind}')")
    sql(site.one, f"INSERT INTO agents (name) VALUES ('after-{kind}')")
    target = {"name": "name:at name", "lsn": f"lsn:{point}", "immediate": "immediate"}[kind]
    # A name would begin at the oldest set, for nobody knows where it is before it is met.
    done = restore(site.one, f"--beside 5499 --set {labels(site)[-1]} --action pause --json --target '{target}'")
    assert done.returncode == 0, done.stderr
    found = agents(site.one, 5499)
    assert f"after-{kind}" not in found
    assert (f"before-{kind}" in found) == (kind != "immediate")  # which is where the last backup ended
    assert sql(site.one, "SELECT pg_get_wal_replay_pause_state()", 5499) == "paused"
    site.one.run("pg_dropcluster --stop 17 restored5499")


def test_what_a_restore_has_left_is_reached_by_its_timeline_and_by_nothing_else(site: Site) -> None:
    left = int(sql(site.one, "SELECT timeline_id FROM pg_control_checkpoint()"))
    before = moment(site.one)
    sql(site.one, "INSERT INTO agents (name) VALUES ('left-behind')")
    taken = json.loads(site.one.run("provision backup take --type incr --json").stdout)["label"]
    done = restore(site.one, "--confirm", "prod1", "--target", f"'time:{before}'", "--json")
    assert done.returncode == 0, done.stderr
    settled(site.one)
    status = site.one.run("provision backup status")
    assert status.returncode == 0, status.stdout
    assert site.one.run("provision backup drill --json").returncode == 0
    # The newest set that ended before this moment is the one that was left: it cannot lead here.
    after = moment(site.one)
    sql(site.one, "INSERT INTO agents (name) VALUES ('later')")
    chosen = json.loads(site.one.run(f"provision restore plan --json --target 'time:{after}'").stdout)
    assert chosen["set"] != taken
    back = restore(site.one, f"--beside 5499 --timeline {left} --json")
    assert back.returncode == 0, back.stderr
    assert json.loads(back.stdout)["set"] == taken
    assert "left-behind" in agents(site.one, 5499)
    assert "left-behind" not in agents(site.one)
    site.one.run("pg_dropcluster --stop 17 restored5499; provision restore release --confirm prod1")


def test_second_drill_leaves_the_first_alone_and_a_killed_one_leaves_nothing(site: Site) -> None:
    site.one.run("systemctl start --no-block provision-drill")
    wait = "timeout 30 sh -c 'until test -d /var/lib/postgresql/provision-drill/data; do sleep 0.05; done'"
    assert site.one.run(wait).returncode == 0
    refused = site.one.run("provision backup drill")
    assert (refused.returncode, "another restore test is running on this host" in refused.stderr) == (1, True)
    assert site.one.run("test -d /var/lib/postgresql/provision-drill/data").returncode == 0
    assert "last restore test" in site.one.run("provision backup status").stdout
    site.one.run("systemctl kill --signal=KILL provision-drill")
    gone = "timeout 30 sh -c 'while test -d /var/lib/postgresql/provision-drill; do sleep 0.05; done'"
    assert site.one.run(gone).returncode == 0
    killed = site.one.run("provision backup status")
    assert killed.returncode == 3
    assert "the last restore test failed: started but not finished" in killed.stdout
    # A drill that does not begin is no drill that passed.
    site.one.run("flock /var/lib/provision/drill.lock sleep 60 >/dev/null 2>&1 &")
    failed = site.play("drill.yml")
    assert (failed.code != 0, "another restore test is running on this host" in failed.text()) == (True, True)
    site.one.run("pkill -f '[s]leep 60'")


def test_delta_restore_repairs_a_damaged_directory_and_keeps_no_copy(site: Site) -> None:
    sql(site.one, "INSERT INTO agents (name) VALUES ('mended')")
    sql(site.one, "SELECT pg_switch_wal()")
    site.one.run("systemctl stop postgresql@17-main; rm -r /var/lib/postgresql/17/main/base/1 ")
    done = restore(site.one, "--confirm prod1 --delta --confirm-delta overwrite --json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["aside"] == ""
    assert "mended" in agents(site.one)
    settled(site.one)


def test_last_full_backup_never_expires(site: Site) -> None:
    # Each test of this file has taken a full one, and two are kept.
    for _ in range(2):
        assert site.one.run("provision backup take --type full").returncode == 0
    fulls = [label for label in labels(site) if label.endswith("F")]
    assert len(fulls) == 2
    expire = "runuser -u postgres -- pgbackrest --stanza=prod1 --repo1-retention-full=1 --repo1-retention-diff=1 expire"
    for _ in range(2):
        assert site.one.run(expire).returncode == 0
        assert labels(site) == fulls[-1:]
    assert site.one.run("provision backup drill").returncode == 0


def test_lost_roles_are_named_with_the_way_to_them(site: Site) -> None:
    sql(site.one, "CREATE ROLE passing; CREATE TABLE theirs (n int); ALTER TABLE theirs OWNER TO passing")
    taken = json.loads(site.one.run("provision backup take --type logical --json").stdout)["label"]
    sql(site.one, "DROP TABLE theirs; DROP ROLE passing")
    try:
        refused = site.one.run(f"provision restore dump --name {taken} --into again")
        assert refused.returncode == 1
        assert f"{taken}/roles.sql (creates the roles" in refused.stderr
        assert sql(site.one, "SELECT count(*) FROM pg_database WHERE datname = 'again'") == "0"
        site.one.run(f"runuser -u postgres -- psql -f /var/backups/provision/{taken}/roles.sql")
        done = site.one.run(f"provision restore dump --name {taken} --into again")
        assert done.returncode == 0, done.stderr
        assert sql(site.one, "SELECT count(*) FROM theirs", database="again") == "0"
    finally:
        sql(site.one, "DROP DATABASE IF EXISTS again", database="postgres")
        sql(site.one, "DROP ROLE IF EXISTS passing")


def test_tablespaces_of_a_copy_and_of_a_drill_are_their_own(site: Site) -> None:
    site.one.run("install -d -o postgres -g postgres -m 700 /var/lib/postgresql/fast")
    sql(site.one, "CREATE TABLESPACE fast LOCATION '/var/lib/postgresql/fast'")
    sql(site.one, "CREATE TABLE quick TABLESPACE fast AS SELECT 1 AS n")
    assert site.one.run("provision backup take --type full").returncode == 0
    drilled = site.one.run("provision backup drill --json")
    assert drilled.returncode == 0, drilled.stderr
    assert json.loads(drilled.stdout)["tables"]["public.quick"] == 1
    done = restore(site.one, "--beside 5499 --json")
    assert done.returncode == 0, done.stderr
    sql(site.one, "UPDATE quick SET n = 2", 5499)
    assert sql(site.one, "CHECKPOINT; SELECT n FROM quick") == "1"
    assert sql(site.one, "SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'fast'", 5499) == (
        "/var/lib/postgresql/restored5499.tablespaces/fast"
    )
    refused = restore(site.one, "--confirm", "prod1")
    assert (refused.returncode, "fast: /var/lib/postgresql/fast" in refused.stderr) == (1, True)
    assert sql(site.one, "SELECT n FROM quick") == "1"
    site.one.run("pg_dropcluster --stop 17 restored5499; rm -rf /var/lib/postgresql/restored5499.tablespaces")
    sql(site.one, "DROP TABLE quick")
    sql(site.one, "DROP TABLESPACE fast")


def test_flipped_byte_in_the_repository_fails_verify_and_drill(site: Site) -> None:
    newest = labels(site)[-1]
    find = f"find {STANZA}/{newest} -type f -size +50k -not -name 'backup.manifest*'"
    largest = f"$({find} -printf '%s %p\\n' | sort -n | tail -1 | cut -d' ' -f2)"
    write = "dd of=$f bs=1 seek=$((s / 2)) conv=notrunc status=none"
    flip = f"f={largest}; s=$(stat -c %s $f); printf '\\377\\000\\377' | {write}"
    assert site.peer.run(flip).returncode == 0
    verified = site.one.run("provision backup verify")
    assert verified.returncode == 3, verified.stdout
    assert f"the repository is damaged: backup: {newest}, checksum invalid: 1\n" in verified.stdout
    assert re.search(rf"the repository is damaged: invalid checksum '{newest}/[^']+'", verified.stdout), verified.stdout
    drilled = site.one.run("systemctl start provision-drill")
    assert drilled.returncode != 0
    assert evidence(site.one, "drill")["passed"] is False
    assert site.one.run("ls -d /var/lib/postgresql/provision-drill").returncode != 0


def test_damaged_page_of_the_server_is_named_and_pushes_no_sound_set_out(site: Site) -> None:
    sql(site.one, "CREATE TABLE torn AS SELECT n, repeat('x', 100) AS t FROM generate_series(1, 2000) n; CHECKPOINT")
    assert site.one.run("provision backup take --type diff").returncode == 0
    sound = labels(site)
    sql(site.one, "INSERT INTO torn VALUES (2001, 'behind the sound set'); CHECKPOINT")
    page = "/var/lib/postgresql/17/main/" + sql(site.one, "SELECT pg_relation_filepath('torn')")
    flip = f"printf XXXX | dd of={page} bs=1 seek=$((3 * 8192 + 5000)) conv=notrunc status=none"
    unit = "postgresql@17-main"  # stopped meanwhile: it might write the page once more
    assert site.one.run(f"systemctl stop {unit} && {flip} && systemctl start {unit}").returncode == 0
    try:
        # As many as would push out every sound one.
        for _ in range(2):
            taken = site.one.run("provision backup take --type full")
            assert taken.returncode == 1
            assert "the backup contains pages with wrong checksums" in taken.stderr
        assert set(sound) < set(labels(site))
        status = site.one.run("provision backup status")
        assert (status.returncode, f"set {labels(site)[-1]} contains damaged pages" in status.stdout) == (3, True)
        # Where a page was damaged before, it still is.
        assert site.one.run("provision backup take --type incr").returncode == 1
        # What the runbook says.
        seen = site.one.run("runuser -u postgres -- /usr/lib/postgresql/17/bin/pg_amcheck --all --install-missing")
        assert seen.returncode == 2, seen.stdout + seen.stderr
        assert "invalid page in block 3 of relation" in seen.stdout + seen.stderr
        done = restore(site.one, "--beside 5499 --json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["set"] == sound[-1]
        assert sql(site.one, "SELECT count(*) FROM torn", 5499) == "2001"
        for label in labels(site)[len(sound) :]:
            removed = site.one.run(f"runuser -u postgres -- pgbackrest --stanza=prod1 --set={label} expire")
            assert removed.returncode == 0, removed.stdout
        assert labels(site) == sound
    finally:
        site.one.run("pg_dropcluster --stop 17 restored5499")
        sql(site.one, "DROP TABLE torn; DROP EXTENSION IF EXISTS amcheck")


def test_missing_wal_segment_is_named_and_the_end_behind_it_is_refused(site: Site) -> None:
    sql(site.one, "INSERT INTO agents (name) VALUES ('before-the-gap')")
    reachable = moment(site.one)
    sql(site.one, "SELECT pg_switch_wal()")
    sql(site.one, "INSERT INTO agents (name) VALUES ('in-the-gap')")
    lost = sql(site.one, "SELECT pg_walfile_name(pg_switch_wal())")
    sql(site.one, "INSERT INTO agents (name) VALUES ('behind-the-gap')")
    sql(site.one, "SELECT pg_switch_wal()")
    wait = f"timeout 30 sh -c 'until find {ARCHIVE} -name \"{lost}*\" | grep -q .; do sleep 0.2; done'"
    assert site.peer.run(wait).returncode == 0
    time.sleep(2)
    assert site.peer.run(f"find {ARCHIVE} -name '{lost}*' -delete").returncode == 0
    status = site.one.run("provision backup status")
    assert status.returncode == 3
    assert f"WAL segment {lost} is missing from the archive" in status.stdout
    refused = restore(site.one, "--beside", "5499", "--target", "latest")
    assert refused.returncode == 2
    assert f"{lost} is missing" in refused.stderr
    assert site.one.run("provision backup drill").returncode != 0
    done = restore(site.one, "--beside", "5499", "--target", f"'time:{reachable}'")
    assert done.returncode == 0, done.stderr
    assert "before-the-gap" in agents(site.one, 5499)
    assert not {"in-the-gap", "behind-the-gap"} & set(agents(site.one, 5499))
    site.one.run("pg_dropcluster --stop 17 restored5499")


def test_damaged_wal_on_the_way_to_latest_is_not_called_success(site: Site) -> None:
    sql(site.one, "INSERT INTO agents (name) VALUES ('sound')")
    flipped = sql(site.one, "SELECT pg_walfile_name(pg_switch_wal())")
    sql(site.one, "INSERT INTO agents (name) VALUES ('unreachable')")
    last = sql(site.one, "SELECT pg_walfile_name(pg_switch_wal())")
    wait = f"timeout 30 sh -c 'until find {ARCHIVE} -name \"{last}*\" | grep -q .; do sleep 0.2; done'"
    assert site.peer.run(wait).returncode == 0
    flip = f"f=$(find {ARCHIVE} -name '{flipped}*'); printf XXXX | dd of=$f bs=1 seek=600 conv=notrunc status=none"
    assert site.peer.run(flip).returncode == 0
    verified = site.one.run("provision backup verify")
    assert verified.returncode == 3
    # A result where the damage keeps it from being unpacked, a checksum where it does not.
    named = rf"ALARM: .*: invalid (result |checksum ')17-\d/[0-9A-F]+/{flipped}-"
    assert re.search(named, verified.stdout), verified.stdout
    answer = restore(site.one, "--beside", "5499", "--target", "latest")
    assert answer.returncode == 1
    assert "recovery stopped before the end of the archive" in answer.stderr
    assert flipped in answer.stderr
    assert sql(site.one, "SELECT pg_is_in_recovery()", 5499) == "t"
    site.one.run("pg_dropcluster --stop 17 restored5499")


def test_wrong_passphrase_is_an_alarm_and_nothing_is_written(site: Site) -> None:
    secrets = "/etc/pgbackrest/conf.d/50-provision-secrets.conf"
    site.one.run(
        f"cp -a {secrets} /root/secrets; sed -i 's/^repo1-cipher-pass=.*/repo1-cipher-pass={'x' * 32}/' {secrets}"
    )
    try:
        for command in ("provision backup status", "provision backup verify"):
            seen = site.one.run(command)
            assert seen.returncode == 3, command
            assert "cannot be read" in seen.stdout, seen.stdout
        assert site.one.run("provision backup take --type full").returncode == 1
        refused = restore(site.one, "--confirm", "prod1")
        assert refused.returncode == 1
        assert sql(site.one, "SELECT 1") == "1"
    finally:
        site.one.run(f"cp -a /root/secrets {secrets}")


def test_lost_info_file_is_survived_and_both_lost_are_an_alarm(site: Site) -> None:
    site.peer.run(f"rm {STANZA}/backup.info {ARCHIVE}/archive.info")
    assert labels(site)
    assert site.one.run("provision backup drill").returncode == 0
    site.peer.run(f"rm {STANZA}/backup.info*")
    seen = site.one.run("provision backup status")
    assert seen.returncode == 3
    assert site.one.run("provision backup take --type full").returncode == 1


def test_another_cluster_cannot_archive_into_the_stanza(site: Site) -> None:
    push = (
        "cd /var/lib/postgresql/17/main && runuser -u postgres -- pgbackrest --stanza=prod1 --no-archive-async "
        "--pg1-path=/var/lib/postgresql/17/main archive-push pg_wal/$(ls pg_wal | grep -E '^[0-9A-F]{24}$' | head -1)"
    )
    before = site.peer.run(f"find {ARCHIVE} -type f | sort").stdout
    answer = site.second.run(push)
    assert answer.returncode != 0
    assert "system-id" in answer.stderr + answer.stdout
    assert site.peer.run(f"find {ARCHIVE} -type f | sort").stdout == before


def privileged(host: Host, command: str) -> Answer:
    """Run a command that a host's own root may not: it mounts."""
    words = ["podman", "exec", "--privileged", host.container.container, "sh", "-c", command]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def mounted(site: Site, size: str) -> None:
    """Give the repository a file system of its own, and what it held."""
    group = "$(getent group provision-repository | cut -d: -f3)"
    mount = f"mount -t tmpfs -o size={size},mode=0750,uid=0,gid={group} none {REPOSITORY}"
    fill = f"cp -a /root/kept/archive /root/kept/backup {REPOSITORY}/"
    done = privileged(site.peer, f"{mount} && {fill}")
    assert done.returncode == 0, done.stderr


# Random, so that it cannot be compressed: some 25 MB in the repository, as WAL and once more as a table.
BULK = """CREATE TABLE bulk AS SELECT n, (SELECT string_agg(md5(random()::text || i || n), '')
  FROM generate_series(1, 200) i) FROM generate_series(1, 8000) n"""
NO_SPACE = "[28] No space left on device"


@pytest.mark.parametrize("meets", ["wal", "files"])
def test_full_repository_fails_the_backup_and_the_primary_serves(site: Site, meets: str) -> None:
    if meets == "files":  # their WAL is there already, and they do not fit beside it
        sql(site.one, BULK)
        awake(site.one)
        lag = "SELECT last_archived_wal < pg_walfile_name(pg_current_wal_lsn() - 1) FROM pg_stat_archiver"
        wait = f"until runuser -u postgres -- psql -XAtc '{lag}' | grep -q f; do sleep 0.2; done"
        assert site.one.run(f'timeout 60 sh -c "{wait}"').returncode == 0
        site.peer.run(f"rm -rf /root/kept; cp -a {REPOSITORY} /root/kept")
    mounted(site, "$(($(du -sk /root/kept | cut -f1) + 8192))k")
    try:
        if meets == "wal":
            sql(site.one, BULK)
        end = sql(site.one, "SELECT pg_walfile_name(pg_current_wal_lsn())")
        taken = site.one.run("provision backup take --type full")
        assert taken.returncode == 1
        assert "the full backup failed" in taken.stderr
        if meets == "files":
            # A write that was cut short leaves another error's number, one that could not begin its own.
            written = rf"unable to write '{STANZA}/\d{{8}}-\d{{6}}F/(pg_data|bundle)/[^']+': "
            said = rf"{written}({re.escape(NO_SPACE)}|\[2\] No such file or directory)"
            assert re.search(said, taken.stderr), taken.stderr
        else:
            # The backup has not begun to copy: it waits for the first segment of its own to arrive.
            waited = re.search(r"WAL segment ([0-9A-F]{24}) was not archived before the 60000ms timeout", taken.stderr)
            assert waited, taken.stderr
            assert waited[1] >= end
            assert re.search(rf"; WAL is not archived: \[FileWriteError\] .*{re.escape(NO_SPACE)}", taken.stderr), (
                taken.stderr
            )
        seen = site.one.run("provision backup status --json")
        assert seen.returncode == 3
        alarms = "\n".join(json.loads(seen.stdout)["alarms"])
        assert re.search(r"the repository has [\d.]+ k?M?B free and a full backup takes", alarms), alarms
        if meets == "wal":
            assert re.search(rf"archiving has failed since .*{re.escape(NO_SPACE)}", alarms), alarms
        # What was begun is neither a set nor damage, and a segment that is half written is not one.
        assert "damaged" not in site.one.run("provision backup verify").stdout
        assert json.loads(seen.stdout)["last_wal"] <= json.loads(seen.stdout)["wal"]["last_archived"]
        assert sql(site.one, "SELECT count(*) FROM bulk") == "8000"
    finally:
        privileged(site.peer, f"umount -l {REPOSITORY}")
        sql(site.one, "DROP TABLE IF EXISTS bulk")


def test_wal_that_was_given_up_at_the_queue_s_limit_is_an_alarm_until_the_next_full_backup(site: Site) -> None:
    configuration, keys = "/etc/pgbackrest/pgbackrest.conf", f"{KEYS}/pgbackrest-prod1"
    limit = f"s/^archive-push-queue-max=.*/archive-push-queue-max=32MiB/' {configuration}"
    site.one.run(f"cp -a {configuration} /root/configuration; sed -i '{limit}")
    site.peer.run(f"mv {keys} {keys}.away")
    try:
        given = ""
        for _ in range(4):
            given = sql(
                site.one, "CREATE TABLE noise (n int); DROP TABLE noise; SELECT pg_walfile_name(pg_switch_wal())"
            )
        archived(site.one, given)
    finally:
        site.peer.run(f"mv {keys}.away {keys}")
        site.one.run(f"cp -a /root/configuration {configuration}")
    for _ in range(60):  # sshd turns away for a while whoever came with a key that it refused
        status = site.one.run("provision backup status")
        if "the repository cannot be read" not in status.stdout:
            break
        time.sleep(1)
    assert status.returncode == 3
    assert f"WAL was dropped: the server reports {given} as archived, but the repository lacks it" in status.stdout
    refused = site.one.run("provision restore plan")
    assert refused.returncode == 2
    # The switch may have written a segment behind it, which makes a gap of it.
    assert re.search(r"the latest state cannot be reached: WAL is missing|[0-9A-F]{24} is missing", refused.stderr)
    assert site.one.run("provision backup take --type full").returncode == 0
    mended = json.loads(site.one.run("provision backup status --json").stdout)
    assert mended["wal"]["last_archived"] > given
    assert [alarm for alarm in mended["alarms"] if "WAL" in alarm] == []
