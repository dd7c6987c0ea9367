"""Fire times around changes of the clock, against a model that watches the clock (``wall_clock``)."""

from __future__ import annotations

import struct
import zoneinfo
from bisect import bisect_right
from collections import Counter
from datetime import UTC, datetime
from functools import lru_cache
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim

from actionqueue.core import zones
from actionqueue.core.cron import WallTimes, wall_times
from actionqueue.core.instants import SECOND_US
from actionqueue.core.timetables import Cron, Timetable, timetable
from actionqueue.core.zones import END_S, stretches
from tests.core.wall_clock import (
    DAY_S,
    HOUR_S,
    MINUTE_S,
    Meaning,
    Tick,
    changes,
    fire_times,
    is_first_or_weekend,
    is_last_of_month,
    is_last_sunday,
    is_second_sunday,
    is_sunday,
    meaning,
    ticks,
    utc_s,
)

AWKWARD_ZONES = [
    "Africa/Casablanca",  # an hour back for Ramadan
    "America/Caracas",  # half an hour, twice
    "America/Sao_Paulo",  # changes at midnight, until 2019
    "America/St_Johns",  # a minute past midnight, until 2011: a day begins twice
    "Antarctica/Troll",  # two hours
    "Asia/Pyongyang",  # half an hour, there and back
    "Asia/Tehran",  # changes at midnight, until 2022
    "Australia/Lord_Howe",  # half an hour each year
    "Europe/Berlin",
    "Europe/Dublin",  # winter is the exception
    "Pacific/Apia",  # a day left out
]

BY_MINUTE = [
    meaning("30 2 * * *", hours={2}, minutes={30}, is_fixed=True),
    meaning("0 0 * * *", hours={0}, minutes={0}, is_fixed=True),
    meaning("15,45 0-3 * * *", hours=range(4), minutes={15, 45}, is_fixed=True),
    meaning("0-59 0-23 * * *", is_fixed=True),
    meaning("59 23 L * *", hours={23}, minutes={59}, day=is_last_of_month, is_fixed=True),
    meaning("30 1 * * 0L", hours={1}, minutes={30}, day=is_last_sunday, is_fixed=True),
    meaning("5 2 * * SUN#2", hours={2}, minutes={5}, day=is_second_sunday, is_fixed=True),
    meaning("0 1,23 1 * 6,0", hours={1, 23}, minutes={0}, day=is_first_or_weekend, is_fixed=True),
    meaning("* * * * *"),
    meaning("*/15 * * * *", minutes={0, 15, 30, 45}),
    meaning("30 * * * *", minutes={30}),
    meaning("*/20 2 * * *", hours={2}, minutes={0, 20, 40}),
    meaning("0 */2 * * *", hours=set(range(0, 24, 2)), minutes={0}),
    meaning("*/30 0 * * SUN", hours={0}, minutes={0, 30}, day=is_sunday),
    meaning("*/10 23 * * 7", hours={23}, minutes=set(range(0, 60, 10)), day=is_sunday),
]

BY_SECOND = [
    meaning("0 30 2 * * *", hours={2}, minutes={30}, is_fixed=True),
    meaning("0,30 59 1 * * *", hours={1}, minutes={59}, seconds={0, 30}, is_fixed=True),
    meaning("10-50/20 0 0-2 * * *", hours={0, 1, 2}, minutes={0}, seconds={10, 30, 50}, is_fixed=True),
    meaning("*/20 30 2 * * *", hours={2}, minutes={30}, seconds={0, 20, 40}),
    meaning("*/10 * * * * *", seconds=set(range(0, 60, 10))),
    meaning("0 */15 1-2 * * SUN *", hours={1, 2}, minutes={0, 15, 30, 45}, day=is_sunday),
]


def times_of(expression: str, zone: str) -> Timetable:
    return timetable(Cron(expression, timezone=zone).rule(), 0)


def enumerated(times: Timetable, from_s: int, until_s: int) -> list[int]:
    """The fire times from ``from_s`` up to, not including, ``until_s``, one after the other, in seconds."""
    found: list[int] = []
    due_us = times.next_after(from_s * SECOND_US - 1)
    while due_us is not None and due_us < until_s * SECOND_US:
        seconds, rest = divmod(due_us, SECOND_US)
        assert not rest
        assert not found or seconds > found[-1], "fire times strictly increase"
        found.append(seconds)
        due_us = times.next_after(due_us)
    return found


