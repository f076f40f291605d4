"""A box of libvirt for Vagrant, made of the Debian mirror that this machine itself uses: a disk that boots by extlinux.

Does IO as root: mounts the disk that it makes through a loop device, and leaves nothing but the box. PostgreSQL is not
in it. `python -m tests.vagrant_libvirt.box debian13 debian13.box`, then `vagrant box add --name NAME debian13.box`.
"""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from provision.controller import image, mirror, vagrant
from provision.controller.bootstrap import read_public_key
from provision.distributions import by_key

DISK_GB = 10  # sparse: only what is written takes room
PARTITION_START = 2048 * 512  # of the first and only one, in bytes: where every partitioner begins
BOOT_CODE = Path("/usr/lib/syslinux/mbr/mbr.bin")
PACKAGES = (*image.INCLUDE, "initramfs-tools", "linux-image-cloud-amd64", "systemd-resolved", "udev")
NETWORK = "[Match]\nType=ether\n[Network]\nDHCP=ipv4\n"
# The links in / follow the newest kernel. The serial line is what `virsh console` shows.
EXTLINUX = """default debian
label debian
  linux /vmlinuz
  initrd /initrd.img
  append root=UUID={uuid} ro console=tty0 console=ttyS0
"""


def run(*words: str | Path, **options: object) -> str:
    settings = {"check": True, "stdout": subprocess.PIPE, "text": True, **options}
    done = subprocess.run([str(word) for word in words], **settings)  # type: ignore[call-overload]
    return str(done.stdout).strip()


def make(os_name: str, public_key: str, box: Path) -> None:
    """Make a box of a Debian release."""
    with tempfile.TemporaryDirectory(prefix="provision-box-", dir="/var/tmp") as name:  # /tmp may be memory
        folder = Path(name)
        disk = folder / "disk.raw"
        with disk.open("wb") as stream:
            stream.truncate(DISK_GB * 10**9)
        run("sfdisk", "--quiet", disk, input=f"label: dos\nstart={PARTITION_START // 512}, type=83, bootable\n")
        with disk.open("r+b") as stream:
            stream.write(BOOT_CODE.read_bytes())
        with mounted(disk, folder / "root") as (root, uuid):
            install(os_name, public_key, root, uuid)
        run("qemu-img", "convert", "-O", "qcow2", "-c", disk, folder / "box.img")
        (folder / "metadata.json").write_text(
            json.dumps({"provider": "libvirt", "format": "qcow2", "virtual_size": DISK_GB})
        )
        partial = box.with_name(f"{box.name}.partial")
        run("tar", "-C", folder, "-cf", partial.absolute(), "metadata.json", "box.img")
        partial.rename(box)


@contextmanager
def mounted(disk: Path, root: Path) -> Iterator[tuple[Path, str]]:
    """Make the file system of a disk, and give it mounted, with its UUID."""
    device = run("losetup", "--find", "--show", f"--offset={PARTITION_START}", disk)
    try:
        run("mkfs.ext4", "-q", "-O", "^64bit", device)  # extlinux reads no other
        root.mkdir()
        run("mount", device, root)
        try:
            yield root, run("blkid", "-p", "-s", "UUID", "-o", "value", device)
        finally:
            run("umount", root)
    finally:
        run("losetup", "--detach", device)


def install(os_name: str, public_key: str, root: Path, uuid: str) -> None:
    """Install Debian with a boot loader, a network and Vagrant's user."""
    source = mirror.find(platform.freedesktop_os_release()["VERSION_CODENAME"])
    codename = by_key(os_name).codename
    hooks = (
        *image.HOST_KEY_HOOKS,
        *image.CERTIFICATE_HOOKS,
        f'chroot "$1" sh -c {shlex.quote(vagrant.user_script(public_key))}',
        'chroot "$1" systemctl --quiet enable systemd-networkd systemd-resolved',
    )
    run(
        *("mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory", f"--include={','.join(PACKAGES)}"),
        *(f"--aptopt={option}" for option in source.apt_options),
        *(f"--customize-hook={hook}" for hook in hooks),
        *(codename, root),
        *source.sources(codename),
    )
    (root / "etc/machine-id").write_text("")  # each machine makes its own
    (root / "etc/fstab").write_text(f"UUID={uuid} / ext4 errors=remount-ro 0 1\n")
    (root / "etc/hostname").write_text("debian\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n")
    (root / "etc/resolv.conf").unlink(missing_ok=True)
    (root / "etc/resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")
    (root / "etc/systemd/network/80-dhcp.network").write_text(NETWORK)
    loader = root / "boot/extlinux"
    loader.mkdir()
    (loader / "extlinux.conf").write_text(EXTLINUX.format(uuid=uuid))
    run("extlinux", "--install", loader, stderr=subprocess.DEVNULL)


def vagrant_key() -> str:
    """Read the public key that Vagrant's package carries; Vagrant exchanges it at the first login."""
    found = [name for name in run("dpkg", "-L", "vagrant").splitlines() if name.endswith("/keys/vagrant.pub")]
    return read_public_key(Path(found[0]))


if __name__ == "__main__":
    make(sys.argv[1], vagrant_key(), Path(sys.argv[2]))
