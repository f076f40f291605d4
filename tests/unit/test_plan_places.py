"""A run refuses places where a cluster could not be made or kept, locales, clocks and file systems that cannot work."""

from __future__ import annotations

from typing import Any

import pytest

from plugins.modules import host_repository
from provision.plan import neighbours, places, validate
from tests.plans import PROBE, SAMPLE, built

MAIN = "/var/lib/postgresql/17/main"
CLUSTER = {"major": "17", "name": "main", "port": "5432", "data_directory": MAIN, "version_file": "17",
           "running_pid": 812, "running_port": 5432, "includes_conf_d": True}  # fmt: skip
CONVERGED = {"ours": True, "clusters": [CLUSTER]}


def refusals(probe: dict[str, Any] | None = None, **given: Any) -> tuple[str, ...]:
    return built("prod", {**SAMPLE, **given}, probe).problems


def data(**facts: Any) -> dict[str, Any]:
    return {"data": {**PROBE["data"], "path": MAIN, **facts}}


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"mount": True},
         f"{MAIN} is a mount point, which a restore could not rename; on the host: umount {MAIN}, then mount that "
         "file system at /var/lib/postgresql or /var/lib/postgresql/17 and change its line in /etc/fstab"),
        ({"link": MAIN, "target": "/data/pg"}, f"{MAIN} is a link to /data/pg: a new cluster needs a plain "),
        ({"link": "/var/lib/postgresql", "target": "/gone"}, "/var/lib/postgresql is a link to /gone: "),
        ({"file": True},
         f"{MAIN} is a file, but a new cluster needs a directory there; on the host: mv {MAIN} {MAIN}.old"),
        ({"entries": ["backup.tar", "notes"]},
         f"{MAIN} holds backup.tar, notes but no cluster: a new cluster needs an empty directory; on the host: "
         f"mv {MAIN} {MAIN}.old"),
        ({"closed": ["/var/lib/postgresql"]},
         "the user postgres, who owns the data directory, cannot enter /var/lib/postgresql; on the host: "
         "chmod o+x /var/lib/postgresql"),
    ],
)  # fmt: skip
def test_refuses_a_place_for_a_new_cluster_and_not_an_existing_cluster_there(
    facts: dict[str, Any], expected: str
) -> None:
    (reported,) = refusals(data(**facts))
    assert reported.startswith(expected)
    assert refusals({**data(**facts), **CONVERGED}) == ()


def test_refuses_a_read_only_file_system_on_a_converged_host_too() -> None:
    for host in ({}, CONVERGED):
        (reported,) = refusals({**data(read_only=True), **host})
        assert reported.startswith(
            f"{MAIN} is on a file system that is mounted read-only; on the host: mount -o remount,rw "
            '"$(findmnt -no TARGET --target /var/lib/postgresql)"'
        )
        (reported,) = refusals({"unwritable": ["/usr", "/var"], **data(read_only=True), **host})
        assert reported.startswith("/usr, /var cannot be written: the file system is mounted read-only; on the host, ")
        assert reported.endswith('then run mount -o remount,rw "$(findmnt -no TARGET --target /usr)"')


def test_files_of_a_half_made_cluster_are_moved_aside_by_the_run() -> None:
    assert refusals({**data(entries=["base"]), "cluster_half_made": True}) == ()


def test_warns_of_a_database_in_memory() -> None:
    found = built("prod", SAMPLE, data(file_system="tmpfs"))
    assert f"{MAIN} is on a tmpfs: a reboot loses the database" in found.notices


def test_refuses_file_systems_without_space_for_packages() -> None:
    full = {"free_for_packages_mb": {"/usr": 499, "/var": 500}}
    assert refusals(full) == ("499 MB are free in /usr: the packages need 500 MB; free space",)
    assert refusals({**full, "packages": ["postgresql-17"]}) == ()


@pytest.mark.parametrize("judge", [validate.judge, validate.judge_other])
def test_refuses_a_path_and_a_clock_with_which_no_run_works(judge: Any) -> None:
    def reported(**facts: Any) -> tuple[str, ...]:
        return built("prod", SAMPLE, facts, judge=judge).problems

    (path,) = reported(hidden_programs="/usr/bin:/bin")
    assert path.startswith("root's PATH is /usr/bin:/bin, without /usr/sbin, so dpkg fails; on the host, set ")
    (late,) = reported(clock_offset_s=-4 * 365 * 86400)
    assert late.startswith("the host's clock is 1460 days behind the controller's, so certificates and package lists ")
    (early,) = reported(clock_offset_s=7200)
    assert early.startswith("the host's clock is 2 h ahead of the controller's")
    assert reported(clock_offset_s=-300) == ()


