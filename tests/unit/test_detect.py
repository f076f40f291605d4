"""What a host is, read from trees as kernels and container engines lay them out, and from this machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from provision.tuning import Host, detect

SCRIPT = Path(detect.__file__)
GIGABYTE = 2**30


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"proc/meminfo": "MemTotal:       16384000 kB\nMemFree: 1 kB\n", **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({"proc/self/cgroup": "0::/\n"}, 16000, id="no limit"),
        pytest.param(
            {
                "proc/self/cgroup": "0::/system.slice/postgresql@17-main.service\n",
                "sys/fs/cgroup/system.slice/postgresql@17-main.service/memory.max": "max\n",
                "sys/fs/cgroup/system.slice/memory.max": f"{2 * GIGABYTE}\n",
            },
            2048,
            id="version 2, limit above our own cgroup",
        ),
        pytest.param(
            {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.high": f"{GIGABYTE}\n"},
            1024,
            id="version 2, high",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "4:memory:/docker/0123abcd\n1:name=systemd:/docker/0123abcd\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{512 * 2**20}\n",
            },
            512,
            id="version 1 in a container: the path is the host's, the mount is ours",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "4:memory:/\n0::/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            },
            16000,
            id="version 1 without a limit",
        ),
    ],
)
def test_memory_is_what_the_cgroups_leave(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    assert detect.memory_mb(tree(tmp_path, files)) == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "50000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "max 100000\n"}, os.cpu_count()),
        (
            {
                "proc/self/cgroup": "5:cpu,cpuacct:/x\n",
                "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us": "100000\n",
                "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us": "100000\n",
            },
            1,
        ),
        (
            {
                "proc/self/cgroup": "5:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            os.cpu_count(),
        ),
    ],
)
def test_cpus_are_what_the_quota_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(os.cpu_count() or 1)))
    assert detect.cpus(tree(tmp_path, files)) == expected


@pytest.mark.parametrize(
    ("name", "rotational", "expected"),
    [
        ("sda", "1", "hdd"),
        ("sda", "0", "ssd"),
        ("nvme0n1", "0", "nvme"),
        ("vda", "1", "ssd"),
        ("xvda", "1", "ssd"),
    ],
)
def test_storage_is_that_of_the_disk_under_a_partition(
    tmp_path: Path, name: str, rotational: str, expected: str
) -> None:
    root = tree(
        tmp_path, {f"sys/devices/{name}/queue/rotational": rotational, f"sys/devices/{name}/{name}1/start": "1"}
    )
    (root / "sys/dev/block").mkdir(parents=True)
    (root / "sys/dev/block/8:1").symlink_to(root / f"sys/devices/{name}/{name}1")
    assert detect.storage(root, os.makedev(8, 1)) == expected


def test_stacked_storage_is_as_slow_as_its_slowest_disk(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "sys/devices/sda/queue/rotational": "1",
            "sys/devices/nvme0n1/queue/rotational": "0",
            "sys/devices/dm-0/queue/rotational": "0",
        },
    )
    (root / "sys/devices/dm-0/slaves").mkdir()
    for disk in ("sda", "nvme0n1"):
        (root / "sys/devices/dm-0/slaves" / disk).symlink_to(root / "sys/devices" / disk)
    (root / "sys/dev/block").mkdir(parents=True)
    (root / "sys/dev/block/253:0").symlink_to(root / "sys/devices/dm-0")
    assert detect.storage(root, os.makedev(253, 0)) == "hdd"


def test_unknown_storage_counts_as_flash(tmp_path: Path) -> None:
    assert detect.storage(tree(tmp_path, {}), os.makedev(0, 42)) == "ssd"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, False),
        ({"run/systemd/container": "podman"}, True),
        ({".dockerenv": ""}, True),
        ({"run/.containerenv": ""}, True),
        ({"proc/1/environ": "HOME=/\0container=lxc\0"}, True),
        ({"proc/1/environ": "HOME=/\0NOTE=container=lxc\0"}, False),
    ],
)
def test_containers_are_seen_by_their_marks(tmp_path: Path, files: dict[str, str], expected: bool) -> None:
    assert detect.container(tree(tmp_path, files)) is expected


def test_huge_pages_end_where_the_cgroup_ends_them(tmp_path: Path) -> None:
    files = {
        "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages": "3000\n",
        "proc/self/cgroup": "0::/kubepods/pod\n",
        "sys/fs/cgroup/kubepods/pod/hugetlb.2MB.max": f"{100 * 2 * 2**20}\n",
    }
    assert detect.huge_pages(tree(tmp_path, files)) == 100


def test_finds_the_installed_versions(tmp_path: Path) -> None:
    control = "usr/share/postgresql/17/extension/vector.control"
    files = {
        "usr/lib/postgresql/15/bin/postgres": "",
        "usr/lib/postgresql/17/bin/postgres": "",
        control: "comment = 'vector data type'\ndefault_version = '0.8.0'\n",
    }
    assert detect.installed(tree(tmp_path, files)) == {"postgresql_major": 17, "pgvector_version": "0.8.0"}
    assert detect.installed(tmp_path / "proc") == {}


def test_runs_from_standard_input_with_nothing_installed(tmp_path: Path) -> None:
    """As Ansible runs it on a bare host: isolated, without site-packages, far from the repository."""
    with SCRIPT.open() as script:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-", str(tmp_path / "not/made/yet")],
            stdin=script,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
    facts = json.loads(done.stdout)
    host = Host(**facts)
    with Path("/proc/meminfo").open() as meminfo:
        machine = int(meminfo.readline().split()[1]) // 1024
    assert 0 < host.memory_mb <= machine
    assert 1 <= host.cpus <= (os.cpu_count() or 1)
    assert host.disk_mb is not None
    assert host.disk_mb > 0
