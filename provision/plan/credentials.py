"""Judge secrets, certificates and the backup repository before anything changes. Pure.

No message contains a secret.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from provision.errors import UsageError
from provision.plan import names, network, secrets, tenants
from provision.plan.context import Context, Verdict, repositories, repository_kind

DEVELOPMENT_PASSWORD = "minion_secret"  # noqa: S105 - the published one, known so that it can be refused
MINIMUM_PASSWORD_LENGTH = 20
PAIR = ("password", "salt")
PREVIOUS = "previous"
"""Key of the pair that an unfinished rotation keeps: a host may still have it."""
HOSTS_SUFFIXES = (".yml", ".yaml", ".json", ".ini", ".cfg", ".toml")
"""Of the file of hosts in an inventory's directory."""
VERIFIER = re.compile(r"md5[0-9a-f]{32}$|SCRAM-SHA-256[$]")
"""A password hash as the server stores it; used as the password, it would lock out the application."""
LONGEST_CERTIFICATE_DAYS = 825  # the longest that clients on macOS accept


def certificates(v: Mapping[str, Any], context: Context, verdict: Verdict) -> None:
    """Refuse certificate variables that role tls cannot serve; the host judges the contents of the files."""
    if not v["tls_enabled"]:
        return
    network.names(v, verdict)
    length = len(v["tls_ca_passphrase"])
    if length < MINIMUM_PASSWORD_LENGTH:
        verdict.refusals.append(
            f"tls_ca_passphrase has {length} characters: expected at least {MINIMUM_PASSWORD_LENGTH}; "
            f"provision secrets init {_inventory(context)} generates it"
        )
    if not 1 <= v["tls_valid_days"] <= LONGEST_CERTIFICATE_DAYS:
        verdict.refusals.append(f"tls_valid_days is {v['tls_valid_days']}: expected 1 to {LONGEST_CERTIFICATE_DAYS}")
    provided = [f"tls_provided_{name}" for name in ("certificate", "key", "ca")]
    missing = [name for name in provided if not v[name]]
    if missing and len(missing) < len(provided):
        verdict.refusals.append(
            f"{', '.join(missing)}: empty; your own certificate needs all three of {', '.join(provided)}"
        )
    verdict.refusals += context.provided


def passwords(v: Mapping[str, Any], profile: Mapping[str, Any], context: Context, verdict: Verdict) -> None:
    """Refuse missing and weak passwords, bad salts, and vaults in clear text."""
    credentials, owner = v["database_credentials"], v["database_owner"]
    strict = not profile["access"]["published_passwords"]
    inventory = _inventory(context)
    vault = f"{inventory}/group_vars/all/vault.yml (ansible-vault edit)"
    if context.credentials:  # perhaps with inline values, which ansible-vault edit does not open
        vault = f"{context.credentials} (ansible-vault edit, or encrypt_string for inline values)"
    generate = "" if context.credentials else f"; provision secrets init {inventory} generates both"
    if strict:
        verdict.refusals += [f"{path} is not encrypted: ansible-vault encrypt {path}" for path in context.plain_vaults]
    needed = [role for each in v["database_tenants"] for role in tenants.role_names(each["name"])]
    for role in (*names.with_passwords(owner), *needed):
        if role not in credentials:
            verdict.refusals.append(
                f"database_credentials has no entry for {role}: set its password and its salt in {vault}{generate}"
            )
    known = Counter(str(each.get("password")) for each in credentials.values() if isinstance(each, Mapping))
    for role, secret in sorted(credentials.items()):
        given = secret if isinstance(secret, Mapping) else {}
        wrong = _wrong_types(role, secret)
        if wrong:
            verdict.refusals += [f"{problem}; in {vault}" for problem in wrong]
            continue
        try:
            secrets.check(given.get("password") or "", given.get("salt") or "")
        except UsageError as error:
            verdict.refusals.append(f"database_credentials.{role}: {error.what}; allowed: {error.allowed}; in {vault}")
            continue
        long = names.problem(role) if names.first_login(role) else ""
        if long:
            verdict.refusals.append(f"database_credentials has a second login {role!r}: {long}")
        if given.get(PREVIOUS):
            verdict.notices.append(
                f"the rotation of {role} is unfinished, and the vault keeps both passwords: provision secrets rotate "
                f"{inventory} {role} finishes it, with --undo it restores the previous password"
            )
        problem = _weakness(str(given["password"]), known) if strict else ""
        if problem:
            verdict.refusals.append(
                f"the password of {role} {problem}: set database_credentials.{role}.password in {vault}"
            )


