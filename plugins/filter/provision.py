"""Filters for templates and tasks: thin wrappers of the package, which does the work and is tested there."""

from __future__ import annotations

import base64
import datetime
import functools
import ipaddress
import os
import textwrap
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleFilterError

from provision import compatibility, tuning
from provision.controller import archive, local, packages, vault
from provision.controller.bundle import verify
from provision.errors import ProvisionError
from provision.plan import hba, secrets
from provision.plan import validate as preflight
from provision.tuning import pools, vector

LATER = "made by the run\n"  # in a plan, instead of a certificate that nobody has issued yet
LATER_KEY = "a key\n"  # another text, for what stands for a key is masked wherever it appears


def provision_preflight(host: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """Judge a probed host; see provision.plan.validate.judge."""
    return asdict(preflight.judge(host, wanted, datetime.datetime.now(datetime.UTC).date()))


def provision_access_rules(
    networks: list[str],
    tls: bool,
    socket_logins: list[dict[str, Any]],
    certificate_logins: list[dict[str, Any]],
    extra: list[dict[str, Any]],
) -> list[str]:
    """Give the lines of pg_hba.conf; see provision.plan.hba.rules."""
    found = hba.rules(
        tls=tls, networks=networks, socket_logins=socket_logins, certificate_logins=certificate_logins, extra=extra
    )
    return [str(rule) for rule in found]


def provision_role_options(roles: str) -> dict[str, Any]:
    """Read the options of every role below a folder from its argument specification.

    A default that is an expression is left out: in a play without its role nobody evaluates it, and as text it is of no
    other type.
    """
    found = {}
    for path in sorted(Path(roles).glob("*/meta/argument_specs.yml")):
        options = yaml.safe_load(path.read_text())["argument_specs"]["main"]["options"]
        for option in options.values():
            if "{{" in str(option.get("default", "")):
                del option["default"]
        found[path.parts[-3]] = options
    return found


def provision_scram(secret: dict[str, str]) -> str:
    """Turn a password and its salt into a SCRAM verifier."""
    try:
        return secrets.scram_verifier(secret["password"], secret["salt"])
    except ProvisionError as error:
        raise AnsibleFilterError(str(error)) from None


def provision_login_roles(roles: list[dict[str, Any]], credentials: dict[str, Any]) -> list[dict[str, Any]]:
    """Give each login role the verifier of its password, if it has one."""
    return [
        {**role, "verifier": provision_scram(credentials[role["name"]]) if role["name"] in credentials else None}
        for role in roles
    ]


def provision_plain_vaults(sources: list[str]) -> list[str]:
    """Name the vault files of inventories that are not encrypted."""
    return vault.plain_vaults(sources)


def provision_archive(package: str, folder: str) -> str:
    """Pack the package for hosts; see provision.controller.archive.pack."""
    return str(archive.pack(Path(package), Path(folder)))


def provision_end_of_life(major: int) -> bool:
    """Say whether a PostgreSQL major is maintained no more today."""
    return datetime.datetime.now(datetime.UTC).date() >= compatibility.POSTGRESQL[int(major)].end_of_life


def provision_minimum_pgbackrest(major: int, remote: bool) -> str:
    """Give the first release of pgBackRest that serves a major; see provision.compatibility.minimum_pgbackrest."""
    return compatibility.minimum_pgbackrest(int(major), remote=remote)


def provision_pgdg_packages(major: int, codename: str) -> list[str]:
    """Name what may come from PGDG; see provision.compatibility.pgdg_packages."""
    return compatibility.pgdg_packages(int(major), codename)


def provision_package_source(said: str, change: dict[str, str]) -> str:
    """Say why apt cannot read a package source; see provision.controller.packages.source."""
    return packages.source(said, change)


def provision_packages_failure(result: dict[str, Any]) -> str:
    """Say why apt could not install; see provision.controller.packages.failure."""
    return packages.failure("\n".join(str(result.get(part, "")) for part in ("msg", "stderr", "stdout")))


def provision_bundle(path: str, fingerprint: str = "") -> dict[str, Any]:
    """Verify a bundle and say what it holds; `problem` is empty, or why it must not be used."""
    try:
        file = Path(path).expanduser()
        about = file.stat() if path else None
        return _bundle(str(file), fingerprint, (about.st_size, about.st_mtime_ns) if about else ())
    except OSError as error:
        return {"problem": f"{path}: {error.strerror}"}


@functools.lru_cache(maxsize=4)
def _bundle(path: str, fingerprint: str, version: tuple[int, ...]) -> dict[str, Any]:
    """Verify a file once in a process, for as long as it is the same one."""
    del version
    try:
        found = asdict(verify.verified(Path(path), fingerprint))
        return {"problem": "", **{name: value for name, value in found.items() if name not in ("files", "versions")}}
    except ProvisionError as error:
        return {"problem": "; ".join(part for part in (error.what, error.where, error.seen, error.allowed) if part)}


def provision_read(path: str) -> str:
    """Read a file of the controller to the last byte: the lookup would strip its end."""
    return Path(path).expanduser().read_text()


def provision_provided_problems(files: dict[str, str]) -> list[str]:
    """Name files of the user's own certificate that cannot be read on the controller, and a key that others can."""
    found = []
    for name, path in files.items():
        try:
            with Path(path).expanduser().open() as stream:
                mode = os.fstat(stream.fileno()).st_mode & 0o777
        except OSError as error:
            found.append(f"tls_provided_{name} {path}: {error.strerror}")
            continue
        if name == "key" and mode & 0o077:
            found.append(f"tls_provided_{name} {path}: mode {mode:04o} lets others at the key: allowed is 0600")
    return found


def provision_public_key(path: str) -> str:
    """Read an OpenPGP public key of the controller, ASCII-armoured or binary, as armoured text."""
    try:
        key = Path(path).expanduser().read_bytes()
    except OSError as error:
        raise AnsibleFilterError(f"the public key {path!r} cannot be read: {error.strerror}") from None
    if key.lstrip().startswith(b"-----BEGIN PGP PUBLIC KEY BLOCK-----"):
        return key.decode()
    if key[:1] < b"\x80":  # every binary OpenPGP packet begins with this bit (RFC 9580, section 4.2)
        raise AnsibleFilterError(f"{path!r} holds no OpenPGP public key")
    # No checksum line: it is optional, and apt's own reader leaves it out.
    body = "\n".join(textwrap.wrap(base64.b64encode(key).decode(), 64))
    return f"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n{body}\n-----END PGP PUBLIC KEY BLOCK-----\n"


def provision_pgbouncer_version(host: dict[str, Any]) -> str:
    """Tell which PgBouncer a host has, or will have; see provision.compatibility.pgbouncer_version."""
    return compatibility.pgbouncer_version(host["package_versions"]["pgbouncer"], host["distribution_codename"])


def provision_pools(
    max_connections: int, wished: dict[str, int], given: dict[str, int], roles: list[dict[str, Any]]
) -> dict[str, Any]:
    """Fit the pools of roles into what the server has; see provision.tuning.pools.fit."""
    fitted = pools.fit(max_connections, wished, given, pools.limits(roles))
    return {**asdict(fitted), "total": fitted.total, "lookups": pools.LOOKUPS}


def provision_networks(networks: list[str], host: dict[str, Any]) -> list[str]:
    """Write out what pg_hba.conf's key words mean on a host, for a program that does not know them."""
    words = {"samenet": host["networks"], "samehost": []}
    return list(dict.fromkeys(each for network in networks for each in words.get(network, [network])))


def provision_passwords(credentials: dict[str, Any], roles: dict[str, Any]) -> dict[str, str]:
    """Give the password of each of these roles that has one."""
    return {role: credentials[role]["password"] for role in roles if role in credentials}


def provision_local_release(project: str) -> dict[str, Any]:
    """Tell what the controller's own release has of PostgreSQL and pgvector; see provision.controller.local.release."""
    try:
        return local.release(Path(project))
    except ProvisionError as error:
        raise AnsibleFilterError(str(error)) from None


def provision_file(pair: tuple[str, str]) -> dict[str, str]:
    """Shape a path and its text as host_files takes them."""
    return {"path": pair[0], "content": pair[1]}


def provision_alternative_name(name: str) -> str:
    """Write a name or an address as a certificate has it."""
    try:
        return f"IP:{ipaddress.ip_address(name)}"
    except ValueError:
        return f"DNS:{name}"


def provision_tls_directory(sources: list[str], playbooks: str, profile: str) -> str:
    """Give the folder of an environment's authority: that of the first inventory that is a file or a folder."""
    places = [path if path.is_dir() else path.parent for path in map(Path, sources) if path.exists()]
    return str((places or [Path(playbooks, "inventories", profile)])[0] / "tls")


def provision_trust(paths: list[str]) -> str:
    """Join certificates of authorities, each from its file on the controller; what is not there yet is left out."""
    found = [Path(path).expanduser() for path in paths if path]
    return "".join(path.read_text().strip() + "\n" for path in found if path.exists())


def provision_issued(names: list[str], keys: list[dict[str, Any]], signed: list[dict[str, Any]]) -> dict[str, Any]:
    """Give key and certificate by name, from the results of the loops that made them; a plan has none yet."""
    nothing: list[dict[str, Any]] = [{} for _ in names]
    return {
        name: {"key": key.get("privatekey", LATER_KEY), "certificate": certificate.get("certificate", LATER)}
        for name, key, certificate in zip(names, keys or nothing, signed or nothing, strict=True)
    }


def provision_with_texts(leaf: dict[str, Any], texts: dict[str, Any]) -> dict[str, Any]:
    """Give a certificate's description with the texts that are to be placed, as host_certificates judges them."""
    return {**leaf, "texts": texts[leaf["name"]]}


def provision_client_certificate(name: str, folder: str) -> dict[str, Any]:
    """Describe the certificate with which a database role logs in, as host_certificates judges it."""
    files = {"certificate": f"{folder}/{name}.crt", "key": f"{folder}/{name}.key"}
    return {"name": name, "common_name": name, "purpose": "client", "keeper": "", **files}


def provision_role_settings(pgvector: str) -> dict[str, str]:
    """Give the settings that searching roles begin with; see provision.tuning.vector.role_settings."""
    return {setting.name: setting.text for setting in vector.role_settings(pgvector)}


def provision_tune(host: dict[str, Any], profile: str, options: dict[str, Any]) -> dict[str, Any]:
    """Compute a host's settings; see provision.tuning.as_facts."""
    known = {field.name for field in fields(tuning.Host)}
    try:
        return tuning.as_facts({key: value for key, value in host.items() if key in known}, profile, **options)
    except ProvisionError as error:
        raise AnsibleFilterError(str(error)) from None


class FilterModule:
    """Names what Ansible may use."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Map every filter's name to its function."""
        return {
            "provision_access_rules": provision_access_rules,
            "provision_alternative_name": provision_alternative_name,
            "provision_archive": provision_archive,
            "provision_bundle": provision_bundle,
            "provision_client_certificate": provision_client_certificate,
            "provision_end_of_life": provision_end_of_life,
            "provision_file": provision_file,
            "provision_issued": provision_issued,
            "provision_provided_problems": provision_provided_problems,
            "provision_minimum_pgbackrest": provision_minimum_pgbackrest,
            "provision_package_source": provision_package_source,
            "provision_packages_failure": provision_packages_failure,
            "provision_pgdg_packages": provision_pgdg_packages,
            "provision_read": provision_read,
            "provision_public_key": provision_public_key,
            "provision_local_release": provision_local_release,
            "provision_login_roles": provision_login_roles,
            "provision_plain_vaults": provision_plain_vaults,
            "provision_networks": provision_networks,
            "provision_passwords": provision_passwords,
            "provision_pgbouncer_version": provision_pgbouncer_version,
            "provision_pools": provision_pools,
            "provision_preflight": provision_preflight,
            "provision_role_options": provision_role_options,
            "provision_role_settings": provision_role_settings,
            "provision_scram": provision_scram,
            "provision_tls_directory": provision_tls_directory,
            "provision_trust": provision_trust,
            "provision_tune": provision_tune,
            "provision_with_texts": provision_with_texts,
        }
