"""What the engine's tests share."""

from __future__ import annotations

import logging

import pytest


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines are broken here on purpose; what they say of it is looked at where a test means it."""
    monkeypatch.setattr(logging.getLogger("actionqueue"), "disabled", True)