def _wrong_types(role: str, secret: Any, known: tuple[str, ...] = (*PAIR, PREVIOUS)) -> list[str]:
    """Report values that are not text: YAML changes an unquoted number, date or yes (012 is 10, 1e5 is 100000.0)."""
    where = f"database_credentials.{role}"
    if not isinstance(secret, Mapping):
        return [f"{where} is a secret of type {type(secret).__name__}: expected a mapping with password and salt"]
    problems = [f"{where}.{key}: unknown key; allowed: {', '.join(known)}" for key in secret if key not in known]
    if PREVIOUS in known and PREVIOUS in secret:
        problems += _wrong_types(f"{role}.{PREVIOUS}", secret[PREVIOUS], PAIR)
    for key in PAIR:
        value = secret.get(key)
        if value is not None and not isinstance(value, str):
            problems.append(f"{where}.{key} is a secret of type {type(value).__name__}: expected text in quotes")
    if VERIFIER.match(str(secret.get("password"))):
        problems.append(f"{where}.password is a verifier (md5... or SCRAM-SHA-256...): expected the password itself")
    return problems


def _weakness(password: str, known: Mapping[str, int]) -> str:
    """Return what is wrong with a password; `known` counts each password of the vault."""
    if password == DEVELOPMENT_PASSWORD:
        return "is the published one of development"
    if len(password) < MINIMUM_PASSWORD_LENGTH:
        return f"has {len(password)} characters, at least {MINIMUM_PASSWORD_LENGTH} are required"
    if known[password] > 1:
        return "is also the password of another role"
    return ""


def backup(v: Mapping[str, Any], context: Context, verdict: Verdict) -> None:
    """Refuse a repository that cannot work or a retention that expires the last backup."""
    second = v["backup_second_s3"]
    local = v["backup_physical"] and repository_kind(v) == "local" and not second
    if local and not v["backup_allow_local_only"]:
        verdict.refusals.append(
            "the only backup repository would be on the host that it protects: put a host into the group backup of the "
            "inventory, set backup_s3, or accept it with backup_allow_local_only: true"
        )
    elif local:
        verdict.warnings.append(
            "the backup repository is on the host that it protects, and is lost with it: put a host into the group "
            "backup of the inventory, or set backup_s3"
        )
    length = len(v["backup_repository_passphrase"])
    if v["backup_physical"] and length < MINIMUM_PASSWORD_LENGTH:
        verdict.refusals.append(
            f"backup_repository_passphrase has {length} characters: expected at least {MINIMUM_PASSWORD_LENGTH}; "
            f"provision secrets init {_inventory(context)} generates it; keep a copy away from this host "
            "and the repository"
        )
    for name in ("backup_retention_full", "backup_retention_diff", "backup_dump_keep"):
        if v[name] < 1:
            verdict.refusals.append(f"{name} is {v[name]}: expected 1 or more, because the last backup never expires")
    for option in ("backup_s3", "backup_second_s3"):
        for name in ("bucket", "endpoint", "region", "key", "key_secret") if v[option] else ():
            if not v[option].get(name):
                verdict.refusals.append(f"{option}.{name} is empty: a bucket needs it")
    if second:
        _second(v, verdict)
    name = v["backup_repository_inventory_name"]
    if repository_kind(v) == "host" and name not in context.groups.get("all", ()):
        verdict.refusals.append(
            f"backup_repository_inventory_name is {name!r}: expected the name of {v['backup_repository_host']} in the "
            "inventory"
        )
    # Both roles write pgbackrest.conf, and the database's own is closed to the user that serves the repository.
    if v["backup_physical"] and repository_kind(v) == "host" and name in context.groups.get("database", ()):
        verdict.refusals.append(
            f"backup_repository_inventory_name is {name!r}, a host of the group database: put a host without a "
            "database into the group backup of the inventory, or set backup_s3"
        )


def _second(v: Mapping[str, Any], verdict: Verdict) -> None:
    """Refuse a second repository without a first one, or in the same place."""
    second = v["backup_second_s3"]
    if not v["backup_physical"]:
        verdict.refusals.append(
            "backup_second_s3 is set and backup_physical is false: a second repository copies the first one's backups; "
            "set backup_physical to true, or remove backup_second_s3"
        )
    first, *others = repositories(v)
    if first in others:
        verdict.refusals.append(
            f"backup_second_s3 is bucket {first[2]} at {first[1]}, path {first[3]}, where the first repository is: "
            "set another bucket, or another backup_second_s3.path"
        )
    for name in ("retention_full", "retention_diff"):
        if second.get(name) is not None and second[name] < 1:
            verdict.refusals.append(
                f"backup_second_s3.{name} is {second[name]}: expected 1 or more, because the last backup never expires"
            )
    length = len(second.get("passphrase") or "")
    if 0 < length < MINIMUM_PASSWORD_LENGTH:
        verdict.refusals.append(
            f"backup_second_s3.passphrase has {length} characters: expected at least {MINIMUM_PASSWORD_LENGTH}; leave "
            "it out to use backup_repository_passphrase"
        )


def _inventory(context: Context) -> str:
    """Return the inventory's directory: `secrets init` and group_vars need it even if -i names the file of hosts."""
    path = PurePosixPath(context.inventory[0] if context.inventory else "INVENTORY")
    return str(path.parent if path.suffix in HOSTS_SUFFIXES or path.name == "hosts" else path)
