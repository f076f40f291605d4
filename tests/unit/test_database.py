"""What is said of a URL never holds its password."""

import pytest

from provision.database import connect, describe
from provision.errors import DatabaseError


@pytest.mark.parametrize(
    "url", ["postgresql://minion:hunter2%zz@localhost/minion", "postgresql://minion:hunter2@[::1/minion"]
)
def test_unreadable_url_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(DatabaseError, match="cannot connect to PostgreSQL") as refused:
        connect(url, application="test")
    assert "percent-encode" in str(refused.value)
    assert "hunter2" not in str(refused.value)


def test_description_names_everything_but_the_password() -> None:
    said = describe("postgresql://minion:hunter2@db1:5433/agents")
    assert said == "host=db1 port=5433 dbname=agents user=minion"
