"""Sandbox image: a minimal Debian with systemd, sshd and Ansible's requirements, built by mmdebstrap.

The recipe is pure and its hash is part of the image's tag: clones of the project share an image, and a changed recipe
builds a new one. Only a complete tarball is imported. The image does not contain PostgreSQL. Images derived from it add
Vagrant's user, or packages that all hosts of a caller need.
"""

import hashlib
import shlex
from collections.abc import Generator, Sequence
from pathlib import Path

from pyinfra.api.operation import operation

from provision.controller.mirror import Mirror
from provision.distributions import Distribution

REPOSITORY = "localhost/provision-sandbox"
VAGRANT_REPOSITORY = "localhost/provision-vagrant"  # the sandbox image plus Vagrant's user
PACKAGES_REPOSITORY = "localhost/provision-packages"  # the sandbox image plus packages
REPOSITORIES = (VAGRANT_REPOSITORY, PACKAGES_REPOSITORY, REPOSITORY)
"""Derived images first: removing a parent image would only untag it."""
ADMIN = "provision"
CERTIFICATES = Path("/usr/local/share/ca-certificates")
BUILD_FOLDER = "/var/cache/provision-sandbox"
BUILD_LOCK = "/run/lock/provision-sandbox-build.lock"  # flock held by the build, which may outlive this process
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
# Each host generates its SSH key at its first boot; a key in the image would be shared by all.
HOST_KEY = "/etc/ssh/ssh_host_ed25519_key"
HOST_KEY_UNIT = f"""[Service]
ExecStartPre=
ExecStartPre=/bin/sh -c 'test -s {HOST_KEY} || ssh-keygen -q -t ed25519 -N "" -f {HOST_KEY}'
ExecStartPre=/usr/sbin/sshd -t
"""


def _drop_in(unit: str, name: str, text: str) -> tuple[str, str]:
    folder = f"$1/etc/systemd/system/{unit}.d"
    return f'mkdir -p "{folder}"', f'printf %s {shlex.quote(text)} > "{folder}/{name}"'


HOST_KEY_HOOKS = ('rm -f "$1"/etc/ssh/ssh_host_*', *_drop_in("ssh.service", "host-key.conf", HOST_KEY_UNIT))
# A container without the right to mount cannot start HAProxy's unit otherwise. HAProxy's own log is missing there.
BALANCER_HOOKS = _drop_in("haproxy.service", "sandbox.conf", "[Service]\nBindReadOnlyPaths=\n")
CERTIFICATE_HOOKS = (
    f'if test -d {CERTIFICATES}; then cp -r {CERTIFICATES}/. "$1{CERTIFICATES}/"; fi',
    'chroot "$1" update-ca-certificates >&2',
)
HOOKS = (
    *HOST_KEY_HOOKS,
    *BALANCER_HOOKS,
    f'chroot "$1" useradd --create-home --shell /bin/bash {ADMIN}',
    f'chroot "$1" install -d -m 0700 -o {ADMIN} -g {ADMIN} /home/{ADMIN}/.ssh',
    f"""printf '%s\\n' '{ADMIN} ALL=(ALL) NOPASSWD: ALL' > "$1/etc/sudoers.d/{ADMIN}\"""",
    f'chmod 0440 "$1/etc/sudoers.d/{ADMIN}" && chroot "$1" visudo -cq',
    *CERTIFICATE_HOOKS,
)


def build_command(mirror: Mirror, codename: str) -> list[str]:
    """Return the mmdebstrap command, which writes to stdout. Pure."""
    options = ('Acquire::Languages "none"', *mirror.apt_options)
    return [
        *("mmdebstrap", "--mode=root", "--variant=minbase", "--format=tar"),
        f"--include={','.join(INCLUDE)}",
        "--dpkgopt=force-unsafe-io",  # faster; disposable hosts need not survive a power failure
        *(f"--aptopt={option}" for option in options),
        *(f"--customize-hook={hook}" for hook in HOOKS),
        *(codename, "-"),
        *mirror.sources(codename),
    ]


def tag(distribution: Distribution, mirror: Mirror, certificates: dict[str, bytes]) -> str:
    """Return the image's full name, with a hash of the recipe and all local CA certificates. Pure."""
    digest = hashlib.sha256("\0".join(build_command(mirror, distribution.codename)).encode())
    for name, content in sorted(certificates.items()):
        digest.update(name.encode() + b"\0" + content)
    return f"{REPOSITORY}:{distribution.key}-{digest.hexdigest()[:12]}"


def local_certificates() -> dict[str, bytes]:
    """Return the locally installed CA certificates of this machine, by file name."""
    return {path.name: path.read_bytes() for path in CERTIFICATES.rglob("*.crt")} if CERTIFICATES.is_dir() else {}


def build_script(image: str, mirror: Mirror, codename: str) -> str:
    """Return the shell script that builds an image, unless it exists. Pure."""
    tar = f"{BUILD_FOLDER}/{codename}.tar"
    change = "--change 'CMD [\"/sbin/init\"]' --change 'STOPSIGNAL SIGRTMIN+3'"
    return f"""# shellcheck disable=SC2016  # hooks expand their own $1
set -e
podman image exists {image} && exit 0
trap 'rm -rf {BUILD_FOLDER}' EXIT
rm -rf {BUILD_FOLDER}
mkdir -m 0755 {BUILD_FOLDER}
TMPDIR={BUILD_FOLDER} {shlex.join(build_command(mirror, codename))} > {tar}.partial
mv {tar}.partial {tar}
podman import --quiet {change} {tar} {image}
"""


@operation()
def build(image: str, mirror: Mirror, codename: str) -> Generator[str]:
    """Build the image, after any running build and after removing the files of a killed one."""
    yield shlex.join(["flock", BUILD_LOCK, "sh", "-c", build_script(image, mirror, codename)])


def containerfile(base: str, packages: Sequence[str], indexes: str) -> str:
    """Return the recipe of the sandbox image `base` plus packages, without a database cluster. Pure.

    `indexes` is the hash of the archive's package indexes: an archive with newer packages makes a new image. No package
    may have a unit that starts at boot.
    """
    no_cluster = "/etc/postgresql-common/createcluster.d/00-image.conf"
    steps = (
        f"install -D /dev/stdin {no_cluster}",
        "apt-get -qq update",
        f"DEBIAN_FRONTEND=noninteractive apt-get -qqy install --no-install-recommends {shlex.join(packages)}",
        "apt-get clean",
        f"rm {no_cluster}",
    )
    return (
        f"FROM {base}\nLABEL provision.indexes={indexes}\nRUN echo create_main_cluster = false | {' && '.join(steps)}\n"
    )


def derived_tag(repository: str, os_name: str, recipe: str) -> str:
    """Return the full name of a derived image, with a hash of its recipe. Pure."""
    return f"{repository}:{os_name}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"


@operation()
def derive(tag: str, recipe: str) -> Generator[str]:
    """Build a derived image from a recipe on standard input, without a build context, after any running build."""
    words = ["podman", "build", "--quiet", "--isolation=chroot", f"--tag={tag}", "-"]
    script = f"podman image exists {tag} || printf %s {shlex.quote(recipe)} | {shlex.join(words)}"
    yield shlex.join(["flock", BUILD_LOCK, "sh", "-c", script])


@operation()
def remove(images: list[str]) -> Generator[str]:
    """Remove images by id."""
    if images:
        yield shlex.join(["podman", "rmi", "--force", *images])
