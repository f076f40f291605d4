"""A prod host tells of itself: exporters on the loopback, each metric that is read, logs in bounds.

The host is shared: every test leaves it as it found it.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import psycopg
import pytest
import yaml

from tests.clusters import free_port
from tests.expressions import DASHBOARD, names, queries, rules
from tests.system.playbooks import ROOT, Run
from tests.system.production import Production

ONLY = ("--tags", "monitoring", "--limit", "prod1")
SERVICES = ("prometheus-node-exporter", "prometheus-postgres-exporter")
LOG = "/var/log/postgresql/postgresql-17-main.log"

# The hosts have no curl: URL, authority, and headers as NAME=VALUE.
ASK = (
    "import ssl, sys, urllib.request as u; c = ssl.create_default_context(cafile=sys.argv[2] or None);"
    'h = dict(a.split("=", 1) for a in sys.argv[3:]);'
    "print(u.urlopen(u.Request(sys.argv[1], headers=h), context=c).read().decode())"
)
HASH = "$2b$05$abcdefghijklmnopqrstuuuThTKwrGjGDwr9keMpUmIYOfXrvmflO"  # of scrape-me

CONDITIONAL = {
    "up": "made by Prometheus itself for each target",
    "ALERTS": "made by Prometheus itself for each alert",
    "provision_drill_last_success": "no drill has run on a host that was just made",
    "provision_drill_last_passed_timestamp_seconds": "the same",
    "provision_drill_recovery_seconds": "the same",
    "provision_relation_unread": "only while a session locks a table",
    "provision_backup_repository_full_seconds": "only a repository that has grown for an hour",
    "provision_slot_wal_bytes": "only with a replication slot",
    **dict.fromkeys(
        (
            f"provision_cluster_{name}"
            for name in ("etcd_quorum", "failover_off", "has_primary", "is_primary", "lag_bytes", "member_streams",
                         "members", "members_expected", "pooler_follows", "pooler_target", "synchronous_replicas",
                         "timeline")
        ),
        "only a member of a cluster",
    ),
    **dict.fromkeys((f"provision_tenant_{name}" for name in ("bytes", "sessions", "vectors")), "only with tenants"),
}  # fmt: skip
"""Metrics that a host of this age does not export, each with its reason."""


WITHOUT_DATA = {
    "Restore duration (RTO)": "no drill has run on a host that was just made",
    "WAL kept for slots": "the host has no replication slot",
    **{
        panel["title"]: why
        for panel in DASHBOARD["panels"]
        for name, why in (("provision_cluster_", "not a member of a cluster"), ("provision_tenant_", "no tenants"))
        if any(name in target["expr"] for target in panel.get("targets", []))
    },
}
"""Panels that may be empty on this host, each with its reason."""


def play(production: Production, *arguments: str) -> Run:
    return production.play(*ONLY, *arguments)


def scrape(production: Production, port: int, address: str = "127.0.0.1", *, words: str = "") -> str:
    """Ask an exporter as a Prometheus on that host would."""
    scheme, authority = ("http", '""') if address == "127.0.0.1" else ("https", "/etc/provision/tls/ca.crt")
    done = production.database.run(f"python3 -c '{ASK}' {scheme}://{address}:{port}/metrics {authority} {words}")
    assert done.returncode == 0, done.stderr
    return done.stdout


def exported(text: str) -> set[str]:
    return set(re.findall(r"^([a-zA-Z_:][\w:]*)[{ ]", text, re.M))


def figures(production: Production) -> str:
    """Renew the collector's file, and scrape it."""
    renew(production)
    return scrape(production, 9100)


def renew(production: Production) -> None:
    """Renew the collector's file."""
    start = (
        "systemctl reset-failed provision-metrics; systemctl start provision-metrics"  # systemd allows 5 starts in 10 s
    )
    assert production.database.run(start).returncode == 0


def value(text: str, series: str) -> float:
    found = re.search(rf"^{re.escape(series)} (\S+)$", text, re.M)
    assert found, series
    return float(found[1])


