"""What there is to say of an occurrence where the clock on the wall is changed: in a note, for people.

Knows: the rules of ``fire_times``, from the outside. Must not know: which occurrences are of interest.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from actionqueue.core.cron import wall_times
from actionqueue.core.instants import SECOND_US, to_datetime
from actionqueue.core.rules import CronRule
from actionqueue.core.zones import known_zone, offset_at, stretches, year_of

DAY_S = 86_400


def changes(zone: str, after: int, until: int) -> Iterator[tuple[int, int]]:
    """(instant, by how much the wall clock jumps ahead) of each change after an instant up to another; microseconds."""
    for year in range(year_of(after // SECOND_US), year_of(until // SECOND_US) + 1):
        for each in stretches(zone, year):
            jump_us = (each.offset_s - each.offset_before_s) * SECOND_US
            if jump_us and after < each.start_s * SECOND_US <= until:
                yield each.start_s * SECOND_US, jump_us


def clock_note(rule: CronRule, nominal: int, previous: int | None) -> str:
    """What is special about the occurrence at ``nominal``, the one before it being ``previous``; empty when nothing is.

    >>> from actionqueue.core.timetables import Cron
    >>> daily = Cron("30 2 * * *", timezone="Europe/Berlin").rule()
    >>> clock_note(daily, 1_774_746_000_000_000, None)
    '02:30 does not exist that day: the clock goes forward to 03:00, and it happens then'
    """
    here = known_zone(rule.timezone)
    local = to_datetime(nominal).astimezone(here)
    at_s = nominal // SECOND_US
    offset_s, before_s = offset_at(here, at_s), offset_at(here, at_s - 1)
    times = wall_times(rule.expression)
    if times.is_fixed and offset_s > before_s and not times.count(at_s + offset_s, at_s + offset_s + 1):
        named_s = times.pick(at_s + before_s, 0) % DAY_S
        named = f"{named_s // 3600:02}:{named_s // 60 % 60:02}"
        return f"{named} does not exist that day: the clock goes forward to {local:%H:%M}, and it happens then"
    if _is_shown_twice(local):
        if times.is_fixed:
            return f"{local:%H:%M} comes twice that day, as the clock goes back; it happens the first time"
        which = "second" if local.fold else "first"
        return f"{local:%H:%M} comes twice that day, as the clock goes back; this is the {which} time"
    if previous is not None and (was_s := offset_at(here, previous // SECOND_US)) != offset_s:
        way = "forward" if offset_s > was_s else "back"
        return f"the clock has gone {way} since the one before: {_shown(was_s)} then, {_shown(offset_s)} now"
    return ""


def _is_shown_twice(local: datetime) -> bool:
    return local.replace(fold=0).utcoffset() != local.replace(fold=1).utcoffset()


def _shown(offset_s: int) -> str:
    sign, rest = ("-", -offset_s) if offset_s < 0 else ("+", offset_s)
    return f"UTC{sign}{timedelta(seconds=rest) // timedelta(hours=1)}" + (
        f":{rest // 60 % 60:02}" if rest % 3600 else ""
    )
