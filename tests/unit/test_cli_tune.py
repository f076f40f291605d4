"""`provision tune` as a user calls it: result on stdout, warnings on stderr, exit codes."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ISSUE = "--memory 64GB --cpus 16 --storage ssd --profile prod --vectors 2000000 --postgresql 17 --pgvector 0.8.6"

ROOT = Path(__file__).parents[2]
WIDE = {"COLUMNS": "160"}


def run(arguments: str, *python: str) -> subprocess.CompletedProcess[str]:
    program = "from provision.cli import main; main()"
    command = [sys.executable, *python, "-c", program, "tune", *arguments.split()]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | WIDE)


def test_prints_a_drop_in_and_warns_beside_it() -> None:
    done = run(ISSUE)
    assert done.returncode == 0
    assert "\nmaintenance_work_mem = 13GB\n" in done.stdout
    assert done.stdout.splitlines()[0].startswith("# Worst-case memory: ")
    assert done.stderr == ""


def test_json_is_the_result_for_programs() -> None:
    result = json.loads(run(f"{ISSUE} --format json").stdout)
    assert result["host"] == {"memory_mb": 65536, "cpus": 16, "storage": "ssd"}
    assert result["budget_mb"] <= 65536
    assert {"settings", "role_settings", "kernel", "pool_limit", "conf", "warnings"} <= set(result)


def test_explain_gives_every_value_its_reason() -> None:
    cells = {cell.strip() for cell in re.split("[│\n]", run(f"{ISSUE} --explain").stdout)}
    assert {"random_page_cost", "1.1", "worst case", "of 65536 MB", "* needs a restart"} <= cells
    assert "vector scans have high cost estimates: compiling takes longer than the scan" in cells


def test_explain_works_without_rich() -> None:
    """On a host there is only click; -X importtime would be slower than hiding the module."""
    program = "import sys; sys.modules['rich'] = None; from provision.cli import main; main()"
    command = [sys.executable, "-c", program, "tune", *ISSUE.split(), "--explain"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "  random_page_cost " in done.stdout
    assert "┃" not in done.stdout


def test_without_options_tunes_this_host() -> None:
    done = run("--format json")
    assert done.returncode == 0
    host = json.loads(done.stdout)["host"]
    assert host["shm_mb"] is not None
    assert host["cpus"] >= 1


def test_imports_only_what_a_host_has() -> None:
    program = (
        "import sys\n"
        "for name in ('rich', 'jinja2', 'yaml', 'ansible', 'pyinfra', 'psycopg'): sys.modules[name] = None\n"
        "from provision.cli import main; main()"
    )
    command = [sys.executable, "-c", program, "tune", *ISSUE.split()]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_third_profile_works_by_existing(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "provision", tmp_path / "provision", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    text = (tmp_path / "profiles/prod.yml").read_text()
    (tmp_path / "profiles/staging.yml").write_text(text.replace("log_min_duration_ms: 1000", "log_min_duration_ms: 77"))
    program = "from provision.cli import main; main()"
    command = [sys.executable, "-c", program, "tune", *ISSUE.replace("prod", "staging").split()]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=tmp_path)
    assert "\nlog_min_duration_statement = 77ms\n" in done.stdout
    help_text = subprocess.run(
        [*command[:4], "--help"], capture_output=True, text=True, check=True, env=environment, cwd=tmp_path
    ).stdout
    assert "[dev|prod|staging]" in help_text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--memory 2GB --max-connections 1000", "allowed: up to "),
        ("--memory much", "such as 512MB or 64GB"),
        ("--memory 100MB", "440 MB or more"),
        ("--postgresql 13", "14, 15, 16, 17, 18"),
        ("--profile missing", "'dev', 'prod'"),
    ],
)
def test_usage_errors_exit_2_and_say_what_is_allowed(arguments: str, message: str) -> None:
    done = run(arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
