"""The audit of a fleet: over SSH, in parallel, read-only, with a report that opens offline."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.sandboxes import provision
from tests.system.production import Production
from tests.system.test_doctor import paste, run

BROWSER = "chromium-headless-shell"


@dataclass(frozen=True)
class Audit:
    """The result of one audit, and its report."""

    code: int
    hosts: dict[str, dict[str, Any]]
    said: str
    page: Path

    def checks(self, host: str) -> set[str]:
        return {each["id"] for each in self.hosts[host]["findings"]}


def audit(production: Production, folder: Path, *inventories: Path) -> Audit:
    page = folder / "audit.html"
    given = [
        word for each in (production.inventory, production.database.inventory, *inventories) for word in ("-i", each)
    ]
    done = provision("audit", *given, "--vault-password-file", production.key, "--json", "--html", page)
    assert done.returncode in (0, 3), done.stderr
    hosts = {each["name"]: each for each in json.loads(done.stdout)["hosts"]}
    return Audit(done.returncode, hosts, done.stderr, page)


@pytest.fixture(scope="module")
def fleet(production: Production, tmp_path_factory: pytest.TempPathFactory) -> Audit:
    """Prod1 with four deviations, the peer as a host that was never converged, and an address without a host."""
    folder = tmp_path_factory.mktemp("audit")
    known = yaml.safe_load(production.database.inventory.read_text())["all"]["children"]
    login = known["backup"]["hosts"]["peer"]
    absent = {**login, "ansible_host": production.database.address.rpartition(".")[0] + ".250"}
    more = folder / "more.yml"
    more.write_text(yaml.safe_dump({"all": {"children": {"database": {"hosts": {"peer": login, "absent": absent}}}}}))
    host = production.database
    host.run(
        "systemctl stop provision-drill.timer; chmod 0750 /var/lib/postgresql/17/main;"
        " cp -a /etc/provision/plan.json /root/kept; echo ' ' >> /etc/provision/plan.json;"
        " cp -a /usr/local/bin/provision /root/command; echo '# <b>&' >> /usr/local/bin/provision"
    )
    try:
        return audit(production, folder, more)
    finally:
        host.run(
            "systemctl start provision-drill.timer; chmod 0700 /var/lib/postgresql/17/main;"
            " mv /root/kept /etc/provision/plan.json; mv /root/command /usr/local/bin/provision"
        )


def test_an_untouched_host_has_only_the_known_defects(production: Production, tmp_path: Path) -> None:
    production.database.run("systemctl start provision-backup-watch")
    seen = audit(production, tmp_path)
    assert list(seen.hosts) == ["prod1"]
    assert {each["seen"].partition(":")[0] for each in seen.hosts["prod1"]["findings"]} == {
        "CVE-2026-3172",
        "pgvector-hnsw-vacuum",
    }


def test_reports_the_deviations_of_each_host(fleet: Audit) -> None:
    assert fleet.code == 3
    assert {"timers", "private-modes", "files-changed", "command-differs"} <= fleet.checks("prod1")
    assert fleet.checks("peer") == {"not-converged"}
    assert fleet.checks("absent") == {"unreachable"}
    assert "3 hosts in" in fleet.said


def test_command_for_an_unreachable_host_shows_the_cause(production: Production, fleet: Audit) -> None:
    (finding,) = fleet.hosts["absent"]["findings"]
    assert "absent | UNREACHABLE!" in run(production, finding["fix"]).stdout


def test_drift_is_reported_where_the_command_on_the_host_is_gone(production: Production, tmp_path: Path) -> None:
    host = production.database
    host.run(
        "mv /usr/local/bin/provision /root/away; echo nonsense > /etc/provision/files.d/zz.json;"
        " cp -a /etc/provision/plan.json /root/kept; echo ' ' >> /etc/provision/plan.json"
    )
    try:
        seen = audit(production, tmp_path)
    finally:
        host.run(
            "mv /root/away /usr/local/bin/provision; rm /etc/provision/files.d/zz.json;"
            " mv /root/kept /etc/provision/plan.json;"
            " systemctl reset-failed 'provision-*'"  # a timer may have fired without the command
        )
    assert {"doctor-failed", "files-changed", "command-differs", "manifest-damaged"} <= seen.checks("prod1")


def test_prints_a_table_with_fixes(production: Production) -> None:
    given = ("-i", production.inventory, "-i", production.database.inventory)
    shown = provision("audit", *given, "--vault-password-file", production.key)
    assert shown.returncode == 3
    assert "prod1" in shown.stdout
    assert "fix: " in shown.stdout


def test_an_inventory_without_its_password_is_refused_with_the_option(production: Production) -> None:
    refused = provision("audit", "-i", production.inventory, "-i", production.database.inventory)
    assert refused.returncode == 2
    assert "--vault-password-file" in refused.stderr


class Dom(HTMLParser):
    """Collects sections of hosts and their findings from the DOM."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, list[str]] = {}
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "section":
            self.found[str(given["id"])] = []
        elif tag == "article":
            list(self.found.values())[-1].append(str(given["data-check"]))

    def handle_data(self, data: str) -> None:
        self.text += data


def browse(page: Path, folder: Path) -> tuple[str, set[str]]:
    """Open a page in a real browser; give the DOM, and every URL requested from the network."""
    log = folder / "net.json"
    words = [BROWSER, "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}",
             "--dump-dom", page.as_uri()]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    events = json.loads(log.read_text())["events"]
    urls = {str(each["params"]["url"]) for each in events if "url" in each.get("params", {})}
    return done.stdout, {url for url in urls if url.startswith(("http", "ws", "ftp"))}


def test_the_report_opens_in_a_browser_without_a_network_and_has_every_finding(fleet: Audit, tmp_path: Path) -> None:
    dom, asked = browse(fleet.page, tmp_path)
    assert asked == set()
    read = Dom()
    read.feed(dom)
    assert read.found == {name: [each["id"] for each in host["findings"]] for name, host in fleet.hosts.items()}
    for host in fleet.hosts.values():
        for each in host["findings"]:
            assert each["seen"] in read.text
            assert each["fix"] in read.text


def test_the_log_of_the_browser_shows_requests(tmp_path: Path) -> None:
    page = tmp_path / "control.html"
    page.write_text('<!doctype html><img src="http://127.0.0.1:9/picture.png" alt="">')
    assert browse(page, tmp_path)[1] == {"http://127.0.0.1:9/picture.png"}


# test_doctor.py pastes the commands of its checks; the fix of these is a run of site.yml.
@pytest.mark.faults
@pytest.mark.parametrize(
    ("broken", "check"),
    [
        ("echo '# by hand' >> /usr/local/bin/provision", "command-differs"),
        ("rm /usr/local/bin/provision", "doctor-failed"),
        ("rm /etc/provision/plan.json", "not-converged"),
    ],
)
def test_the_printed_command_ends_the_finding(production: Production, tmp_path: Path, broken: str, check: str) -> None:
    assert production.database.run(broken).returncode == 0
    findings = audit(production, tmp_path).hosts["prod1"]["findings"]
    (finding,) = [each for each in findings if each["id"] == check]
    assert paste(production, finding["fix"]) == ""
    # Its timer may have started it while the plan was missing; the next file expects no failed unit.
    assert production.database.run("systemctl start provision-metrics").returncode == 0
    assert check not in audit(production, tmp_path).checks("prod1")
