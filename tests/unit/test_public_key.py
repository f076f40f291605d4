"""A mirror's public key reaches hosts as armoured text, whichever form the controller has."""

from pathlib import Path

import pytest
from ansible.errors import AnsibleFilterError

from plugins.filter.provision import provision_public_key

ARMOURED = """-----BEGIN PGP PUBLIC KEY BLOCK-----

mDME/wA=
-----END PGP PUBLIC KEY BLOCK-----
"""


@pytest.mark.parametrize("content", [ARMOURED.encode(), b"\x98\x33\x04\xff\x00"])
def test_gives_armoured_text(tmp_path: Path, content: bytes) -> None:
    key = tmp_path / "key"
    key.write_bytes(content)
    assert provision_public_key(str(key)) == ARMOURED


def test_refuses_what_is_no_key_and_what_is_not_there(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<html>not found</html>")
    with pytest.raises(AnsibleFilterError, match=r"page.html' holds no OpenPGP public key"):
        provision_public_key(str(page))
    with pytest.raises(AnsibleFilterError, match="none' cannot be read: No such file or directory"):
        provision_public_key(str(tmp_path / "none"))
