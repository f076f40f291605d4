"""A mirror's public key reaches hosts as armoured text, whichever form the controller has."""

from pathlib import Path

import pytest
from ansible.errors import AnsibleFilterError
from provision.controller.packages import armoured

from plugins.filter import filters
from provision.errors import HostError

ARMOURED = """-----BEGIN PGP PUBLIC KEY BLOCK-----

mDME/wA=
-----END PGP PUBLIC KEY BLOCK-----
"""


@pytest.mark.parametrize("content", [ARMOURED.encode(), b"\x98\x33\x04\xff\x00"])
def test_gives_armoured_text(tmp_path: Path, content: bytes) -> None:
    key = tmp_path / "key"
    key.write_bytes(content)
    assert armoured(key) == ARMOURED
    assert filters.public_key(str(key)) == ARMOURED


def test_refuses_a_file_that_is_no_key_and_one_that_is_missing(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<html>not found</html>")
    with pytest.raises(HostError, match="holds no OpenPGP public key"):
        armoured(page)
    with pytest.raises(AnsibleFilterError, match=r"page.html"):
        filters.public_key(str(page))
    with pytest.raises(AnsibleFilterError, match="No such file or directory"):
        filters.public_key(str(tmp_path / "none"))
