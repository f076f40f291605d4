"""The database host against the backup host, on the shared production hosts.

The attacker is root of the database host: it holds the SSH key, the passphrase, and a client that lies about its verbs.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from plugins.modules.host_repository import REFUSED
from tests.sandboxes import Host
from tests.system.production import Production
from tests.unit.test_repository_keys import OLD

REPOSITORY = "/var/lib/pgbackrest"
KEYS = "/etc/ssh/provision-keys"
OTHER = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + "C" * 43
LIAR = r"""#!/bin/sh
# A client of pgBackRest that sends every command under a verb and a stanza that its key allows.
for last do :; done
words=$(echo "$last" | sed "s/repo-[a-z]*:remote/archive-push:remote/; s/--process=/--stanza=prod1 --process=/")
exec ssh -o LogLevel=error USER@HOST "$words"
"""


def ssh(production: Production, words: str) -> tuple[int, str]:
    place = f"pgbackrest-prod1@{production.peer.address}"
    done = production.database.run(f"runuser -u postgres -- ssh -nT {place} '{words}' 2>&1")
    return done.returncode, done.stdout.strip()


@pytest.fixture(scope="module")
def liar(production: Production) -> Iterator[str]:
    """The command line of such a client, without encryption, and a stanza of another host on the backup host."""
    text = LIAR.replace("USER", "pgbackrest-prod1").replace("HOST", production.peer.address)
    made = f"cat > /usr/local/bin/liar <<'EOF'\n{text}EOF\nchmod 755 /usr/local/bin/liar; echo planted > /tmp/planted"
    assert production.database.run(made).returncode == 0
    other = (
        "useradd --system --user-group --groups provision-repository --home-dir / --password '*' pgbackrest-other"
        f" && cd {REPOSITORY} && install -d -m 750 -o pgbackrest-other -g pgbackrest-other archive/other backup/other"
        " && cd archive/other && echo theirs > file && chown pgbackrest-other: file && chmod 640 file"
    )
    assert production.peer.run(other).returncode == 0
    options = "--cmd-ssh=/usr/local/bin/liar --repo1-cipher-type=none --log-level-console=error"
    yield f"runuser -u postgres -- pgbackrest {options}"
    production.database.run("rm /usr/local/bin/liar /tmp/planted")
    production.peer.run(f"cd {REPOSITORY} && rm -rf archive/other backup/other; userdel pgbackrest-other")


def test_key_of_a_database_host_opens_no_shell(production: Production) -> None:
    assert ssh(production, "space")[1].split()[0] == "Avail"
    for words, reason in (
        ("id", "id"), ("", "a shell"), ("sh -c id", "sh"), ("space; id", "space;"), ("pgbackrest version", "version"),
        ("pgbackrest --stanza=prod1 repo-put:remote", "repo-put"),
        ("pgbackrest --stanza=prod1 --cmd-ssh=/usr/bin/id info:remote", "--cmd-ssh=/usr/bin/id"),
        ("pgbackrest --stanza=other archive-push:remote", "archive-push for stanza other"),
    ):  # fmt: skip
        assert ssh(production, words) == (1, f"refused: {reason}"), words
    place = f"pgbackrest-prod1@{production.peer.address}"
    for words, reason in (
        ("-W 127.0.0.1:22", "prohibited"), ("-o ExitOnForwardFailure=yes -N -R 9999:127.0.0.1:22", "forwarding failed"),
    ):  # fmt: skip
        tried = production.database.run(f"timeout 5 runuser -u postgres -- ssh -nT {words} {place} 2>&1")
        assert tried.returncode not in (0, 124), words
        assert reason in tried.stdout, words
    # The old account, and the other one's, have no key of this host.
    # The host's SSH configuration knows host and key for its own account alone.
    options = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -i /etc/pgbackrest/ssh/id_ed25519"
    for user in ("pgbackrest", "root"):
        tried = production.database.run(
            f"runuser -u postgres -- ssh -nT -o BatchMode=yes {options} {user}@{production.peer.address} space 2>&1"
        )
        assert "Permission denied" in tried.stdout, user


def said(production: Production, command: str) -> str:
    """Return the output of a lying command. Waits while the host's own archiving holds the lock (exit code 50)."""
    once = f"said=$({command} 2>&1); [ $? -eq 50 ] || break; sleep 0.5"
    return production.database.run(f'for _ in $(seq 60); do {once}; done; printf %s "$said"').stdout


