"""Reloading services for a certificate, where no service has to be asked."""

from __future__ import annotations

import pytest

from provision.host import tls
from tests import plans


def test_no_service_is_asked_without_systemd_or_without_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")  # as in a container without systemctl
    assert tls.serve(plans.sample(host={"systemd": False}, tls={"enabled": True})) == []
    assert tls.serve(plans.sample(host={"systemd": True}, tls={"enabled": False})) == []
