"""Parsing of PostgreSQL's log: complete messages, by kind and time."""

from __future__ import annotations

import gzip
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from provision.errors import HostError, UsageError
from provision.host import logs

NOW = datetime(2026, 11, 24, 14, 0, tzinfo=UTC)
LOG = """\
a line that belongs to nobody
2026-11-24 13:00:00.000 UTC [10] LOG:  starting PostgreSQL 17.6
2026-11-24 13:25:28.100 UTC [11] minion@minion/app name 10.0.0.7 LOG:  duration: 1102.875 ms  statement: SELECT 1,
\t  2
2026-11-24 13:25:29.000 UTC [12] minion@minion/psql [local] ERROR:  relation "LOG:  x" does not exist at character 15
2026-11-24 13:25:29.000 UTC [12] minion@minion/psql [local] STATEMENT:  SELECT * FROM x
2026-11-24 13:26:00.000 UTC [13] app@minion/w [local] LOG:  process 13 still waiting for ShareLock on transaction 8
2026-11-24 13:26:00.000 UTC [13] app@minion/w 10.0.0.7 DETAIL:  Process holding the lock: 14. Wait queue: 13.
2026-11-24 13:27:00.000 UTC [13] app@minion/w 10.0.0.7 ERROR:  deadlock detected
2026-11-24 13:28:00.000 UTC [15] app@minion/w 10.0.0.7 LOG:  duration: 3.1 ms  plan:
\tQuery Text: SELECT 2
2026-11-24 13:29:00.000 UTC [16] minion@minion/psql [local] FATAL:  too many connections for role "minion"
2026-11-24 13:30:00.000 UTC [17] LOG:  checkpoint complete: wrote 3 buffers; write=0.2 s
"""


def found() -> list[logs.Entry]:
    return list(logs.entries(LOG.splitlines(keepends=True)))


def test_messages_keep_their_details() -> None:
    entries = found()
    assert [each.pid for each in entries] == [10, 11, 12, 13, 13, 15, 16, 17]
    assert entries[1].lines == ["duration: 1102.875 ms  statement: SELECT 1,", "  2"]
    assert entries[1].who == "minion@minion/app name 10.0.0.7"
    assert entries[2].lines == ['relation "LOG:  x" does not exist at character 15', "STATEMENT: SELECT * FROM x"]
    assert entries[3].lines[1] == "DETAIL: Process holding the lock: 14. Wait queue: 13."


def test_each_message_has_its_kinds() -> None:
    assert [sorted(each.kinds) for each in found()] == [
        [], ["slow"], ["errors"], ["locks"], ["errors", "locks"], ["slow"], ["errors"], [],
    ]  # fmt: skip
    assert [each.duration_ms for each in found()][:3] == [0.0, 1102.875, 0.0]


def test_timestamps_are_in_the_zone_of_the_log() -> None:
    assert found()[0].at == datetime(2026, 11, 24, 13, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90s", NOW - timedelta(seconds=90)),
        ("30m", NOW - timedelta(minutes=30)),
        ("2h", NOW - timedelta(hours=2)),
        (" 7d ", NOW - timedelta(days=7)),
        ("2026-11-24 13:05+00:00", datetime(2026, 11, 24, 13, 5, tzinfo=UTC)),
    ],
)
def test_since_accepts_ages_and_times(text: str, expected: datetime) -> None:
    assert logs.since(text, NOW) == expected


@pytest.mark.parametrize("text", ["", "bla", "h", "10", "1w", "-5m", "2026-13-40"])
def test_since_refuses_anything_else(text: str) -> None:
    with pytest.raises(UsageError, match="invalid time"):
        logs.since(text, NOW)


