"""docs/schedules.md: its tables of examples are true."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

import pytest

from actionqueue import Cron
from actionqueue.core.cron import ALIASES
from tests.docs_programs import ROOT

PAGE = (ROOT / "docs" / "schedules.md").read_text(encoding="utf-8")
_EXAMPLE = re.compile(r"^\|[^|]*\| `([^`]+)` \| (\w+/\w+) \| ([0-9-]{10}) \| ([^|]+) \|$", re.MULTILINE)
_ALIAS = re.compile(r"^\| (`@[^|]+) \| `([^`]+)` \|$", re.MULTILINE)


class Example(NamedTuple):
    """One row of the table about daylight saving."""

    expression: str
    zone: str
    night: str
    fires: str


EXAMPLES = [Example(*match.groups()) for match in _EXAMPLE.finditer(PAGE)]


@pytest.mark.parametrize("example", EXAMPLES, ids=" ".join)
def test_an_example_of_a_night_with_a_change_of_the_clock_is_true(example: Example) -> None:
    midnight = datetime.fromisoformat(example.night).replace(tzinfo=ZoneInfo(example.zone))
    due = Cron(example.expression, timezone=example.zone).occurrences(
        midnight.astimezone(UTC) - timedelta(seconds=1), 20
    )
    texts = [each.isoformat() for each in due if each.date() == midnight.date() and 1 <= each.hour < 4]
    assert (" ".join(text[11:16] + text[19:] for text in texts) or "never") == example.fires


def test_the_times_of_a_day_that_was_left_out_fired_as_one_at_the_next_midnight() -> None:
    apia = ZoneInfo("Pacific/Apia")
    due = Cron("0 1,9 * * *", timezone="Pacific/Apia").occurrences(datetime(2011, 12, 29, 12, tzinfo=apia), 3)
    assert [f"{each:%d %H:%M}" for each in due] == ["31 00:00", "31 01:00", "31 09:00"]


def test_each_kind_of_example_is_there_for_both_zones() -> None:
    zones = [example.zone for example in EXAMPLES]
    assert zones.count("Europe/Berlin") >= 8
    assert zones.count("Australia/Lord_Howe") >= 6


def test_each_alias_is_told() -> None:
    told = {alias: meaning for names, meaning in _ALIAS.findall(PAGE) for alias in re.findall(r"@\w+", names)}
    assert told == ALIASES
