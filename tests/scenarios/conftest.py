"""What the scenarios share: a clock that stands still, and the two stores."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scenarios.world import Hand, ManualClock, in_hand, manual_clock


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Handlers fail here by the hundred; their errors are looked at as records, not in the log."""
    monkeypatch.setattr(logging.getLogger("actionqueue"), "disabled", True)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> ManualClock:
    """The clock of every engine that the test opens."""
    return manual_clock(monkeypatch)


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str | Path:
    """Each of the stores."""
    return ":memory:" if request.param == "memory" else tmp_path / "jobs.db"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a store on SQLite is to be."""
    return tmp_path / "jobs.db"


@pytest.fixture
def hand(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hand]:
    """Runs plain handlers, that is, has the test end them."""
    with in_hand(monkeypatch) as made:
        yield made
