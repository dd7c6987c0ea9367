"""Fire times: when a schedule is due, as arithmetic on instants.

Knows: series of instants, wall-clock times, and how the two meet where a zone changes its offset. Must not know:
policies, runs, misfires, or what time it is. Instants are integer microseconds since the epoch, UTC; fire times of a
``CronTimes`` are whole seconds.

Daylight saving, as Debian's cron has it. Within a stretch of constant offset (``zones``) each wall-clock time is one
instant. Where a stretch meets the next:

- *The clock goes forward* (a gap on the wall). Of times of day in the gap, one fires, at the end of the gap: at the
  first instant of the new stretch. Steps of a running clock do not fire, for the clock never showed them.
- *The clock goes back* (an overlap). Times of day fire in the old stretch, and so once. Steps fire in both.

So a stretch owns a range of wall-clock times, plus at most one instant at its head, and every question is a sum over
stretches. ``cronsim`` walks the clock instead and agrees, apart from slips that docs/schedules.md lists.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from actionqueue.core.cron import YEAR_MAX, WallTimes
from actionqueue.core.instants import SECOND_US, SUBMIT_INSTANT_MAX
from actionqueue.core.zones import END_S, Stretch, stretches, year_of, year_start_s


class Timetable(Protocol):
    """The nominal fire times of one schedule: strictly increasing instants, in microseconds since the epoch, UTC."""

    def next_after(self, t: int) -> int | None:
        """The first fire time after ``t``."""
        ...

    def last_until(self, t: int) -> int | None:
        """The last fire time at or before ``t``."""
        ...

    def count(self, after: int, until: int) -> int:
        """How many fire times are after ``after``, and at or before ``until``."""
        ...

    def nth_after(self, t: int, n: int) -> int | None:
        """The ``n``-th fire time after ``t``, from 1."""
        ...


class RepeatTimes:
    """``total`` instants from ``first_us`` on, ``every_us`` apart; none after the year 9999."""

    __slots__ = ("_every_us", "_first_us", "_total")

    def __init__(self, *, first_us: int, every_us: int, total: int) -> None:
        self._first_us = first_us
        self._every_us = every_us
        self._total = min(total, max(0, (SUBMIT_INSTANT_MAX - first_us) // every_us + 1))

    def next_after(self, t: int) -> int | None:
        """The first fire time after ``t``."""
        return self.nth_after(t, 1)

    def last_until(self, t: int) -> int | None:
        """The last fire time at or before ``t``."""
        due = self._due(t)
        return self._first_us + (due - 1) * self._every_us if due else None

    def count(self, after: int, until: int) -> int:
        """How many fire times are after ``after``, and at or before ``until``."""
        return max(0, self._due(until) - self._due(after))

    def nth_after(self, t: int, n: int) -> int | None:
        """The ``n``-th fire time after ``t``, from 1."""
        index = self._due(t) + n - 1
        return self._first_us + index * self._every_us if index < self._total else None

    def _due(self, t: int) -> int:
        """How many fire times are at or before ``t``."""
        return min(self._total, max(0, (t - self._first_us) // self._every_us + 1))


class _Share(NamedTuple):
    """What one stretch adds to the fire times: its first second if ``head`` is 1, then a range of the wall clock."""

    head: int
    wall_from_s: int
    wall_until_s: int
    total: int


class CronTimes:
    """The instants at which the wall clock of a zone shows one of ``times``; from ``first_us`` to ``last_us``."""

    __slots__ = ("_first_s", "_last_s", "_times", "_zone")

    def __init__(self, times: WallTimes, zone: str, *, first_us: int, last_us: int | None) -> None:
        self._times = times
        self._zone = zone
        # a zone carries a day into the year before or after at most
        self._first_s = max(-(-first_us // SECOND_US), year_start_s(times.first_year - 1))
        self._last_s = min(END_S if last_us is None else last_us // SECOND_US, year_start_s(times.last_year + 2) - 1)

    def next_after(self, t: int) -> int | None:
        """The first fire time after ``t``."""
        return self.nth_after(t, 1)

    def last_until(self, t: int) -> int | None:
        """The last fire time at or before ``t``."""
        until_s = self._until(t)
        for stretch in self._backward(until_s):
            share = self._share(stretch, self._first_s, until_s)
            if share.total:
                return self._pick(stretch, share, share.total - 1)
        return None

    def count(self, after: int, until: int) -> int:
        """How many fire times are after ``after``, and at or before ``until``."""
        from_s, until_s = self._from(after), self._until(until)
        return sum(self._share(stretch, from_s, until_s).total for stretch in self._forward(from_s, until_s))

    def nth_after(self, t: int, n: int) -> int | None:
        """The ``n``-th fire time after ``t``, from 1."""
        from_s, until_s = self._from(t), self._last_s + 1
        for stretch in self._forward(from_s, until_s):
            share = self._share(stretch, from_s, until_s)
            if n <= share.total:
                return self._pick(stretch, share, n - 1)
            n -= share.total
        return None

    def _from(self, after: int) -> int:
        """The first second that may be a fire time."""
        return max(after // SECOND_US + 1, self._first_s)

    def _until(self, until: int) -> int:
        """The second behind the last one that may be a fire time."""
        return min(until // SECOND_US, self._last_s) + 1

    def _forward(self, from_s: int, until_s: int) -> Iterator[Stretch]:
        """The stretches that have a second in the range and may have fire times, in order."""
        if from_s < until_s:
            for year in self._fertile(range(year_of(from_s), year_of(until_s - 1) + 1)):
                yield from (
                    each for each in stretches(self._zone, year) if each.start_s < until_s and each.end_s > from_s
                )

    def _backward(self, until_s: int) -> Iterator[Stretch]:
        """The same from the end of the range to its beginning."""
        if self._first_s < until_s:
            for year in self._fertile(range(year_of(until_s - 1), year_of(self._first_s) - 1, -1)):
                yield from reversed(stretches(self._zone, year))

    def _fertile(self, years: range) -> Iterator[int]:
        """The UTC years which have a matching day, or whose neighbours have one: the zone may carry it across."""
        days = self._times.days
        return (year for year in years if any(days(each) for each in (year, year - 1, min(year + 1, YEAR_MAX))))

    def _share(self, stretch: Stretch, from_s: int, until_s: int) -> _Share:
        """What a stretch has between two instants."""
        times, offset_s = self._times, stretch.offset_s
        wall_start_s, wall_shown_s = stretch.start_s + offset_s, stretch.start_s + stretch.offset_before_s
        wall_from_s, wall_until_s = from_s + offset_s, min(until_s, stretch.end_s) + offset_s
        head = 0
        if not times.is_fixed:
            wall_from_s = max(wall_from_s, wall_start_s)
        elif wall_shown_s < wall_start_s and from_s <= stretch.start_s < until_s:
            head = min(1, times.count(wall_shown_s, wall_start_s + 1))
            wall_from_s = wall_start_s + 1
        else:
            wall_from_s = max(wall_from_s, wall_start_s, wall_shown_s)
        return _Share(head, wall_from_s, wall_until_s, head + times.count(wall_from_s, wall_until_s))

    def _pick(self, stretch: Stretch, share: _Share, index: int) -> int:
        if index < share.head:
            return stretch.start_s * SECOND_US
        return (self._times.pick(share.wall_from_s, index - share.head) - stretch.offset_s) * SECOND_US