def test_exporters_run_as_prometheus_on_the_loopback_and_come_back_at_a_boot(production: Production) -> None:
    host = production.database
    listening = host.run("ss -Hltn 'sport = 9100 or sport = 9187'").stdout
    assert sorted(line.split()[3] for line in listening.splitlines()) == ["127.0.0.1:9100", "127.0.0.1:9187"]
    for service in SERVICES:
        asked = host.run(f"ps -o user:20=,cmd= -p $(systemctl show -p MainPID --value {service})").stdout.split()
        assert asked[0] == "prometheus"
        assert not any("password" in word for word in asked)
        pid = host.run(f"systemctl show -p MainPID --value {service}").stdout.strip()
        assert "CapBnd:\t0000000000000000" in host.run(f"cat /proc/{pid}/status").stdout
    units = [f"{name}.service" for name in SERVICES] + ["provision-metrics.timer", "logrotate.timer"]
    for unit in units:
        assert host.run(f"systemctl is-enabled {unit}; systemctl is-active {unit}").stdout == "enabled\nactive\n"


def test_no_panel_and_no_rule_reads_a_metric_that_does_not_exist(production: Production) -> None:
    host = production.database
    ask = "runuser -u postgres -- psql -X -d minion -c"
    # A table with statistics, and the evidence of the first backup, which a host that was just made may not have yet.
    host.run(f"{ask} 'CREATE TABLE scratch AS SELECT generate_series(1, 9) AS a' -c 'ANALYZE scratch'")
    wait = "while systemctl is-active 'provision-backup@*' | grep -q activ; do sleep 0.2; done"
    assert host.run(f'timeout 60 sh -c "{wait}" && systemctl start provision-backup-watch').returncode == 0
    try:
        with pooled(production) as session:
            session.execute("SELECT 1")
            there = exported(figures(production)) | exported(scrape(production, 9187))
    finally:
        host.run(f"{ask} 'DROP TABLE scratch'")
    recorded = {rule["record"] for rule in rules("record")}
    asked = [*queries(), *(rule["expr"] for kind in ("alert", "record") for rule in rules(kind))]
    read = {name for text in asked for name in names(text)} - recorded
    assert len(read) > 40
    assert sorted(read - there - set(CONDITIONAL)) == []
    assert sorted(set(CONDITIONAL) - read) == []


def test_the_collector_can_ask_every_source(production: Production) -> None:
    text = figures(production)
    found = dict(re.findall(r'^provision_collector_success\{collector="(\w+)"\} (\d)$', text, re.M))
    assert set(found.values()) == {"1"}
    assert set(found) == {
        "backup", "certificates", "database", "indexes", "pooler", "sequences", "sizes", "statements", "tables",
        "tenants",
    }  # fmt: skip
    assert value(text, "node_textfile_scrape_error") == 0
    assert value(scrape(production, 9187), "pg_up") == 1


def test_evidence_becomes_figures(production: Production) -> None:
    host = production.database
    kept = host.run("cat /var/lib/provision/drill.json").stdout
    drill = {"when": "2026-11-24T04:30:00+00:00", "passed": False, "failure": "x", "rto_s": 7.5}
    try:
        host.run(f"echo '{json.dumps(drill)}' > /var/lib/provision/drill.json")
        text = figures(production)
        assert value(text, "provision_drill_last_success") == 0
        assert value(text, "provision_drill_last_timestamp_seconds") == 1795494600
        assert value(text, "provision_drill_recovery_seconds") == 7.5
    finally:
        host.run(
            f"cat > /var/lib/provision/drill.json <<'EOF'\n{kept}\nEOF" if kept else "rm /var/lib/provision/drill.json"
        )
        figures(production)  # or the next test's Prometheus would see the failed drill until the timer looks again


def test_pipe_of_the_server_s_user_at_the_metrics_file_stops_no_scrape(production: Production) -> None:
    host, path = production.database, "/var/lib/provision-metrics/provision.prom"
    before = figures(production)
    made = host.run(f"runuser -u postgres -- sh -ec 'rm {path}; mkfifo {path}'")
    assert made.returncode == 0, made.stderr
    assert value(scrape(production, 9100), "provision_shared_buffers_bytes") == value(
        before, "provision_shared_buffers_bytes"
    )
    assert value(figures(production), "node_textfile_scrape_error") == 0
    assert host.run(f"stat --format=%F {path}").stdout == "regular file\n"


