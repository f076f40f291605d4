"""Backups that are killed, cut, flipped, filled and stolen: `make test-faults`. Hosts of its own, mended each time."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator

import pytest

from tests.system.test_backup import EVIDENCE, REPOSITORY, Site, agents, evidence, moment, restore, settled, site, sql

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
    assert "the full backup was not taken" in text
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
    assert "go on with the restore that was killed" in done.stderr
    assert json.loads(done.stdout)["aside"].startswith("/var/lib/postgresql/17/main.before-")
    assert sql(site.one, "SELECT count(*) FROM bulk") == "60000"
    settled(site.one)
    refused = site.one.run("provision restore release")
    assert (refused.returncode, "--confirm prod1" in refused.stderr) == (2, True)
    assert site.one.run("provision restore release --confirm prod1").returncode == 0
    assert site.one.run("ls -d /var/lib/postgresql/17/main.before-*").stdout == ""
    sql(site.one, "DROP TABLE bulk")


def test_flipped_byte_in_the_repository_fails_verify_and_drill(site: Site) -> None:
    newest = labels(site)[-1]
    find = f"find {STANZA}/{newest} -type f -size +50k -not -name 'backup.manifest*'"
    largest = f"$({find} -printf '%s %p\\n' | sort -n | tail -1 | cut -d' ' -f2)"
    write = "dd of=$f bs=1 seek=$((s / 2)) conv=notrunc status=none"
    flip = f"f={largest}; s=$(stat -c %s $f); printf '\\377\\000\\377' | {write}"
    assert site.peer.run(flip).returncode == 0
    verified = site.one.run("provision backup verify")
    assert verified.returncode == 3, verified.stdout
    assert "the repository is damaged" in verified.stdout
    drilled = site.one.run("systemctl start provision-drill")
    assert drilled.returncode != 0
    assert evidence(site.one, "drill")["passed"] is False
    assert site.one.run("ls -d /var/lib/postgresql/provision-drill").returncode != 0


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


def test_full_repository_fails_the_backup_and_the_primary_serves(site: Site) -> None:
    mount = f"mount -t tmpfs -o size=24m,mode=0750,uid=$(id -u pgbackrest),gid=$(id -g pgbackrest) none {REPOSITORY}"
    assert (
        site.peer.run(f"{mount} && cp -a /root/kept/.ssh /root/kept/archive /root/kept/backup {REPOSITORY}/").returncode
        == 0
    )
    try:
        # Random, so that it cannot be compressed: more than the file system holds.
        sql(
            site.one,
            "CREATE TABLE bulk AS SELECT (SELECT string_agg(md5(random()::text || n), '') FROM generate_series(1, 200))"
            " FROM generate_series(1, 8000) n",
        )
        taken = site.one.run("provision backup take --type full")
        assert taken.returncode == 1
        assert "the full backup was not taken" in taken.stderr
        assert "space" in taken.stderr
        seen = site.one.run("provision backup status")
        assert seen.returncode == 3
        assert re.search(r"the repository has [\d.]+ k?M?B free and a full backup takes", seen.stdout), seen.stdout
        assert sql(site.one, "SELECT count(*) FROM bulk") == "8000"
        assert site.one.run(f"cat {EVIDENCE}/backup.json").returncode == 0
    finally:
        site.peer.run(f"umount -l {REPOSITORY}")
        sql(site.one, "DROP TABLE IF EXISTS bulk")
