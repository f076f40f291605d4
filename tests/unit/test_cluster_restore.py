"""What a restore of a cluster asks for and refuses, and which server goes back to systemd."""

from __future__ import annotations

import os

import pytest

from provision.errors import HostError, UsageError
from provision.host.backup import members, restore, runner
from provision.host.backup.request import Request, cluster_of
from provision.host.server import patroni
from tests import plans, topologies

MEMBER = topologies.plan("db2")


def test_a_cluster_is_confirmed_with_its_name() -> None:
    assert restore.confirmation(MEMBER) == "minion"
    assert restore.confirmation(plans.plan("prod", plans.SAMPLE)) == os.uname().nodename
    with pytest.raises(UsageError, match="replaces every member's data") as refused:
        restore._confirm(MEMBER, Request(confirm="db2"))
    assert refused.value.allowed == "-e restore_confirm=minion"
    restore._confirm(MEMBER, Request(confirm="minion"))


def test_a_cluster_does_not_take_another_stanza_in_place() -> None:
    with pytest.raises(UsageError, match="restores its own stanza"):
        members.judge(MEMBER, Request(stanza="other"))
    assert cluster_of(MEMBER, beside=5499) is None


def test_server_of_a_member_runs_without_patroni_and_the_network() -> None:
    assert runner.of(MEMBER) == runner.Detached(MEMBER)
    assert str(runner.of(MEMBER).log) == "/var/log/postgresql/postgresql-17-main.log"
    single = plans.plan("prod", plans.SAMPLE)
    assert runner.of(single) == runner.Unit("postgresql@17-main.service")
    assert str(runner.of(single).log) == "/var/log/postgresql/postgresql-17-main.log"
    assert str(runner.of(MEMBER, 5499).log) == "/var/log/postgresql/postgresql-17-restored5499.log"


def test_only_the_last_member_goes_back_to_systemd() -> None:
    leader, replica = {"Member": "db1", "Role": "Leader"}, {"Member": "db2", "Role": "Quorum Standby"}
    patroni._judge([leader])
    with pytest.raises(HostError, match="has other members") as refused:
        patroni._judge([leader, replica])
    assert refused.value.seen == "db2"
    with pytest.raises(HostError, match="has no primary"):
        patroni._judge([])
