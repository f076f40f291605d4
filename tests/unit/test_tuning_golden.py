"""Golden files: everything that a host gets, one file per host and profile, each major after 14 as a difference.

`REGENERATE_GOLDEN=1 pytest tests/unit/test_tuning_golden.py` rewrites them; read the difference before you commit.
"""

import difflib
import os
from pathlib import Path

import pytest

from provision.tuning import Host, tune

GOLDEN = Path(__file__).parent / "golden"
HOSTS = {
    "512MB-1cpu-container": Host(512, 1, container=True, shm_mb=64),
    "1GB-1cpu": Host(1024, 1),
    "2GB-2cpu": Host(2048, 2),
    "4GB-2cpu-hdd": Host(4096, 2, "hdd"),
    "8GB-4cpu": Host(8192, 4),
    "24GB-2cpu": Host(24576, 2),
    "64GB-16cpu": Host(65536, 16, "nvme"),
    "512GB-64cpu": Host(524288, 64, "nvme"),
}
# As a distribution or PGDG would bring them: the default first.
PGVECTOR = {14: "0.5.1", 15: "0.5.1", 16: "0.6.0", 17: "0.8.0", 18: "0.8.6"}


def rendered(host: Host, profile: str) -> str:
    whole, before = "", ""
    for major, pgvector in PGVECTOR.items():
        tuning = tune(host, profile, postgresql_major=major, pgvector_version=pgvector)
        others = [f"# roles: {setting.line}" for setting in tuning.role_settings]
        others += [f"# kernel: {setting.line}" for setting in tuning.kernel]
        conf = tuning.as_conf() + "\n".join(["", *others, f"# pools: {tuning.pool_limit}", ""])
        title = f"### PostgreSQL {major}, pgvector {pgvector}\n"
        changes = difflib.unified_diff(before.splitlines(), conf.splitlines(), n=0, lineterm="")
        lines = [line for line in list(changes)[2:] if not line.startswith("@@")]
        whole += title + ("\n".join(lines) + "\n" if before else conf) + "\n"
        before = conf
    return whole.rstrip() + "\n"


@pytest.mark.parametrize("profile", ["dev", "prod"])
@pytest.mark.parametrize("name", HOSTS)
def test_host_gets_what_its_golden_file_says(name: str, profile: str) -> None:
    path = GOLDEN / f"{name}-{profile}.conf"
    text = rendered(HOSTS[name], profile)
    if os.environ.get("REGENERATE_GOLDEN"):
        GOLDEN.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()


def test_no_golden_file_is_left_over() -> None:
    expected = {f"{name}-{profile}.conf" for name in HOSTS for profile in ("dev", "prod")}
    assert {path.name for path in GOLDEN.iterdir()} == expected
