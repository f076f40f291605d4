"""Apply the kernel settings that site.yml placed for the server, as the boot does. Does IO, as root."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from provision.errors import HostError
from provision.plan.schema import Plan
from provision.system import run

FILE = Path("/etc/sysctl.d/60-provision-postgresql.conf")
PROGRAM = "/usr/lib/systemd/systemd-sysctl"
SYSCTL = Path("/proc/sys")
PAGES = "vm.nr_hugepages"
FRAGMENTED = (
    "the kernel reserved {huge_pages} of {expected} huge pages, because memory is fragmented or in use: the server "
    "uses ordinary pages until a reboot, which reserves all of them before other programs start"
)


@dataclass(frozen=True)
class Kernel:
    """The pages of 2 MiB that the kernel has reserved, and how many the plan expects."""

    changed: bool
    huge_pages: int
    expected: int


def warnings(done: Kernel) -> Iterator[str]:
    """Say when the kernel could not reserve all huge pages."""
    if done.huge_pages < done.expected:
        yield FRAGMENTED.format(**vars(done))


def apply(plan: Plan, *, again: bool = False) -> Kernel:
    """Apply the file if the kernel's values differ from the plan, or `again` in any case. Raises HostError.

    More huge pages than expected are no difference: they may be another program's. Where the memory is fragmented, the
    kernel reserves fewer than requested: then its pages are compacted and the file is applied again. A boot applies the
    file before the services, while memory is free.
    """
    requested = plan.server.kernel
    before = values(requested)
    if again or differs(requested, before):
        _apply_file()
        if lacks_pages(requested, values(requested)) and compact():
            _apply_file()
    after = values(requested)
    return Kernel(after != before, int(after.get(PAGES, 0)), int(requested.get(PAGES, 0)))


def _apply_file() -> None:
    done = run(PROGRAM, FILE, check=False)
    if not done.ok:
        raise HostError("the kernel settings cannot be applied", where=str(FILE), seen=done.last)


def compact(root: Path = SYSCTL) -> bool:
    """Ask the kernel to move pages until free memory is contiguous; False for a kernel that cannot.

    Takes up to a second for each few GB. Source: vm.rst of the kernel, compact_memory.
    """
    try:
        (root / "vm/compact_memory").write_text("1")
    except OSError:
        return False
    return True


def values(names: Iterable[str], root: Path = SYSCTL) -> dict[str, str]:
    """Read the present values of kernel settings."""
    return {name: (root / name.replace(".", "/")).read_text().strip() for name in names}


def differs(requested: Mapping[str, str], present: Mapping[str, str]) -> bool:
    """Return whether a value is not the requested one, or fewer huge pages are reserved than requested."""
    others = any(present[name] != value for name, value in requested.items() if name != PAGES)
    return others or lacks_pages(requested, present)


def lacks_pages(requested: Mapping[str, str], present: Mapping[str, str]) -> bool:
    """Return whether fewer huge pages are reserved than requested."""
    return PAGES in requested and int(present[PAGES]) < int(requested[PAGES])
