"""Fixtures of several files here."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture(params=["asyncio", "uvloop"])
def own_loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Own loops are asyncio's, or uvloop's where it is installed."""
    if request.param == "asyncio":
        monkeypatch.setitem(sys.modules, "uvloop", None)
    else:
        pytest.importorskip("uvloop")
