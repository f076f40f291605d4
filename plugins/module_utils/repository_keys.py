"""Lines of authorized_keys on a backup host: one for each key, which may run the repository's command alone. Pure."""

from __future__ import annotations

import base64
import binascii
import re

from . import repository_command

OLD_LINE = re.compile(
    r'command="case \\"\$SSH_ORIGINAL_COMMAND\\" in space\) exec df -B1 --output=avail [/A-Za-z0-9._-]+ ;; '
    r"pgbackrest\?\*:remote\) exec pgbackrest \$\{SSH_ORIGINAL_COMMAND#\* \} ;; "
    r'\*\) echo refused >&2; exit 1 ;; esac",restrict ssh-ed25519 [A-Za-z0-9+/]+=* postgres@[A-Za-z0-9_.-]+'
)
"""A line of earlier versions, whose account could add others: only lines of exactly this form are kept."""
KEY = re.compile(r"(?:^|\s)ssh-ed25519 ([A-Za-z0-9+/]+=*)(?=\s|$)")
ED25519 = b"\0\0\0\x0bssh-ed25519\0\0\0\x20"
"""How the key's bytes begin (RFC 8709, section 4); 32 bytes follow."""


def public_key(text: str) -> str:
    """Return type and base64 of a public key, without its comment. Raises ValueError for anything else."""
    words = text.split()
    if len(text.strip().splitlines()) != 1 or len(words) < 2 or words[0] != "ssh-ed25519":
        raise ValueError("expected one line: ssh-ed25519 BASE64 COMMENT")
    try:
        content = base64.b64decode(words[1], validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("the key is not base64") from None
    if not content.startswith(ED25519) or len(content) != len(ED25519) + 32:
        raise ValueError("the key is not an Ed25519 key")
    return f"ssh-ed25519 {words[1]}"


def line(key: str, stanza: str, path: str) -> str:
    """Return the line of authorized_keys for a stanza."""
    return f'command="{repository_command.PATH} {path} {stanza}",restrict {public_key(key)} postgres@{stanza}'


def key_of(entry: str) -> str:
    """Return the base64 of the key in a line of authorized_keys, whatever its options and comment; "" without a key."""
    found = KEY.search(entry)
    return found[1] if found and not entry.lstrip().startswith("#") else ""


def entries(text: str, wanted: str) -> str:
    """Return authorized_keys with this line as the only one of its key; lines of other keys stay."""
    lines, key = text.splitlines(), key_of(wanted)
    if [each for each in lines if key_of(each) == key] == [wanted]:
        return text
    return "".join(f"{each}\n" for each in [*(each for each in lines if key_of(each) != key), wanted])


def strangers(text: str, wanted: str) -> list[str]:
    """Return the other keys whose comment names the stanza of this line."""
    comment = wanted.split()[-1]
    others = [each for each in text.splitlines() if key_of(each) not in ("", key_of(wanted))]
    return [f"ssh-ed25519 {key_of(each)}" for each in others if each.split()[-1] == comment]