def test_a_failing_source_is_reported_and_hides_nothing_else(production: Production) -> None:
    host = production.database
    host.run("echo damaged > /etc/provision/tls/damaged.crt")
    try:
        failed = host.run("provision metrics")
        assert failed.returncode == 1
        assert "not collected: certificates: cannot read a certificate" in failed.stderr
        assert 'provision_collector_success{collector="certificates"} 0\n' in failed.stdout
        assert 'provision_collector_success{collector="database"} 1\n' in failed.stdout
        assert "provision_shared_buffers_bytes " in failed.stdout
        assert "provision_certificate_expiry_timestamp_seconds" not in failed.stdout
    finally:
        host.run("rm /etc/provision/tls/damaged.crt")


def test_statements_are_ranked_compared_planned_and_exported(production: Production) -> None:
    host = production.database
    load = "SELECT name, pg_sleep(0.2) FROM agents RIGHT JOIN (SELECT 1) one ON true WHERE {} > 1"
    ask = "runuser -u postgres -- psql -XAt -U minion -d minion -c"
    host.run("rm -rf /var/lib/provision/queries")
    host.run(f'{ask} "{load.format(2)}"')
    text = figures(production)  # the unit, which also keeps the first snapshot
    assert re.search(
        r'^provision_statement_seconds_total\{database="minion",query_id="-?\d+",role="minion"', text, re.M
    )
    assert len(re.findall(r"^provision_statement_calls_total", text, re.M)) <= 21
    kept = host.run("stat -c '%U %a %n' /var/lib/provision/queries/*.json").stdout.split()
    assert kept[:2] == ["postgres", "640"]
    for _ in range(3):
        host.run(f'{ask} "{load.format(3)}"')
    shown = host.run("provision queries --since 1h --limit 3")
    assert shown.returncode == 0, shown.stderr
    assert "pg_sleep($1)" in shown.stdout
    found = json.loads(host.run("provision queries --since 1h --json").stdout)
    (statement,) = [each for each in found["statements"] if "pg_sleep($1)" in each["statement"]]
    assert (statement["calls"], statement["role"]) == (3, "minion")
    assert 600 <= statement["total_ms"] < 5000
    assert 0 < statement["share"] <= 1
    plan = host.run(f"provision queries --plan {statement['query_id']}").stdout
    assert "Seq Scan on agents" in plan or "Index" in plan
    assert "of the execution time since" in host.run("provision doctor").stdout


def test_the_monitor_sees_statistics_and_no_row(production: Production) -> None:
    ask = "runuser -u prometheus -- psql -XAt -h /var/run/postgresql -U minion_monitor -d minion -c"
    assert production.database.run(f"{ask} 'SELECT count(*) > 0 FROM pg_stat_activity'").stdout == "t\n"
    assert "permission denied" in production.database.run(f"{ask} 'SELECT * FROM memories'").stderr


def test_slow_statements_lock_waits_and_errors_are_found_in_rotated_logs_too(production: Production) -> None:
    host = production.database
    ask = "runuser -u postgres -- psql -X -d minion -c"
    host.run(f"{ask} 'SELECT pg_sleep(1.05), 4711'; {ask} 'SELECT 4712 / 0'")
    host.run(
        f"{ask} 'BEGIN; LOCK agents; SELECT pg_sleep(2)' & sleep 0.3;"
        f" {ask} 'SET lock_timeout = 1500; SELECT 4713 FROM agents'; wait"
    )
    rotated = host.run("logrotate --force /etc/logrotate.d/postgresql-common")
    assert rotated.returncode == 0, rotated.stderr
    assert host.run(f"stat -c %s {LOG}").stdout.strip() < "9"
    for option, wanted in (("--slow", "4711"), ("--errors", "4712"), ("--locks", "4713")):
        found = host.run(f"provision logs {option} --since 5m --json")
        lines = [json.loads(line) for line in found.stdout.splitlines()]
        assert any(wanted in line for each in lines for line in each["lines"]), option
    waits = host.run("provision logs --locks --since 5m").stdout
    assert "still waiting for AccessShareLock" in waits
    assert "Process holding the lock" in waits
    assert "4711" not in waits
    assert "runuser" not in host.run("provision logs --errors --since 0s").stdout


def test_a_log_is_rotated_by_its_size_and_few_are_kept(production: Production) -> None:
    host = production.database
    host.run(f"truncate -s +210M {LOG}")
    try:
        assert host.run("systemctl start logrotate").returncode == 0
        assert int(host.run(f"stat -c %s {LOG}").stdout) < 2**20
        assert "OnCalendar=hourly" in host.run("systemctl cat logrotate.timer").stdout
        assert "rotate 14" in host.run("cat /etc/logrotate.d/postgresql-common").stdout
        assert "SystemMaxUse=500M" in host.run("cat /etc/systemd/journald.conf.d/50-provision.conf").stdout
    finally:
        host.run(f"rm -f {LOG}.*.gz")


