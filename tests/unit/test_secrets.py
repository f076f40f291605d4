"""SCRAM verifiers against values that others computed."""

import pytest

from provision.errors import UsageError
from provision.plan import secrets


def test_verifier_is_the_one_of_the_published_example() -> None:
    # RFC 7677, section 3: user "user", password "pencil"; the keys follow from its salt and iteration count. The
    # server signature of that exchange is made with this ServerKey.
    verifier = secrets.scram_verifier("pencil", "W22ZaJ0SNY7soEsUEjb6gQ==")
    assert verifier == (
        "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:"
        "wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
    )


def test_verifier_is_the_same_for_the_same_salt_and_another_for_another() -> None:
    salt, other = secrets.new_salt(), secrets.new_salt()
    assert secrets.scram_verifier("x" * 20, salt) == secrets.scram_verifier("x" * 20, salt)
    assert secrets.scram_verifier("x" * 20, salt) != secrets.scram_verifier("x" * 20, other)


@pytest.mark.parametrize("password", ["", "schlüssel", "tab\there", "line\n"])
def test_refuses_passwords_that_the_server_would_normalise(password: str) -> None:
    with pytest.raises(UsageError, match="this password cannot be used") as caught:
        secrets.scram_verifier(password, secrets.new_salt())
    assert password == "" or password not in str(caught.value)


def test_refuses_a_salt_that_is_not_base64() -> None:
    with pytest.raises(UsageError, match="openssl rand -base64 16"):
        secrets.scram_verifier("x" * 20, "not base64!")


def test_new_passwords_need_no_quoting_and_differ() -> None:
    made = {secrets.new_password() for _ in range(100)}
    assert len(made) == 100
    assert all(
        len(each) == 32 and set(each) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
        for each in made
    )
