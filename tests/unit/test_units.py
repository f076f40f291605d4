"""What to do with a systemd unit, decided from what `systemctl show` prints; who listens on a port of this machine."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from plugins.module_utils import listeners, units
from plugins.module_utils.units import Seen, Unit

# systemctl show with TZ=UTC of systemd 252 (Debian 12): a running service, a timer, and a unit that is not there.
SHOWN = """\
MainPID=815
ControlGroup=/system.slice/prometheus-node-exporter.service
Names=prometheus-node-exporter.service
LoadState=loaded
ActiveState=active
UnitFileState=enabled
NeedDaemonReload=no
ActiveEnterTimestamp=Sat 2026-11-28 09:17:38 UTC

Names=logrotate.timer
LoadState=loaded
ActiveState=inactive
SubState=dead
UnitFileState=disabled
NeedDaemonReload=yes
ActiveEnterTimestamp=

MainPID=0
ControlGroup=
Names=none.service
LoadState=not-found
ActiveState=inactive
UnitFileState=
NeedDaemonReload=no
ActiveEnterTimestamp=n/a
"""
STARTED = 1795857458  # 2026-11-28 09:17:38 UTC
RUNS = Seen("loaded", "active", "enabled", STARTED, False, 815, "/system.slice/x.service")
RESTS = Seen("loaded", "inactive", "disabled", 0, False, 0, "")
FAILED = Seen("loaded", "failed", "enabled", 1, False, 0, "")
ABSENT = Seen("not-found", "inactive", "", 0, False, 0, "")
STUCK = Seen("loaded", "active", "enabled", STARTED, False, 0, "", "has no next elapse time")


def test_reads_what_systemd_says_of_each_unit() -> None:
    assert units.parse(SHOWN) == {
        "prometheus-node-exporter.service": Seen(
            "loaded", "active", "enabled", STARTED, False, 815, "/system.slice/prometheus-node-exporter.service"
        ),
        "logrotate.timer": Seen("loaded", "inactive", "disabled", 0, True, 0, ""),
        "none.service": Seen("not-found", "inactive", "", 0, False, 0, ""),
    }


@pytest.mark.parametrize(
    ("name", "load", "sub", "expected"),
    [
        ("x.timer", "loaded", "elapsed", "has no next elapse time"),
        ("x.timer", "bad-setting", "waiting", "cannot be loaded (bad-setting)"),
        ("x.timer", "loaded", "waiting", ""),
        ("x.service", "bad-setting", "running", ""),
    ],
)
def test_reads_that_a_timer_will_not_elapse(name: str, load: str, sub: str, expected: str) -> None:
    seen = units.parse(f"Names={name}\nLoadState={load}\nActiveState=active\nSubState={sub}\n")
    assert seen[name].fault == expected


def test_refuses_to_end_with_a_timer_that_will_not_elapse() -> None:
    units.require_elapsing([Unit("x.timer"), Unit("y.timer", "stopped")], {"x.timer": RUNS, "y.timer": STUCK})
    with pytest.raises(units.UnitError, match=r"^x.timer has no next elapse time: see systemctl cat x.timer"):
        units.require_elapsing([Unit("x.timer")], {"x.timer": STUCK})


def test_a_unit_is_known_by_each_of_its_names() -> None:
    seen = units.parse("Names=dbus.service dbus-broker.service\nLoadState=loaded\nActiveState=active\n")
    assert seen["dbus.service"] == seen["dbus-broker.service"]


@pytest.mark.parametrize(
    ("unit", "seen", "newest", "expected"),
    [
        pytest.param(Unit("x"), RUNS, STARTED - 1, (), id="runs with what is there"),
        pytest.param(Unit("x"), RUNS, 0, (), id="reads no file"),
        pytest.param(Unit("x"), RUNS, STARTED, ("restart",), id="a file of the second of its start"),
        pytest.param(Unit("x"), RUNS, STARTED + 9, ("restart",), id="a newer file"),
        pytest.param(Unit("x", restart=False), RUNS, STARTED + 9, ("pending",), id="restart forbidden"),
        pytest.param(Unit("x"), RESTS, STARTED, ("enable", "start"), id="never started"),
        pytest.param(Unit("x", enabled=False), RUNS, 0, ("disable",), id="runs, but not at boot"),
        pytest.param(Unit("x"), FAILED, 0, ("reset-failed", "start"), id="failed"),
        pytest.param(
            Unit("x"), Seen("loaded", "activating", "enabled", 0, False, 0, ""), 0, ("start",), id="fails in a loop"
        ),
        pytest.param(
            Unit("x"), Seen("loaded", "active", "enabled-runtime", 1, False, 1, ""), 0, (), id="enabled by a generator"
        ),
        pytest.param(Unit("x"), Seen("loaded", "active", "static", 1, False, 1, ""), 0, (), id="static"),
        pytest.param(Unit("x"), ABSENT, STARTED, (), id="not installed"),
        pytest.param(Unit("x", "stopped"), RUNS, 0, ("disable", "stop"), id="to be stopped"),
        pytest.param(Unit("x", "stopped"), RESTS, STARTED, (), id="is stopped"),
        pytest.param(Unit("x", "stopped"), ABSENT, 0, (), id="to be stopped, not installed"),
        pytest.param(Unit("x", "ignored"), RUNS, STARTED + 9, ("restart",), id="left alone, but for newer files"),
        pytest.param(Unit("x", "ignored"), RESTS, STARTED + 9, (), id="left alone"),
        pytest.param(Unit("x"), STUCK, 0, ("restart",), id="a timer that will not elapse"),
        pytest.param(Unit("x", "ignored"), STUCK, 0, (), id="a timer that will not elapse, left alone"),
    ],
)  # fmt: skip
def test_decides_by_state_and_age(unit: Unit, seen: Seen, newest: int, expected: tuple[str, ...]) -> None:
    assert units.decide(unit, seen, newest) == expected


def test_oneshot_runs_only_while_its_file_is_missing() -> None:
    unit = Unit("provision-metrics.service", creates="/x")
    seen = Seen("loaded", "inactive", "static", 0, False, 0, "")
    assert units.decide(unit, seen, 0, created=False) == ("start",)
    assert units.decide(unit, seen, 0, created=True) == ()


def test_says_what_was_done() -> None:
    assert units.sentences(Unit("x.timer"), ("disable", "stop")) == ["disabled x.timer", "stopped x.timer"]
    assert units.sentences(Unit("x.service"), ("pending",)) == []


def test_leaves_a_unit_alone_that_we_never_configured(tmp_path: Path) -> None:
    stopped = Unit("x", "stopped", only_if=str(tmp_path / "50-provision.conf"))
    assert units.plan([stopped], {"x": RUNS}) == []
    (tmp_path / "50-provision.conf").touch()
    assert units.plan([stopped], {"x": RUNS}) == [(stopped, ("disable", "stop"))]


def test_files_date_a_unit(tmp_path: Path) -> None:
    for name, second in (("a", STARTED - 5), ("b", STARTED + 5)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (second, second))
    both = Unit("x", reload_files=(str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path / "missing")))
    older = Unit("x", reload_files=(str(tmp_path / "a"),))
    assert [units.newest(both), units.newest(older)] == [STARTED + 5, STARTED - 5]
    assert units.plan([older], {"x": RUNS}) == [(older, ())]
    assert units.plan([older], {"x": RUNS}, [str(tmp_path / "a")]) == [(older, ("restart",))]


def test_names_the_units_that_files_describe() -> None:
    paths = [
        "/etc/systemd/system/provision-backup@.service",
        "/etc/systemd/system/provision-drill.timer",
        "/etc/systemd/system/pgbouncer.service.d/50-provision.conf",
        "/etc/pgbouncer/pgbouncer.ini",
    ]
    assert units.patterns(map(Path, paths)) == [
        "provision-backup@*.service",
        "provision-drill.timer",
        "pgbouncer.service",
    ]


def test_finds_the_process_that_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        inodes = listeners.listening(port)
        assert inodes == {str(os.fstat(server.fileno()).st_ino)}
        assert listeners.owns(os.getpid(), inodes)
        assert not listeners.owns(os.getppid(), inodes)
        assert f"(pid {os.getpid()}" in listeners.holder(inodes)
    assert listeners.listening(port) == set()
    assert listeners.holder(set()) == ""


def test_unit_of_another_process_does_not_count_as_listening() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        own = Seen("loaded", "active", "enabled", 1, False, os.getpid(), "")
        units.require_listening([Unit("x.service", listens=port)], {"x.service": own}, 0)
        other = Seen("loaded", "active", "enabled", 1, False, os.getppid(), "")
        with pytest.raises(units.UnitError, match=rf"^x.service \(active\) does not listen on port {port}, which .*"
                           rf"\(pid {os.getpid()}.*\) holds: "):  # fmt: skip
            units.require_listening([Unit("x.service", listens=port)], {"x.service": other}, 0)


def test_members_are_read_from_the_cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, pids in (("system.slice/x.service", "7\n8\n"), ("system.slice/x.service/below", "9\n")):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "cgroup.procs").write_text(pids)
    monkeypatch.setattr(listeners, "GROUPS", (tmp_path,))
    assert listeners.members("/system.slice/x.service", 7) == {7, 8, 9}
    assert listeners.members("", 0) == set()


def test_describes_each_listener_with_its_address_and_process() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as six,
    ):
        ports = [server.getsockname()[1], six.getsockname()[1]]
        found = {row["port"]: row for row in listeners.found(ports)}
        assert [found[port]["address"] for port in ports] == ["127.0.0.1", "::1"]
        assert {row["pid"] for row in found.values()} == {os.getpid()}
        assert listeners.serves("", os.getpid(), ports[0])
        assert not listeners.serves("", os.getppid(), ports[0])
    assert listeners.found([]) == []
