"""A store whose schedules name a time zone that this machine does not know."""

from __future__ import annotations

from collections.abc import Iterator
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import pytest

from actionqueue import ActionQueue, Cron
from actionqueue.core import schedules, zones


def forget() -> None:
    """What was derived from zone data is derived anew."""
    for each in (zones.zone, zones.stretches, schedules._next_of_cron):
        each.cache_clear()


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Iterator[ActionQueue]:
    """An engine with such a schedule: the zone was known when it was submitted."""

    def only_utc(name: str) -> ZoneInfo:
        if name != "UTC":
            raise ZoneInfoNotFoundError(name)
        return ZoneInfo(name)

    queue = ActionQueue(":memory:")

    @queue.task
    def note(what: str) -> str:
        return what

    with queue.running():
        queue.schedule("there", note.bind("x"), Cron("0 0 1 1 *", timezone="Europe/Berlin"))
        monkeypatch.setattr(zones, "ZoneInfo", only_utc)
        forget()
        yield queue
        monkeypatch.undo()
        forget()


def test_it_is_listed_audited_and_retired_all_the_same(queue: ActionQueue) -> None:
    (listed,) = queue.schedules()
    assert listed.rule == "0 0 1 1 * Europe/Berlin"
    (problem,) = queue.audit().inconsistent[0].problems
    assert "cannot be counted here: timezone: 'Europe/Berlin' is not a time zone" in problem

    queue.retire("there")
    assert queue.schedules() == []
    assert queue.stats() is not None


def test_an_engine_that_opens_it_says_that_it_waits(queue: ActionQueue, caplog: pytest.LogCaptureFixture) -> None:
    queue.close()

    with queue.running():
        assert queue.stats() is not None

    assert "schedule there waits, for this machine cannot tell when it occurs: timezone" in caplog.text