def check_against_the_model(each: Meaning, zone: str, shown: list[Tick]) -> None:
    times = times_of(each.expression, zone)
    from_s, until_s = shown[0].at_s, shown[-1].at_s + 1
    expected = fire_times(each, shown)

    assert enumerated(times, from_s, until_s) == expected, (each.expression, zone)

    check_other_questions(times, expected, from_s, until_s)


def check_other_questions(times: Timetable, expected: list[int], from_s: int, until_s: int) -> None:
    """Counting, looking back and looking ahead agree with the enumeration, from several places of the window."""
    near = expected[:: len(expected) // 5 + 1]
    places = {
        *range(from_s, until_s, (until_s - from_s) // 9),
        *(due_s + away for due_s in near for away in (-1, 0, 1)),
    }
    for place_s in places & set(range(from_s, until_s)):
        index = bisect_right(expected, place_s)
        after = expected[index:]
        assert times.count(from_s * SECOND_US - 1, place_s * SECOND_US) == index
        assert times.count(place_s * SECOND_US, until_s * SECOND_US - 1) == len(after)
        assert not index or times.last_until(place_s * SECOND_US) == expected[index - 1] * SECOND_US
        for n in {1, 2, len(after)} & set(range(1, len(after) + 1)):
            assert times.nth_after(place_s * SECOND_US, n) == after[n - 1] * SECOND_US


@lru_cache
def changes_of(zone: str) -> list[int]:
    return list(changes(ZoneInfo(zone), utc_s("1990-01-01"), utc_s("2041-01-01")))


def check_changes(zone: str, every_nth: int) -> None:
    for change_s in changes_of(zone)[::every_nth]:
        by_minute = ticks(ZoneInfo(zone), change_s - 36 * HOUR_S, change_s + 36 * HOUR_S, MINUTE_S)
        for each in BY_MINUTE:
            check_against_the_model(each, zone, by_minute)
        by_second = ticks(ZoneInfo(zone), change_s - 3 * HOUR_S, change_s + 4 * HOUR_S, 10)
        for each in BY_SECOND:
            check_against_the_model(each, zone, by_second)


@pytest.mark.slow
@pytest.mark.parametrize("zone", AWKWARD_ZONES)
def test_fire_times_around_changes_of_the_clock_are_those_of_a_clock_watcher(zone: str) -> None:
    check_changes(zone, every_nth=len(changes_of(zone)) // 2 | 1)  # odd: both directions


@pytest.mark.soak
@pytest.mark.parametrize("zone", AWKWARD_ZONES)
def test_fire_times_around_every_change_of_fifty_years_are_those_of_a_clock_watcher(zone: str) -> None:
    check_changes(zone, every_nth=1)


@pytest.mark.soak
@pytest.mark.parametrize(
    ("zone", "year"),
    [("Europe/Berlin", 2026), ("Australia/Lord_Howe", 2026), ("Pacific/Apia", 2011), ("America/St_Johns", 2010)],
)
def test_fire_times_of_two_whole_years_are_those_of_a_clock_watcher(zone: str, year: int) -> None:
    shown = ticks(ZoneInfo(zone), utc_s(f"{year}-01-01"), utc_s(f"{year + 2}-01-01"), MINUTE_S)
    for each in BY_MINUTE:
        if len(each.hours) * len(each.minutes) < 24 * 60:  # a million fire times tell no more than a thousand
            check_against_the_model(each, zone, shown)


# --- against cronsim ------------------------------------------------------------------------------------------------


def cronsim_times(expression: str, zone: str, from_s: int, until_s: int) -> list[int]:
    """What ``cronsim`` itself walks through."""
    walk = CronSim(expression, datetime.fromtimestamp(from_s - 1, ZoneInfo(zone)))
    return [int(due.timestamp()) for due in takewhile(lambda due: due.timestamp() < until_s, walk)]


@pytest.mark.parametrize("zone", AWKWARD_ZONES)
def test_times_of_day_in_five_fields_are_those_of_cronsim_in_every_zone(zone: str) -> None:
    for change_s in changes_of(zone)[:: len(changes_of(zone)) // 6 | 1]:
        from_s, until_s = change_s - DAY_S, change_s + DAY_S
        for each in BY_MINUTE:
            if each.is_fixed:
                expected = cronsim_times(each.expression, zone, from_s, until_s)
                assert enumerated(times_of(each.expression, zone), from_s, until_s) == expected, each.expression


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Australia/Sydney", "Africa/Casablanca"])
def test_steps_are_those_of_cronsim_where_the_clock_moves_by_whole_hours(zone: str) -> None:
    for change_s in changes_of(zone)[:: len(changes_of(zone)) // 5 | 1]:
        from_s, until_s = change_s - DAY_S, change_s + DAY_S
        for expression in ["*/15 * * * *", "30 * * * *", "*/20 2 * * *", "0 */2 * * *", "*/30 5 1-2 * * *"]:
            expected = cronsim_times(expression, zone, from_s, until_s)
            assert enumerated(times_of(expression, zone), from_s, until_s) == expected, expression


def test_fire_times_far_from_any_change_are_those_of_cronsim() -> None:
    """The calendar: days, months, L, # and the two fields that name days."""
    from_s, until_s = utc_s("2026-01-01"), utc_s("2034-01-01")
    for expression in [
        "0 12 29 2 *",
        "0 12 L * *",
        "0 12 LW * *",
        "0 12 * * 5L",
        "0 12 * * MON#1,FRI#3",
        "0 12 13 * FRI",
        "0 12 */10 * SUN",
        "0 12 1,15 JAN-MAR,DEC *",
        "5/25 8-18/5 * * 1-5",
        "0 0 * 2 MON#5",
    ]:
        expected = cronsim_times(expression, "UTC", from_s, until_s)
        assert enumerated(times_of(expression, "UTC"), from_s, until_s) == expected, expression


# --- zones ----------------------------------------------------------------------------------------------------------


def recorded_changes(name: str) -> list[tuple[int, int]]:
    """(instant, new offset) of each change of offset in the zone's own table (RFC 8536, the 64-bit block)."""
    data = next(path for folder in zoneinfo.TZPATH if (path := Path(folder, name)).is_file()).read_bytes()
    counts = struct.unpack(">6l", data[20:44])
    isutc, isstd, leap, times, types, letters = counts
    data = data[44 + times * 5 + types * 6 + letters + leap * 8 + isstd + isutc :]
    isutc, isstd, leap, times, types, letters = struct.unpack(">6l", data[20:44])
    at = struct.unpack(f">{times}q", data[44 : 44 + times * 8])
    kinds = data[44 + times * 8 : 44 + times * 9]
    offsets = [struct.unpack(">l", data[44 + times * 9 + n * 6 :][:4])[0] for n in range(types)]
    new = [offsets[kind] for kind in kinds]
    return [(at_s, now) for at_s, before, now in zip(at, [offsets[0], *new], new, strict=False) if now != before]


def check_zone(name: str) -> None:
    recorded = [each for each in recorded_changes(name) if 0 < each[0] < utc_s("2037-01-01")]
    found = [
        (stretch.start_s, stretch.offset_s)
        for year in range(1970, 2037)
        for stretch in stretches(name, year)
        if stretch.offset_s != stretch.offset_before_s
    ]
    assert found[: len(recorded)] == recorded
    assert len(found) == len(recorded) or found[len(recorded)][0] > max(at_s for at_s, _ in recorded)
    assert all(later[0] - at_s >= DAY_S for (at_s, _), later in pairwise(found)), "twice within a day"


needs_zone_files = pytest.mark.skipif(
    not any(Path(folder, "UTC").is_file() for folder in zoneinfo.TZPATH), reason="the system has no zone files"
)


@needs_zone_files
@pytest.mark.parametrize("zone", [*AWKWARD_ZONES, "Africa/Monrovia", "America/Argentina/San_Luis", "UTC"])
def test_stretches_are_those_of_the_zones_own_table(zone: str) -> None:
    check_zone(zone)


@needs_zone_files
@pytest.mark.soak
def test_stretches_of_every_zone_are_those_of_its_own_table() -> None:
    for zone in sorted(zoneinfo.available_timezones()):
        if zones.zone_problem(zone) is None:
            check_zone(zone)


# --- bounds and effort ----------------------------------------------------------------------------------------------


def test_nothing_fires_outside_start_and_end() -> None:
    start, end = datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 3, 5, tzinfo=UTC)
    times = timetable(Cron("@daily", starts_at=start, ends_at=end).rule(), 0)
    first_us, last_us = utc_s("2026-03-01") * SECOND_US, utc_s("2026-03-05") * SECOND_US
    assert times.next_after(0) == first_us
    assert times.next_after(last_us - 1) == last_us
    assert times.next_after(last_us) is None
    assert times.last_until(first_us - 1) is None
    assert times.last_until(10 * last_us) == last_us
    assert times.count(0, 10 * last_us) == 5
    assert times.nth_after(0, 6) is None


def test_a_start_between_two_seconds_waits_for_the_next_one() -> None:
    start = datetime(2026, 3, 1, microsecond=1, tzinfo=UTC)
    times = timetable(Cron("* * * * * *", starts_at=start).rule(), 0)
    assert times.next_after(0) == (utc_s("2026-03-01") + 1) * SECOND_US


def test_without_a_start_the_first_fire_time_is_after_submission() -> None:
    submitted_us = utc_s("2026-03-01") * SECOND_US
    times = timetable(Cron("@daily").rule(), submitted_us)
    assert times.next_after(0) == submitted_us + DAY_S * SECOND_US
    assert times.count(0, submitted_us) == 0


def test_years_end_and_time_itself_ends() -> None:
    times = times_of("0 0 0 1 1 * 2027,2030-2031", "America/New_York")
    midnight_us = [utc_s(f"{year}-01-01T05:00") * SECOND_US for year in (2027, 2030, 2031)]
    assert [times.nth_after(0, n) for n in (1, 2, 3, 4)] == [*midnight_us, None]
    assert times.last_until(utc_s("2500-01-01") * SECOND_US) == midnight_us[-1]
    for zone in ("UTC", "Pacific/Kiritimati", "Pacific/Midway"):
        last_us = times_of("@hourly", zone).last_until(END_S * SECOND_US * 2)
        assert last_us == (END_S - HOUR_S) * SECOND_US
        assert times_of("@hourly", zone).next_after(last_us) is None


@pytest.mark.parametrize(
    ("expression", "zone", "due"),
    [
        ("0 0 9 1 1 * 2027", "Pacific/Kiritimati", "2026-12-31T19:00"),
        ("0 0 20 31 12 * 2027", "Pacific/Midway", "2028-01-01T07:00"),
    ],
)
def test_a_year_on_the_wall_is_not_a_year_of_utc(expression: str, zone: str, due: str) -> None:
    times = times_of(expression, zone)
    due_us = utc_s(due) * SECOND_US
    assert times.next_after(0) == due_us
    assert times.last_until(2 * due_us) == due_us
    assert times.count(0, 2 * due_us) == 1


@pytest.mark.parametrize("expression", ["* * * * * *", "0 9 * * MON-FRI", "*/5 30 2 * * *", "0 0 29 2 MON"])
@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "Australia/Lord_Howe"])
def test_ten_years_are_counted_without_walking_through_them(
    expression: str, zone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A per-second schedule has 315 million fire times in ten years. What is looked at: the calendar of at most
    fourteen kinds of years, the zone once a day when it is first seen, and a handful of stretches each time."""
    effort: Counter[str] = Counter()
    counting(monkeypatch, effort, CronSim, "match_day")
    counting(monkeypatch, effort, zones, "offset_at")
    counting(monkeypatch, effort, WallTimes, "_rank")
    wall_times.cache_clear()
    zones.stretches.cache_clear()
    start_us, end_us = utc_s("2026-06-01") * SECOND_US, utc_s("2036-06-01") * SECOND_US
    times = times_of(expression, zone)

    total = times.count(start_us, end_us)
    assert times.nth_after(start_us, total) == times.last_until(end_us)

    assert effort["match_day"] <= 14 * 366
    assert effort["offset_at"] <= 13 * 366 + 13 * 5 * 20
    assert effort["_rank"] <= 500

    effort.clear()
    assert times.count(start_us, end_us) == total
    assert effort["match_day"] == effort["offset_at"] == 0


def counting(monkeypatch: pytest.MonkeyPatch, effort: Counter[str], owner: Any, name: str) -> None:
    original = getattr(owner, name)

    def counted(*args: Any) -> Any:
        effort[name] += 1
        return original(*args)

    monkeypatch.setattr(owner, name, counted)