REMOTE = {"backup_repository_inventory_name": "backup1", "backup_repository_host": "192.0.2.7"}
S3 = {"backup_s3": {"bucket": "b", "endpoint": "s3.example.com", "region": "r", "key": "k", "key_secret": "s"}}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"backup_dump_directory": "dumps"}, "backup_dump_directory is 'dumps': expected an absolute path"),
        ({"backup_dump_directory": ""}, "backup_dump_directory is '': expected an absolute path"),
        ({"backup_dump_directory": "/"}, "backup_dump_directory is '/': expected an absolute path"),
        ({"backup_dump_directory": "/var/backups/"}, "backup_dump_directory is '/var/backups/', which others use"),
        ({"backup_dump_directory": "/var/lib/postgresql/17/main/dumps"}, "which others use: expected a directory of"),
        ({"backup_dump_directory": "/mnt/my dumps/"}, ""),
        ({"backup_dump_directory": "", "backup_logical": False}, ""),
        ({"backup_repository_path": "/opt/x/.."}, "which others use"),
        ({"backup_repository_path": "/opt"}, "backup_repository_path is '/opt', which others use"),
        ({"backup_repository_path": "/mnt/my backups"}, ""),
        ({"backup_repository_path": "/mnt/my backups", **REMOTE}, "expected an absolute path of letters, digits"),
        ({"backup_repository_path": "/backups/", **REMOTE}, "without a slash at its end"),
        ({"backup_repository_path": "/", **S3}, ""),
        ({"backup_repository_path": "pg", **S3}, "backup_repository_path is 'pg': expected an absolute path"),
        ({"backup_repository_path": "pg", "backup_physical": False}, ""),
    ],
)  # fmt: skip
def test_judges_the_directories_of_dumps_and_backups(given: dict[str, Any], expected: str) -> None:
    reported = refusals({}, **given)
    assert len(reported) == bool(expected), reported
    assert expected in "".join(reported)


def test_path_on_a_backup_host_is_the_one_that_its_module_takes() -> None:
    assert host_repository.NAMES["path"].pattern == places.REMOTE_PATH.pattern
    assert host_repository.NAMES["stanza"].pattern == neighbours.STANZA.pattern


GENERATE = "apt-get update && apt-get install -y locales && echo '{} UTF-8' >>/etc/locale.gen && locale-gen"


@pytest.mark.parametrize(
    ("requested", "charmap", "expected"),
    [
        ("C.UTF-8", "UTF-8", ""),
        ("C", "ANSI_X3.4-1968", ""),
        ("POSIX", "ANSI_X3.4-1968", ""),
        ("en_US.utf8", "UTF-8", ""),
        ("en_IN", "UTF-8", ""),
        ("de_DE.UTF-8", None, ""),  # provision plan asks no host
        ("de_DE.UTF-8", "",
         "postgresql_locale is de_DE.UTF-8: the host has C, C.utf8, POSIX; set one of them, or on the host: "
         + GENERATE.format("de_DE.UTF-8")),
        ("de_DE.utf8", "", GENERATE.format("de_DE.UTF-8")),
        ("de_DE", "", GENERATE.format("de_DE.UTF-8")),
        ("sr_RS.UTF-8@latin", "", GENERATE.format("sr_RS@latin")),
        ("de_DE", "ISO-8859-1",
         "postgresql_locale is de_DE, whose encoding is ISO-8859-1: databases are UTF-8; set it to de_DE.UTF-8"),
        ("german", "ISO-8859-1", "german, whose encoding is ISO-8859-1: databases are UTF-8; set it to de_DE.UTF-8"),
        ("en_US.ISO-8859-1", "", "postgresql_locale is en_US.ISO-8859-1, whose encoding is ISO-8859-1: databases are"),
        ("en_US.ISO-8859-1", None, "set it to en_US.UTF-8"),
        ("de_DEE.UTF-8", "", "and no such locale is known; did you mean de_DE.UTF-8?"),
        ("english", "", "the host has C, C.utf8, POSIX"),
        ("de DE.UTF-8", "", "postgresql_locale is 'de DE.UTF-8': expected the name of a UTF-8 locale, such as C.UTF-8"),
        ("", "", "postgresql_locale is '': expected the name of a UTF-8 locale"),
        ("de_DE.UTF-8'; reboot", "", "expected the name of a UTF-8 locale"),
    ],
)  # fmt: skip
def test_judges_the_locale_of_a_new_cluster(requested: str, charmap: str | None, expected: str) -> None:
    host = {"locales": ["C", "C.utf8", "POSIX"], "charmap": charmap}
    reported = refusals(host, postgresql_locale=requested)
    assert len(reported) == bool(expected)
    assert expected in "".join(reported)
    assert refusals({**host, **CONVERGED}, postgresql_locale=requested) == ()
