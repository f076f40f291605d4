"""The image of a sandbox host: a bare Debian with systemd, sshd and what Ansible needs, made by mmdebstrap.

The recipe is pure, and its hash is in the image's tag: clones of the project share an image, and a changed recipe
makes a new one. Only a complete tarball is imported; PostgreSQL is never in it, for hosts must be bare.
"""

import hashlib
import shlex
from collections.abc import Generator
from pathlib import Path

from pyinfra.api.operation import operation

from provision.controller.mirror import Mirror
from provision.distributions import Distribution

REPOSITORY = "localhost/provision-sandbox"
VAGRANT_REPOSITORY = "localhost/provision-vagrant"  # made of the former, with Vagrant's user
ADMIN = "provision"
CERTIFICATES = Path("/usr/local/share/ca-certificates")
BUILD_FOLDER = "/var/cache/provision-sandbox"
BUILD_LOCK = "/run/lock/provision-sandbox-build.lock"  # flock of the build itself: it may outlive us
INCLUDE = (
    "ca-certificates",
    "dbus",
    "iproute2",
    "openssh-server",
    "procps",
    "python3",
    "python3-apt",
    "sudo",
    "systemd",
    "systemd-sysv",
)
# Each host makes its own SSH key when it first boots; a key in the image would be the same for all.
HOST_KEY = "/etc/ssh/ssh_host_ed25519_key"
HOST_KEY_UNIT = f"""[Service]
ExecStartPre=
ExecStartPre=/bin/sh -c 'test -s {HOST_KEY} || ssh-keygen -q -t ed25519 -N "" -f {HOST_KEY}'
ExecStartPre=/usr/sbin/sshd -t
"""
HOST_KEY_HOOKS = (
    'rm -f "$1"/etc/ssh/ssh_host_*',
    'mkdir -p "$1/etc/systemd/system/ssh.service.d"',
    f'printf %s {shlex.quote(HOST_KEY_UNIT)} > "$1/etc/systemd/system/ssh.service.d/host-key.conf"',
)
CERTIFICATE_HOOKS = (
    f'if test -d {CERTIFICATES}; then cp -r {CERTIFICATES}/. "$1{CERTIFICATES}/"; fi',
    'chroot "$1" update-ca-certificates >&2',
)
HOOKS = (
    *HOST_KEY_HOOKS,
    f'chroot "$1" useradd --create-home --shell /bin/bash {ADMIN}',
    f'chroot "$1" install -d -m 0700 -o {ADMIN} -g {ADMIN} /home/{ADMIN}/.ssh',
    f"""printf '%s\\n' '{ADMIN} ALL=(ALL) NOPASSWD: ALL' > "$1/etc/sudoers.d/{ADMIN}\"""",
    f'chmod 0440 "$1/etc/sudoers.d/{ADMIN}" && chroot "$1" visudo -cq',
    *CERTIFICATE_HOOKS,
)


def build_command(mirror: Mirror, codename: str) -> list[str]:
    """Return mmdebstrap's words without the target file. Pure."""
    options = ('Acquire::Languages "none"', *mirror.apt_options)
    return [
        *("mmdebstrap", "--mode=root", "--variant=minbase", "--format=tar"),
        f"--include={','.join(INCLUDE)}",
        "--dpkgopt=force-unsafe-io",  # a disposable host need not survive a power cut; installs are faster
        *(f"--aptopt={option}" for option in options),
        *(f"--customize-hook={hook}" for hook in HOOKS),
        *(codename, "-"),
        *mirror.sources(codename),
    ]


def tag(distribution: Distribution, mirror: Mirror, certificates: dict[str, bytes]) -> str:
    """Return the image's full name: its hash changes with every word of the recipe and every local CA. Pure."""
    digest = hashlib.sha256("\0".join(build_command(mirror, distribution.codename)).encode())
    for name, content in sorted(certificates.items()):
        digest.update(name.encode() + b"\0" + content)
    return f"{REPOSITORY}:{distribution.key}-{digest.hexdigest()[:12]}"


def local_certificates() -> dict[str, bytes]:
    """Return the CA certificates that the administrator of this machine added, by file name."""
    return {path.name: path.read_bytes() for path in CERTIFICATES.rglob("*.crt")} if CERTIFICATES.is_dir() else {}


@operation()
def build(image: str, mirror: Mirror, codename: str) -> Generator[str]:
    """Make the image. What a killed build left is removed by the next, which waits for one that still works."""
    tar = f"{BUILD_FOLDER}/{codename}.tar"
    change = "--change 'CMD [\"/sbin/init\"]' --change 'STOPSIGNAL SIGRTMIN+3'"
    script = f"""set -e
podman image exists {image} && exit 0
trap 'rm -rf {BUILD_FOLDER}' EXIT
rm -rf {BUILD_FOLDER}
mkdir -m 0755 {BUILD_FOLDER}
TMPDIR={BUILD_FOLDER} {shlex.join(build_command(mirror, codename))} > {tar}.partial
mv {tar}.partial {tar}
podman import --quiet {change} {tar} {image}
"""
    yield shlex.join(["flock", BUILD_LOCK, "sh", "-c", script])


@operation()
def remove(images: list[str]) -> Generator[str]:
    """Remove images by their ids."""
    if images:
        yield shlex.join(["podman", "rmi", "--force", *images])