def test_compressed_logs_are_read_and_old_ones_skipped(tmp_path: Path) -> None:
    (tmp_path / "postgresql-17-main.log").write_text(LOG)
    packed = tmp_path / "postgresql-17-main.log.1.gz"
    packed.write_bytes(gzip.compress(LOG.replace("13:25", "12:25").encode()))
    old = tmp_path / "postgresql-17-main.log.2.gz"
    old.write_bytes(b"not even gzip")
    (tmp_path / "postgresql-16-main.log").write_text(LOG)
    for path, age in ((packed, 3600), (old, 3 * 86400)):
        at = NOW.timestamp() - age
        os.utime(path, (at, at))
    paths = logs.files(17, NOW - timedelta(days=1), tmp_path)
    assert [path.name for path in paths] == ["postgresql-17-main.log.1.gz", "postgresql-17-main.log"]
    slow = [each.at for each in logs.read(paths, NOW - timedelta(days=1), UTC) if each.duration_ms > 1000]
    assert [at.hour for at in slow] == [12, 13]


def test_missing_log_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="no log found"):
        logs.files(17, NOW, tmp_path)


def line(at: str, zone: str) -> list[str]:
    return [f"{at} {zone} [10] LOG:  checkpoint starting: time"]


@pytest.mark.parametrize(
    ("zone", "at", "shown", "utc"),
    [
        ("Asia/Kolkata", "2026-11-24 18:30:00.000", "IST", "2026-11-24 13:00"),
        ("Asia/Jerusalem", "2026-11-24 15:00:00.000", "IST", "2026-11-24 13:00"),
        ("Europe/Dublin", "2026-07-24 14:00:00.000", "IST", "2026-07-24 13:00"),
        ("America/St_Johns", "2026-11-24 09:30:00.000", "NST", "2026-11-24 13:00"),
        ("America/Sao_Paulo", "2026-11-24 10:00:00.000", "-03", "2026-11-24 13:00"),
        ("UTC", "2026-11-24 13:00:00.000", "UTC", "2026-11-24 13:00"),
        # The hour that a clock repeats: its abbreviation tells which of the two it is.
        ("Europe/Berlin", "2026-10-25 02:30:00.000", "CEST", "2026-10-25 00:30"),
        ("Europe/Berlin", "2026-10-25 02:30:00.000", "CET", "2026-10-25 01:30"),
        ("America/New_York", "2026-11-01 01:30:00.000", "EDT", "2026-11-01 05:30"),
        ("America/New_York", "2026-11-01 01:30:00.000", "EST", "2026-11-01 06:30"),
        # Lines from before log_timezone was changed.
        ("Asia/Kolkata", "2026-11-24 13:00:00.000", "UTC", "2026-11-24 13:00"),
        ("UTC", "2026-11-24 18:45:00.000", "+0545", "2026-11-24 13:00"),
    ],
)
def test_timestamps_are_read_in_log_timezone(zone: str, at: str, shown: str, utc: str) -> None:
    (entry,) = logs.entries(line(at, shown), ZoneInfo(zone))
    assert f"{entry.at.astimezone(UTC):%Y-%m-%d %H:%M}" == utc


def test_the_last_file_that_sets_log_timezone_counts(tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    main, own = tmp_path / "postgresql.conf", tmp_path / "conf.d/50-provision.conf"
    main.write_text("# log_timezone = 'Asia/Tokyo'\nlog_timezone = 'Etc/UTC'\n")
    assert str(logs.zone(tmp_path, tmp_path)) == "Etc/UTC"
    own.write_text("# (user) a reason\nlog_timezone = 'Asia/Kolkata'\n")
    assert str(logs.zone(tmp_path, tmp_path)) == "Asia/Kolkata"
    (tmp_path / "postgresql.auto.conf").write_text("Log_TimeZone = 'America/St_Johns'\n")
    assert str(logs.zone(tmp_path, tmp_path)) == "America/St_Johns"


def test_without_log_timezone_the_host_s_own_zone_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LOCALTIME", Path("/usr/share/zoneinfo/Asia/Kathmandu"))
    (entry,) = logs.entries(line("2026-11-24 18:45:00.000", "+0545"), logs.zone(tmp_path, tmp_path))
    assert entry.at.astimezone(UTC).hour == 13