class Prometheus(Protocol):
    """Asks a path of Prometheus' API until what is wanted is there; gives it, or what came last after a minute."""

    def __call__(self, path: str, wanted: str) -> Any: ...


@contextmanager
def prometheus(folder: Path, authority: str) -> Iterator[Prometheus]:
    """Run a Prometheus on this machine as docs/monitoring.md configures it, with what the run wrote."""
    port, written = free_port(), ROOT / ".provision/monitoring"
    (folder / "ca.crt").write_text(authority)
    (folder / "password").write_text("scrape-me")
    job = {
        "job_name": "provision",
        "file_sd_configs": [{"files": [str(written / "targets.json")]}],
        "tls_config": {"ca_file": "ca.crt", "server_name": "prod1"},
        "basic_auth": {"username": "prometheus", "password_file": "password"},
    }
    intervals = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    conf = {"global": intervals, "rule_files": [str(written / "rules.yml")], "scrape_configs": [job]}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(conf))
    own = ("--storage.tsdb.path=data", f"--web.listen-address=127.0.0.1:{port}", "--log.level=error")
    with subprocess.Popen(["prometheus", "--config.file=prometheus.yml", *own], cwd=folder) as running:

        def ask(path: str, wanted: str) -> Any:
            found: Any = None
            for _ in range(60):
                with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/{path}") as answer:
                    found = json.load(answer)["data"]
                if re.search(wanted, json.dumps(found)):
                    break
                time.sleep(1)
            return found

        try:
            yield ask
        finally:
            running.terminate()


def pooled(production: Production) -> psycopg.Connection:
    """Log in as the application through the pooler, which has figures of pools that clients have used."""
    place: dict[str, Any] = {
        "host": production.database.address,
        "port": 6432,
        "dbname": "minion",
        "sslmode": "require",
    }
    return psycopg.connect(**place, user="minion_app", password=production.passwords["minion_app"])


def empty_panels(production: Production, ask: Prometheus) -> set[str]:
    """Name the panels of the dashboard without a value, while a client works through the pooler."""
    host = production.database
    with pooled(production) as session:
        for _ in range(20):
            session.execute("SELECT count(*) FROM agents")
            session.commit()
        host.run("runuser -u postgres -- psql -X -d minion -c 'ANALYZE'; systemctl start provision-metrics")
        panels = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
        # A rate needs two scrapes after the first value, so panels without one are asked again for a while.
        answers = {panel["title"]: answered(panel, ask, panel["title"] not in WITHOUT_DATA) for panel in panels}
    return {title for title, full in answers.items() if not full}


def answered(panel: dict[str, Any], ask: Prometheus, wait: bool) -> bool:
    texts = [urllib.parse.quote(target["expr"].replace("$host", ".*")) for target in panel["targets"]]
    return all(ask(f"query?query={text}", '"value"' if wait else "")["result"] for text in texts)


@pytest.mark.faults
def test_check_mode_shows_a_manual_change_of_an_exporter_and_restarts_none(production: Production) -> None:
    host = production.database
    begun = "systemctl show -p MainPID prometheus-postgres-exporter prometheus-node-exporter"
    before = host.run(begun).stdout
    unit = "/etc/systemd/system/prometheus-postgres-exporter.service.d/50-provision.conf"
    host.run(f"cp -p {unit} /root/kept; echo '# by hand' >> {unit}")
    try:
        planned = play(production, "--check", "--diff")
    finally:
        host.run(f"mv /root/kept {unit}")
    assert planned.code == 0, planned.output
    assert "-# by hand" in planned.output
    assert host.run(begun).stdout == before


