#!/usr/bin/env python3
"""Host facts: memory and CPUs within cgroup limits, storage kind, container or not, /dev/shm.

Does IO, read-only. Imports the standard library only, so that it runs on a bare host through standard input:

    python3 - /var/lib/postgresql < provision/tuning/detect.py

prints the facts as JSON, with the keys of provision.tuning.Host; the argument is the data directory. Refuses
nothing: an unreadable limit counts as no limit. Sources: cgroups(7), the kernel's cgroup-v1/memory.rst,
cgroup-v2.rst and hugetlb.rst, systemd's CONTAINER_INTERFACE.
"""

import json
import math
import os
import sys
from pathlib import Path

MIB = 2**20
UNLIMITED_V1 = 2**60  # cgroup v1 writes "no limit" as a number near 2^63
# Virtual disks always report themselves as rotational. Treating them as flash is the cheaper mistake.
VIRTUAL_DISKS = ("vd", "xvd")


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _cgroup_directories(root: Path, controller: str) -> list[Path]:
    """Return this process's cgroup and its ancestors, for version 2 and for a version 1 controller."""
    found = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        hierarchy, controllers, own = line.split(":", 2)
        if hierarchy == "0":
            mounts = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
        elif controller in controllers.split(","):
            mounts = [root / "sys/fs/cgroup" / controllers, root / "sys/fs/cgroup" / controller]
        else:
            continue
        parts = [part for part in own.split("/") if part not in ("", "..")]
        for mount in mounts:
            found += [mount.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]
    return found or [root / "sys/fs/cgroup", root / "sys/fs/cgroup" / controller]


def memory_mb(root: Path) -> int:
    """Return MemTotal or the lowest cgroup limit of this process, in MiB."""
    limits = []
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            limits.append(int(line.split()[1]) * 1024)
    for directory in _cgroup_directories(root, "memory"):
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
            text = _read(directory / name)
            if text.isdigit() and 0 < int(text) < UNLIMITED_V1:
                limits.append(int(text))
    return min(limits, default=0) // MIB


def cpus(root: Path) -> int:
    """Return the CPUs of this process's affinity mask, or a lower cgroup quota, rounded up."""
    counts = [float(len(os.sched_getaffinity(0)))]
    for directory in _cgroup_directories(root, "cpu"):
        quota, _, period = _read(directory / "cpu.max").partition(" ")
        if not quota:
            quota, period = _read(directory / "cpu.cfs_quota_us"), _read(directory / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit():
            counts.append(int(quota) / int(period))
    return max(1, math.ceil(min(counts)))


def container(root: Path) -> bool:
    """Return whether this is a container, from the marks of systemd, podman and docker."""
    marks = ("run/systemd/container", "run/.containerenv", ".dockerenv")
    if any((root / mark).exists() for mark in marks):
        return True
    try:
        environment = (root / "proc/1/environ").read_bytes()
    except OSError:
        environment = b""
    return any(item.startswith(b"container=") for item in environment.split(b"\0"))


def storage(root: Path, device: int) -> str:
    """Return hdd, ssd or nvme for a device number; for a device on several disks, the slowest kind."""
    start = root / "sys/dev/block" / f"{os.major(device)}:{os.minor(device)}"
    kinds = [_disk_kind(disk) for disk in _disks(start.resolve())] if start.exists() else []
    for kind in ("hdd", "ssd", "nvme"):
        if kind in kinds:
            return kind
    return "ssd"  # overlay or network: unknown; flash is more likely


def _disks(block: Path) -> list[Path]:
    slaves = sorted((block / "slaves").glob("*"))
    if slaves:
        return [disk for slave in slaves for disk in _disks(slave.resolve())]
    return [block if (block / "queue").is_dir() else block.parent]


def _disk_kind(disk: Path) -> str:
    if disk.name.startswith("nvme"):
        return "nvme"
    rotates = _read(disk / "queue/rotational") == "1" and not disk.name.startswith(VIRTUAL_DISKS)
    return "hdd" if rotates else "ssd"


def huge_pages(root: Path) -> int:
    """Return the reserved 2 MiB pages, or a lower hugetlb cgroup limit."""
    text = _read(root / "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
    pages = int(text) if text.isdigit() else 0
    for directory in _cgroup_directories(root, "hugetlb"):
        for name in ("hugetlb.2MB.max", "hugetlb.2MB.limit_in_bytes"):
            limit = _read(directory / name)
            if limit.isdigit():
                pages = min(pages, int(limit) // (2 * MIB))
    return pages


def _file_system_mb(path: Path) -> "int | None":
    try:
        status = os.statvfs(path)
    except OSError:
        return None
    return status.f_blocks * status.f_frsize // MIB


def detect(data: str = "/var/lib/postgresql", root: Path = Path("/")) -> "dict[str, object]":
    """Return the facts; `data` is the data directory, whose nearest existing parent is examined."""
    place = Path(data)
    while not place.exists():
        place = place.parent
    return {
        "memory_mb": memory_mb(root),
        "cpus": cpus(root),
        "storage": storage(root, place.stat().st_dev),
        "container": container(root),
        "shm_mb": _file_system_mb(root / "dev/shm"),
        "disk_mb": _file_system_mb(place),
        "huge_pages": huge_pages(root),
    }


def installed(root: Path = Path("/")) -> "dict[str, object]":
    """Return the newest installed PostgreSQL major and its pgvector version; empty if none is installed."""
    majors = [int(path.name) for path in (root / "usr/lib/postgresql").glob("*") if path.name.isdigit()]
    if not majors:
        return {}
    found: dict[str, object] = {"postgresql_major": max(majors)}
    control = root / f"usr/share/postgresql/{max(majors)}/extension/vector.control"
    for line in _read(control).splitlines():
        name, _, value = line.partition("=")
        if name.strip() == "default_version":
            found["pgvector_version"] = value.strip().strip("'")
    return found


if __name__ == "__main__":
    print(json.dumps(detect(sys.argv[1] if len(sys.argv) > 1 else "/var/lib/postgresql")))  # noqa: T201 - a script on standard input has no other output
