"""A naive model of cron on a wall clock, to compare fire times with: it looks at the clock at every tick.

The rules, as docs/schedules.md has them, in the form that needs no word about daylight saving:

- An expression of *times of day* (neither hour, minute nor second begins with a star): each time fires once, at the
  first moment at which the clock shows it **or a later one**. So one that the clock jumps over fires right after the
  jump, several that it jumps over fire as one, and one that the clock shows twice fires the first time.
- An expression of *steps* fires whenever the clock shows a matching time: never for a time that is jumped over, twice
  for one that is shown twice.

What an expression means is written out here by hand, as sets and a function of the date; nothing is parsed, and the
zones are asked through ``datetime`` alone.
"""

from __future__ import annotations

import calendar
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

MINUTE_S = 60
HOUR_S = 3600
DAY_S = 86_400


class Meaning(NamedTuple):
    """What an expression says, worked out by a person."""

    expression: str
    hours: frozenset[int]
    minutes: frozenset[int]
    seconds: frozenset[int]
    day: Callable[[date], bool]
    is_fixed: bool

    def names(self, wall: datetime) -> bool:
        """Whether the expression names this wall-clock time."""
        return (
            wall.second in self.seconds
            and wall.minute in self.minutes
            and wall.hour in self.hours
            and self.day(wall.date())
        )


class Tick(NamedTuple):
    """A moment, and what the wall clock shows then."""

    at_s: int
    wall: datetime


def offset_s(zone: ZoneInfo, at_s: int) -> int:
    """Wall clock minus UTC."""
    offset = datetime.fromtimestamp(at_s, zone).utcoffset()
    assert offset is not None
    return int(offset.total_seconds())


def changes(zone: ZoneInfo, from_s: int, until_s: int) -> Iterator[int]:
    """The first second of each new offset, found by looking every six hours and then closer."""
    for at_s in range(from_s, until_s, 6 * HOUR_S):
        low, high = at_s, at_s + 6 * HOUR_S
        if offset_s(zone, low) == offset_s(zone, high):
            continue
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if offset_s(zone, middle) == offset_s(zone, low) else (low, middle)
        yield high


def ticks(zone: ZoneInfo, from_s: int, until_s: int, step_s: int) -> list[Tick]:
    """Every moment of a window that is a multiple of ``step_s``, with what the clock shows."""
    first_s = -(-from_s // step_s) * step_s
    return [
        Tick(at_s, datetime.fromtimestamp(at_s, zone).replace(tzinfo=None, fold=0))
        for at_s in range(first_s, until_s, step_s)
    ]


def fire_times(meaning: Meaning, shown: list[Tick]) -> list[int]:
    """When an expression fires while the clock ticks, in seconds; the clock must not jump before the second tick."""
    if not meaning.is_fixed:
        return [tick.at_s for tick in shown if meaning.names(tick.wall)]
    step = timedelta(seconds=shown[1].at_s - shown[0].at_s)
    latest = shown[0].wall - step
    fired: list[int] = []
    for tick in shown:
        jumped_over = latest + step
        while jumped_over < tick.wall and not meaning.names(jumped_over):
            jumped_over += step
        if tick.wall > latest:
            if meaning.names(min(jumped_over, tick.wall)):
                fired.append(tick.at_s)
            latest = tick.wall
    return fired


def meaning(
    expression: str,
    *,
    hours: range | set[int] = range(24),
    minutes: range | set[int] = range(60),
    seconds: range | set[int] = range(1),
    day: Callable[[date], bool] = lambda _: True,
    is_fixed: bool = False,
) -> Meaning:
    """A ``Meaning`` with the common defaults: each minute of each day, steps of the clock."""
    return Meaning(expression, frozenset(hours), frozenset(minutes), frozenset(seconds), day, is_fixed)


# --- days, as a person reads them off a calendar ------------------------------------------------------------------


def is_sunday(day: date) -> bool:
    """Sunday."""
    return day.isoweekday() == 7


def is_last_of_month(day: date) -> bool:
    """L in the day of month."""
    return day.day == calendar.monthrange(day.year, day.month)[1]


def is_last_sunday(day: date) -> bool:
    """0L: no Sunday of the same month follows."""
    return is_sunday(day) and (day + timedelta(days=7)).month != day.month


def is_second_sunday(day: date) -> bool:
    """SUN#2."""
    return is_sunday(day) and 8 <= day.day <= 14


def is_first_or_weekend(day: date) -> bool:
    """1 in the day of month or 6,0 in the day of week: either, for neither begins with a star."""
    return day.day == 1 or day.isoweekday() in (6, 7)


def utc_s(text: str) -> int:
    """The instant of an ISO text without an offset, taken as UTC, in seconds."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())