def test_client_that_lies_about_its_verb_reaches_its_own_stanza_alone(production: Production, liar: str) -> None:
    def put(path: str) -> str:
        return said(production, f"{liar} repo-put {path} < /tmp/planted")

    files = f"find {REPOSITORY} {KEYS} /etc/ssh -type f ! -path '*/prod1/*' | sort | xargs cksum"
    before = production.peer.run(files).stdout
    assert len(before.splitlines()) > 5
    for path in (
        ".ssh/authorized_keys",
        "archive/other/new",
        "archive/other/file",
        "backup/other/backup.info",
        "new",
        "archive/new",
    ):
        assert "Permission denied" in put(path), path
    read = said(production, f"{liar} repo-get archive/other/file")
    assert "Permission denied" in read
    assert "theirs" not in read
    assert "Permission denied" in said(production, f"{liar} repo-ls archive/other")
    assert production.peer.run(files).stdout == before
    # What it can do, and docs/security.md says so: write and remove in its own stanza.
    assert put("archive/prod1/own") == ""
    assert production.peer.run(f"cd {REPOSITORY}/archive/prod1 && cat own && rm own").stdout == "planted\n"


def test_restore_of_another_stanza_is_granted_by_the_operator_to_read(production: Production, liar: str) -> None:
    get = f"{liar} repo-get archive/other/file"
    # It stops at the plan, for that stanza has no backup; the right to read is given before.
    run = production.play("-e", "restore_stanza=other", "-e", "restore_confirm=prod1", playbook="restore.yml")
    assert run.code != 0
    assert said(production, get) == "theirs"
    assert "Permission denied" in said(production, f"{liar} repo-put archive/other/file < /tmp/planted")
    run = production.play("--tags", "backup")
    assert (run.code, run.recap["prod1"].changed) == (0, 1), run.output
    assert "Permission denied" in said(production, get)


def owners(peer: Host) -> str:
    return peer.run(f"cd {REPOSITORY} && stat -c '%n %U:%G %a' . archive backup archive/prod1 backup/prod1").stdout


@pytest.mark.faults
def test_backup_host_of_an_earlier_version_is_moved_in_place(production: Production) -> None:
    peer, user = production.peer, "pgbackrest-prod1"
    now = owners(peer)
    assert now == (
        ". root:provision-repository 750\narchive root:provision-repository 750\nbackup root:provision-repository 750\n"
        f"archive/prod1 {user}:{user} 750\nbackup/prod1 {user}:{user} 750\n"
    )
    sums = f"cd {REPOSITORY} && find archive/prod1 backup/prod1 -type f | sort | xargs cksum"
    sets, line = peer.run(sums).stdout, peer.run(f"cat {KEYS}/{user}").stdout.strip()
    key = " ".join(line.split()[-3:-1])
    mine = OLD.replace(OLD.split("restrict ")[1], f"{key} postgres@prod1")
    other = OLD.replace(OLD.split("restrict ")[1], f"{OTHER} postgres@db9")
    planted = OTHER.replace("C", "D")
    # As version 0.3.0 left it: one account, whose home is the repository.
    account = "--system --user-group --home-dir /var/lib/pgbackrest --no-create-home --shell /bin/sh pgbackrest"
    old = f"""
        set -e
        id pgbackrest >/dev/null 2>&1 || useradd {account}
        userdel {user}
        rm -rf {KEYS} /etc/ssh/sshd_config.d/50-provision-repository.conf
        cd {REPOSITORY}
        mkdir -m 700 .ssh
        printf %s '{_quoted(other, mine, planted)}' > .ssh/authorized_keys
        echo 'ssh-rsa AAAA second' > .ssh/authorized_keys2
        ln -s /etc/shadow archive/prod1/planted
        chown -hR pgbackrest:pgbackrest .
        chmod 750 .
    """
    made = peer.run(old)
    assert made.returncode == 0, made.stderr
    run = production.play("--tags", "backup")
    assert run.code == 0, run.output
    assert "had 2 lines that no run wrote" in run.text()
    assert peer.run(f"cd {REPOSITORY} && rm archive/prod1/planted; stat -c '%U %a' /etc/shadow").stdout == "root 640\n"
    assert owners(peer) == now
    assert set(sets.splitlines()) <= set(peer.run(sums).stdout.splitlines())
    assert peer.run(f"cat {KEYS}/{user}").stdout.strip() == line
    assert peer.run(f"cat {KEYS}/pgbackrest").stdout == f"{other}\n"  # works until the run of its host
    assert planted in peer.run(f"cat {REFUSED}").stdout
    assert peer.run(f"ls -d {REPOSITORY}/.ssh").returncode != 0
    assert "ok" in production.database.run("runuser -u postgres -- pgbackrest --stanza=prod1 check && echo ok").stdout
    assert production.database.run("provision backup status").returncode == 0
    again = production.play("--tags", "backup")
    assert {name: row.changed for name, row in again.recap.items()} == {"prod1": 0, "peer": 0}
    peer.run(f"rm {KEYS}/pgbackrest {REFUSED}; userdel pgbackrest")


def _quoted(*lines: str) -> str:
    return "".join(f"{each}\n" for each in lines).replace("'", "'\\''")