def test_another_address_serves_its_clients_alone_and_with_tls(production: Production, tmp_path: Path) -> None:
    host = production.database
    host.run("echo '# by hand' >> /etc/systemd/system/prometheus-postgres-exporter.service.d/50-provision.conf")
    variables = {"monitoring_listen_address": host.address, "monitoring_users": {"prometheus": HASH}}
    served = play(production, "-e", json.dumps(variables))
    try:
        assert served.code == 0, served.output
        assert HASH not in served.output
        listening = host.run("ss -Hltn 'sport = 9100 or sport = 9187'").stdout
        assert {line.split()[3] for line in listening.splitlines()} == {f"{host.address}:9100", f"{host.address}:9187"}
        for port, wanted in ((9100, "provision_collector_success"), (9187, "pg_up 1")):
            asked = f"{host.address}:{port}/metrics"
            known = base64.b64encode(b"prometheus:scrape-me").decode()
            assert wanted in scrape(production, port, host.address, words=f"Authorization='Basic {known}'")
            for words, refusal in ((f"https://{asked}", "401"), (f"http://{asked}", "400")):
                done = host.run(f"python3 -c '{ASK}' {words} /etc/provision/tls/ca.crt")
                assert f"HTTP Error {refusal}" in done.stderr
        targets = json.loads((ROOT / ".provision/monitoring/targets.json").read_text())
        assert {row["labels"]["__scheme__"] for row in targets} == {"https"}
        renew(production)  # the timer may have looked while an earlier test kept a source from being read
        with prometheus(tmp_path, host.run("cat /etc/provision/tls/ca.crt").stdout) as ask:
            found = ask("query?query=provision:cache_hit:ratio", "prod1")["result"]
            assert [series["metric"]["instance"] for series in found] == ["prod1"]
            up = ask("query?query=up", "prod1")["result"]
            assert [(series["metric"]["job"], series["value"][1]) for series in up] == [
                ("provision-node", "1"),
                ("provision-postgres", "1"),
            ]
            evaluated = [rule for group in ask("rules", '^(?!.*"unknown")')["groups"] for rule in group["rules"]]
            assert {rule["name"]: rule.get("lastError") for rule in evaluated if rule["health"] != "ok"} == {}
            journal = host.run("journalctl --no-pager -u provision-metrics | grep 'not collected'").stdout
            assert {rule["name"] for rule in evaluated if rule.get("alerts")} == set(), journal
            assert empty_panels(production, ask) <= set(WITHOUT_DATA)
    finally:
        back = play(production)
        assert back.code == 0, back.output
    files = host.run(
        "cat /etc/systemd/system/prometheus-*-exporter.service.d/*.conf /etc/provision/exporters.yml"
    ).stdout
    assert files.count("--web.listen-address=127.0.0.1:") == 2
    assert "by hand" not in files
    assert HASH not in files


def test_a_port_that_another_program_takes_is_refused_and_reported(production: Production) -> None:
    host = production.database
    script = (
        "systemctl stop prometheus-node-exporter; systemd-run --quiet --unit=other python3 -m http.server 9100;"
        "until ss -Hltn 'sport = 9100' | grep -q .; do sleep 0.1; done; systemctl start prometheus-node-exporter"
    )
    assert host.run(script).returncode == 0
    try:
        reported = (
            f"held by python3 (pid {host.run('systemctl show -p MainPID --value other').stdout.strip()}, other.service)"
        )
        doctor = host.run("provision doctor")
        assert doctor.returncode == 3
        assert f"port 9100 of prometheus-node-exporter.service is {reported}" in doctor.stdout
        refused = play(production)
        assert refused.code != 0
        assert "port 9100 is taken by process" in refused.text(), refused.output
        assert "other.service): stop it (systemctl disable --now other.service)" in refused.text()
        assert refused.recap["prod1"].changed == 0
    finally:
        host.run("systemctl stop other; systemctl reset-failed; systemctl restart prometheus-node-exporter")
    assert "ports (services)" not in host.run("provision doctor").stdout


def test_listening_everywhere_is_refused(production: Production) -> None:
    refused = play(production, "-e", "monitoring_listen_address=0.0.0.0")
    assert refused.code != 0
    assert "expected one address of this host" in refused.text()


def test_the_controller_is_given_rules_dashboard_and_targets(production: Production) -> None:
    assert production.database.name == "prod1"
    folder = ROOT / ".provision/monitoring"
    assert yaml.safe_load((folder / "rules.yml").read_text())["groups"]
    assert json.loads((folder / "dashboard.json").read_text()) == DASHBOARD
    targets = json.loads((folder / "targets.json").read_text())
    assert [row["labels"] for row in targets if row["labels"]["job"] == "provision-node"] == [
        {"job": "provision-node", "instance": "prod1"}
    ]
