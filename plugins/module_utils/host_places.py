"""Facts about the place of a new cluster, writable file systems, root's PATH, and locales.

Reads only; standard library only.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

from .program import HUNG, MISSING, run

WRITTEN = ("/etc", "/usr", "/var", "/var/lib")
"""Directories that packages and roles write to."""
PROGRAMS = ("ldconfig", "runuser")
"""Programs of /usr/sbin, which dpkg and the roles find by root's PATH."""
CAP_NET_ADMIN = 12
"""Bit of the capability in /proc/PID/status (linux/capability.h)."""
SHOWN = 3
MOUNTS = Path("/proc/self/mountinfo")


def data_directory(data: Path) -> dict[str, Any]:
    """Describe the place of a data directory, which need not exist.

    `link`: the link that it is, or that one of its two parents is and that leads nowhere; `entries`: its first names,
    lost+found excepted; `closed`: parents that the user postgres cannot enter; `file_system` and `read_only`: of the
    file system that it is on, or would be.
    """
    parents = [data.parent.parent, data.parent]
    links = [path for path in (*parents, data) if path.is_symlink() and (path == data or not path.exists())]
    place = existing(data)
    names = sorted(os.listdir(data)) if data.is_dir() and not links else []  # noqa: PTH208 - names are enough
    return {
        "path": str(data),
        "link": str(links[0]) if links else "",
        "target": str(links[0].readlink()) if links else "",
        "file": data.exists() and not data.is_dir(),
        "mount": data.is_mount(),
        "entries": [name for name in names if name != "lost+found"][:SHOWN],
        "closed": [str(path) for path in parents if path.is_dir() and _closed(path)],
        "file_system": file_system(place),
        "read_only": read_only(place),
    }


def existing(path: Path) -> Path:
    """Return the path, or its nearest parent that exists."""
    while not path.exists():
        path = path.parent
    return path


def _closed(path: Path) -> bool:
    """Return whether postgres, who may not exist yet, cannot enter a directory."""
    about = path.stat()
    with suppress(KeyError):
        user = pwd.getpwnam("postgres")
        if about.st_uid == user.pw_uid:
            return not about.st_mode & stat.S_IXUSR
        if about.st_gid == user.pw_gid:
            return not about.st_mode & stat.S_IXGRP
    return not about.st_mode & stat.S_IXOTH


def file_system(path: Path) -> str:
    """Return the type of a path's file system, such as ext4; "" where it cannot be found out."""
    device = path.stat().st_dev
    with suppress(OSError):
        for line in MOUNTS.read_text().splitlines():
            words, _, rest = line.partition(" - ")
            if words.split()[2] == f"{os.major(device)}:{os.minor(device)}":
                return rest.split()[0]
    return ""


def read_only(path: Path) -> bool:
    """Return whether a path's file system is mounted read-only."""
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def unwritable() -> list[str]:
    """Name the directories that packages are installed to and that are read-only."""
    return [name for name in WRITTEN if read_only(Path(name))]


def free_mb(path: Path) -> int:
    """Return the free MiB of the file system that a path is on, or would be."""
    return shutil.disk_usage(existing(path)).free // 2**20


def free_for_packages() -> dict[str, int]:
    """Return the free MiB of the file systems that packages are downloaded and installed to."""
    return {name: free_mb(Path(name)) for name in ("/usr", "/var")}


def hidden_programs() -> str:
    """Return root's PATH where programs of /usr/sbin are not found by it, else ""."""
    return "" if all(map(shutil.which, PROGRAMS)) else os.environ.get("PATH", "")


def network_administration() -> bool:
    """Return whether this process may set firewall rules: root of many containers may not (capabilities(7))."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"^CapEff:\s*([0-9a-f]+)", status, re.M)
    return bool(found and int(found[1], 16) >> CAP_NET_ADMIN & 1)


def locales() -> list[str]:
    """Return the locales of this host as `locale -a` prints them: C, C.utf8, de_DE.utf8, german."""
    return run("locale", "-a").stdout.split()


def charmap(locale: str) -> str | None:
    """Return the encoding of a locale: UTF-8; "" for one that this host lacks, None where nothing tells."""
    done = run("locale", "charmap", LC_ALL=locale)
    if done.returncode in (MISSING, HUNG):
        return None
    return "" if re.search(r"cannot set", done.stderr, re.I) else done.stdout.strip()
