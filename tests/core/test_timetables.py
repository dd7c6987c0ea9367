"""Timetables: which policies are accepted, the rules they become, and what people are told."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actionqueue.core.errors import InvalidSubmission
from actionqueue.core.instants import DAY_US, SECOND_US, SUBMIT_INSTANT_MAX, instant_us, parse_duration_us
from actionqueue.core.rules import COUNT_MAX, EVERY_US_MAX, MISFIRES, OVERLAPS
from actionqueue.core.timetables import (
    Cron,
    CronRule,
    Repeat,
    RepeatRule,
    describe,
    describe_duration,
    policy_of,
    rule_problems,
    timetable,
)

NOON = datetime(2026, 11, 2, 12, tzinfo=UTC)
NOON_US = instant_us(NOON)
WRONG: Any = None

# --- what is refused ------------------------------------------------------------------------------------------------


def problems_of(make: Any) -> dict[str, str]:
    with pytest.raises(InvalidSubmission) as refused:
        make()
    for field, problem in refused.value.problems.items():
        assert field in refused.value.message
        assert problem in refused.value.message
    return refused.value.problems


@pytest.mark.parametrize(
    ("fields", "wrong", "told"),
    [
        ({"count": 0}, "count", "a whole number from 1 to 2147483647"),
        ({"count": 2**31}, "count", "a whole number from 1"),
        ({"count": True}, "count", "True"),
        ({"count": 2.0}, "count", "2.0"),
        ({"count": "3"}, "count", "'3'"),
        ({"every": 0}, "every", "from 1us to 36600d"),
        ({"every": "36601d"}, "every", "36601d"),
        ({"every": -1}, "every", "negative"),
        ({"every": "often"}, "every", "not a duration"),
        ({"every": None}, "every", "not a duration"),
        ({"first_at": datetime(2026, 1, 1)}, "first_at", "naive"),  # noqa: DTZ001 - refused for just that
        ({"first_at": "noon"}, "first_at", "not a datetime"),
        ({"first_at": datetime(1969, 1, 1, tzinfo=UTC)}, "first_at", "before 1970"),
        ({"count": COUNT_MAX, "every": "36600d"}, "count", "after the year 9999"),
        ({"first_at": datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)}, "count", "after the year 9999"),
        ({"misfire": "never"}, "misfire", "one of catch_up, coalesce, skip"),
        ({"misfire": ["skip"]}, "misfire", "one of"),
        ({"misfire_grace": -1}, "misfire_grace", "negative"),
        ({"misfire_window": "soon"}, "misfire_window", "not a duration"),
        ({"overlap": "cancel"}, "overlap", "one of allow, queue, skip, cancel_running"),
    ],
    ids=str,
)
def test_a_wrong_repeat_is_refused_with_its_field(fields: dict[str, Any], wrong: str, told: str) -> None:
    problems = problems_of(lambda: Repeat(**({"count": 3, "every": "1s"} | fields)))
    assert list(problems) == [wrong]
    assert told in problems[wrong]


@pytest.mark.parametrize(
    ("fields", "wrong", "told"),
    [
        ({"timezone": "Mars/Base"}, "timezone", "IANA name"),
        ({"timezone": ""}, "timezone", "IANA name"),
        ({"timezone": "America"}, "timezone", "IANA name"),
        ({"timezone": "../../etc/passwd"}, "timezone", "IANA name"),
        ({"timezone": "/etc/localtime"}, "timezone", "IANA name"),
        ({"timezone": "a\0b"}, "timezone", "IANA name"),
        ({"timezone": "\udc00"}, "timezone", "IANA name"),
        ({"timezone": "right/UTC"}, "timezone", "IANA name"),
        ({"timezone": "x" * 10_000}, "timezone", "IANA name"),
        ({"timezone": ZoneInfo("UTC")}, "timezone", "IANA name"),
        ({"max_occurrences": 0}, "max_occurrences", "from 1"),
        ({"max_occurrences": True}, "max_occurrences", "from 1"),
        ({"starts_at": date(2026, 1, 1)}, "starts_at", "not a datetime"),
        ({"ends_at": datetime(2026, 1, 1)}, "ends_at", "naive"),  # noqa: DTZ001 - refused for just that
        ({"starts_at": NOON, "ends_at": NOON}, "ends_at", "is not after starts_at"),
        ({"starts_at": NOON, "ends_at": NOON - timedelta(days=1)}, "ends_at", "is not after starts_at"),
        ({"starts_at": NOON, "ends_at": NOON + timedelta(hours=1)}, "ends_at", "no run would ever be due"),
        ({"expression": "0 0 0 1 1 * 2025", "starts_at": NOON}, "expression", "no run would ever be due"),
        ({"jitter": "25h"}, "jitter", "from 0s to 1d"),
        ({"jitter": -1}, "jitter", "negative"),
        ({"misfire": ""}, "misfire", "one of"),
        ({"misfire_grace": None}, "misfire_grace", "not a duration"),
        ({"misfire_window": -1}, "misfire_window", "negative"),
        ({"overlap": 1}, "overlap", "one of"),
    ],
    ids=str,
)
def test_a_wrong_cron_is_refused_with_its_field(fields: dict[str, Any], wrong: str, told: str) -> None:
    problems = problems_of(lambda: Cron(**({"expression": "@daily"} | fields)))
    assert list(problems) == [wrong]
    assert told in problems[wrong]


@pytest.mark.parametrize(
    ("expression", "told"),
    [
        (None, "is not a text"),
        (5, "is not a text"),
        ("", "has 0 fields; give 5"),
        ("* * * *", "has 4 fields; give 5"),
        ("* * * * * * * *", "has 8 fields; give 5"),
        ("@reboot", "the aliases are @hourly, @daily"),
        ("@", "the aliases are"),
        ("60 * * * *", "minute '60' is not understood: give 0 to 59"),
        ("* 24 * * *", "hour '24' is not understood: give 0 to 23"),
        ("* * 0 * *", "day of month '0'"),
        ("* * 32 * *", "day of month '32'"),
        ("* * * 13 *", "month '13' is not understood: give 1 to 12 or JAN to DEC"),
        ("* * * FOO *", "month 'FOO'"),
        ("* * * * 8", "day of week '8'"),
        ("* * * * SAT-SUN", "ranges upward"),
        ("* * * * MON#6", "day of week 'MON#6'"),
        ("* * * * L", "day of week 'L' is not understood"),
        ("* * 15W * *", "day of month '15W'"),
        ("* * ? * *", "day of month '?'"),
        ("60 * * * * *", "second '60'"),
        ("*/0 * * * *", "minute '*/0'"),
        ("*/90 * * * *", "a step above 60"),
        ("* */25 * * *", "a step above 24"),
        ("* * L/2 * *", "leave the step out"),
        ("1,,2 * * * *", "minute '1,,2'"),
        ("1- * * * *", "minute '1-'"),
        ("-1 * * * *", "minute '-1'"),
        ("\u0661 * * * *", "minute"),
        ("61 25 * * *", "minute '61' is not understood: give 0 to 59"),
        ("61 25 * * *", "hour '25' is not understood"),
        ("0 0 30 2 *", "a day that never comes"),
        ("0 0 31 4,6,9,11 *", "a day that never comes"),
        ("0 0 0 29 2 * 2027", "a day that never comes (day of month 29, month 2, day of week *, year 2027)"),
        ("0 0 0 * 2 MON#5 2026-2043", "a day that never comes"),
        ("0 0 0 1 1 * 1969", "can never come"),
        ("0 0 0 1 1 * 10000", "can never come"),
        ("0 0 0 1 1 * 2030-2027", "can never come"),
        ("0 0 0 1 1 * 2030/0", "can never come"),
        ("0 0 0 1 1 * 27", "can never come"),
        ("0 0 0 1 1 * 2027,", "can never come"),
        ("0 " * 1000, "is longer than 500 characters"),
        ("1" * 499 + " * * * *", "is longer than 500 characters"),
        ("9" * 400 + " * * * *", "minute"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_wrong_expression_is_refused_with_what_to_write(expression: Any, told: str) -> None:
    problems = problems_of(lambda: Cron(expression))
    assert list(problems) == ["expression"]
    assert told in problems["expression"]


def test_every_problem_is_named_at_once() -> None:
    assert set(problems_of(lambda: Repeat(0, "0s", WRONG, "x", -1, "y", "z"))) == {
        *("count", "every", "misfire", "misfire_grace", "misfire_window", "overlap"),
    }
    assert set(problems_of(lambda: Cron("x", "y", 0, "s", "e", -1, "m", -1, -1, "o"))) == {  # type: ignore[arg-type]
        *("expression", "timezone", "max_occurrences", "starts_at", "ends_at"),
        *("jitter", "misfire", "misfire_grace", "misfire_window", "overlap"),
    }


@pytest.mark.parametrize(
    "expression",
    [
        *("@hourly", "@DAILY", "@midnight", "@weekly", "@monthly", "@yearly", "@annually"),
        *("0 9 * * mon-fri", "0 9 * * 7", "0 9 * * 0", "0 9 L * *", "0 9 LW * *", "0 9 * * 5L", "0 9 * * FRI#2"),
        *("0 0 29 2 *", "0 0 * 2 MON#5", "*/10 * * * * *", "0 0 9 * JAN,JUL * 2027-2030", "0 0 9 1 1 * *"),
        *("0 0 9 1 1 * */2", "0 0 9 1 1 * 2026/4", "0 0 0 29 2 * 2000-2001", "0 0 30 2 MON", "*/60 * * * *"),
    ],
)
def test_the_language_is_understood(expression: str) -> None:
    assert len(Cron(expression).occurrences(datetime(1999, 12, 31, tzinfo=UTC), 1)) == 1


# --- rules ----------------------------------------------------------------------------------------------------------

durations_us = st.integers(0, EVERY_US_MAX).map(lambda us: timedelta(microseconds=us))
instants = st.datetimes(datetime(1970, 1, 2), datetime(2100, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - bounds
common = {
    "misfire": st.sampled_from(MISFIRES),
    "misfire_grace": durations_us,
    "misfire_window": st.none() | durations_us,
    "overlap": st.sampled_from(OVERLAPS),
}
repeats = st.builds(
    Repeat,
    st.integers(1, 70),
    every=st.integers(1, EVERY_US_MAX).map(lambda us: timedelta(microseconds=us)),
    first_at=st.none() | instants,
    **common,
)
crons = st.builds(
    Cron,
    st.sampled_from(["@daily", "*/5  * * * *", " 0 9 * * mon-fri", "0 0 0 1 1 * *"]),
    timezone=st.sampled_from(["UTC", "Europe/Berlin"]),
    max_occurrences=st.none() | st.integers(1, COUNT_MAX),
    starts_at=st.none() | instants,
    ends_at=st.none() | st.just(datetime(2200, 1, 1, tzinfo=UTC)),
    jitter=st.none() | st.integers(0, DAY_US).map(lambda us: timedelta(microseconds=us)),
    **common,
)


@given(repeats | crons)
def test_a_rule_survives_its_encoding_and_makes_a_policy_of_the_same_rule(policy: Repeat | Cron) -> None:
    rule = policy.rule()
    for codec in (msgspec.msgpack, msgspec.json):
        assert codec.decode(codec.encode(rule), type=RepeatRule | CronRule) == rule
    assert rule_problems(rule) == {}
    assert policy_of(rule).rule() == rule
    assert hash(rule) == hash(policy_of(rule).rule())


def test_a_rule_holds_texts_as_they_were_written_but_for_spaces() -> None:
    rule = Cron("  0   9 * *\tmon-Fri ", timezone=" Europe/Berlin ").rule()
    assert (rule.expression, rule.timezone) == ("0 9 * * mon-Fri", "Europe/Berlin")


@pytest.mark.parametrize(
    ("policy", "window_us"),
    [
        (Cron("@daily", misfire="catch_up"), DAY_US),
        (Cron("@daily", misfire="catch_up", misfire_window="1h"), 3600 * SECOND_US),
        (Cron("@daily"), None),
        (Cron("@daily", misfire="skip"), None),
        (Repeat(3, "1s"), None),
    ],
)
def test_only_a_cron_that_catches_up_looks_back_a_day_unless_told(policy: Repeat | Cron, window_us: int | None) -> None:
    assert policy.rule().window_us == window_us


@pytest.mark.parametrize(
    ("rule", "wrong"),
    [
        (RepeatRule(0, 1, None, "skip", 0, None, "skip"), "count"),
        (RepeatRule(1, 0, None, "skip", 0, None, "skip"), "every"),
        (RepeatRule(1, 1, -1, "skip", 0, None, "skip"), "first_at"),
        (RepeatRule(1, 1, SUBMIT_INSTANT_MAX + 1, "skip", 0, None, "skip"), "first_at"),
        (RepeatRule(1, 1, None, "x", 0, None, "skip"), "misfire"),
        (RepeatRule(1, 1, None, "skip", -1, None, "skip"), "misfire_grace"),
        (RepeatRule(1, 1, None, "skip", 0, -1, "skip"), "misfire_window"),
        (RepeatRule(1, 1, None, "skip", 0, None, "x"), "overlap"),
        (CronRule("* *", "UTC", None, None, None, 0, "skip", 0, None, "skip"), "expression"),
        (CronRule("@daily", "X", None, None, None, 0, "skip", 0, None, "skip"), "timezone"),
        (CronRule("@daily", "UTC", 0, None, None, 0, "skip", 0, None, "skip"), "max_occurrences"),
        (CronRule("@daily", "UTC", None, -1, None, 0, "skip", 0, None, "skip"), "starts_at"),
        (CronRule("@daily", "UTC", None, 5, 5, 0, "skip", 0, None, "skip"), "ends_at"),
        (CronRule("@daily", "UTC", None, None, None, DAY_US + 1, "skip", 0, None, "skip"), "jitter"),
    ],
)
def test_a_rule_that_another_process_made_is_validated_again(rule: RepeatRule | CronRule, wrong: str) -> None:
    """serde_roundtrip#3, #4: none is decoded into a task that has no runs, or all of them at once."""
    assert list(rule_problems(rule)) == [wrong]


def test_what_is_never_due_when_submitted_now_is_a_problem_of_its_field() -> None:
    past = Cron("0 0 0 1 1 * 2026").rule()
    assert rule_problems(past, NOON_US - 365 * DAY_US) == {}
    assert list(rule_problems(past, NOON_US)) == ["expression"]
    assert list(rule_problems(Cron("@daily", ends_at=NOON).rule(), NOON_US)) == ["ends_at"]
    assert list(rule_problems(Repeat(2, "36600d").rule(), SUBMIT_INSTANT_MAX)) == ["count"]


# --- Repeat ---------------------------------------------------------------------------------------------------------


@given(
    first_us=st.integers(0, 1000),
    every_us=st.integers(1, 50),
    count=st.integers(1, 30),
    t=st.integers(-100, 3000),
    span=st.integers(-10, 3000),
    n=st.integers(1, 40),
)
def test_a_repeat_answers_as_a_list_of_its_instants_would(
    first_us: int, every_us: int, count: int, t: int, span: int, n: int
) -> None:
    due = [first_us + i * every_us for i in range(count)]
    times = timetable(RepeatRule(count, every_us, first_us, "skip", 0, None, "skip"), 77)

    after = [each for each in due if each > t]
    assert times.next_after(t) == (after[0] if after else None)
    assert times.last_until(t) == max((each for each in due if each <= t), default=None)
    assert times.count(t, t + span) == sum(t < each <= t + span for each in due)
    assert times.nth_after(t, n) == (after[n - 1] if n <= len(after) else None)


@given(st.integers(0, 2**50), st.integers(1, EVERY_US_MAX), st.integers(1, COUNT_MAX))
def test_a_repeat_without_a_first_instant_begins_at_submission_and_has_exactly_its_count(
    submitted_us: int, every_us: int, count: int
) -> None:
    rule = RepeatRule(count, every_us, None, "skip", 0, None, "skip")
    times = timetable(rule, submitted_us)
    assert times.next_after(submitted_us - 1) == submitted_us
    total = times.count(submitted_us - 1, SUBMIT_INSTANT_MAX)
    if rule_problems(rule, submitted_us):
        assert total < count, "it would end after the year 9999"
    else:
        assert total == count
        assert times.nth_after(submitted_us - 1, count) == submitted_us + (count - 1) * every_us


# --- occurrences ----------------------------------------------------------------------------------------------------


def test_occurrences_of_a_cron_are_in_its_zone_and_after_the_given_instant() -> None:
    nine = Cron("0 9 * * MON-FRI", timezone="Europe/Berlin")
    friday = datetime(2026, 10, 23, 9, tzinfo=ZoneInfo("Europe/Berlin"))
    found = nine.occurrences(friday, 2)
    assert [due.isoformat() for due in found] == ["2026-10-26T09:00:00+01:00", "2026-10-27T09:00:00+01:00"]
    assert all(due.tzinfo is ZoneInfo("Europe/Berlin") for due in found)


def test_occurrences_respect_start_and_end_and_come_short_when_there_are_no_more() -> None:
    noon = Cron("0 12 * * *", starts_at=NOON, ends_at=NOON + timedelta(days=1), max_occurrences=1)
    assert noon.occurrences(NOON - timedelta(days=9), 5) == [NOON, NOON + timedelta(days=1)]
    assert noon.occurrences(NOON, 5) == [NOON + timedelta(days=1)]
    assert noon.occurrences(NOON + timedelta(days=1), 5) == []


def test_occurrences_of_a_repeat_are_in_the_zone_of_the_question() -> None:
    there = NOON.astimezone(timezone(timedelta(hours=5, minutes=30)))
    repeat = Repeat(3, every="30m")
    assert repeat.occurrences(there, 9) == [NOON + timedelta(minutes=30 * n) for n in range(3)]
    assert repeat.occurrences(there, 9)[0].utcoffset() == there.utcoffset()
    anchored = Repeat(3, every=timedelta(minutes=30), first_at=NOON)
    assert anchored.occurrences(there, 9) == [NOON + timedelta(minutes=30 * n) for n in (1, 2)]


@pytest.mark.parametrize("policy", [Repeat(3, "1s"), Cron("@daily")])
def test_occurrences_refuse_a_naive_instant_and_a_count_out_of_range(policy: Repeat | Cron) -> None:
    assert list(problems_of(lambda: policy.occurrences(NOON.replace(tzinfo=None), 1))) == ["after"]
    for count in (0, 10_001, True, "3"):
        wrong: Any = count
        assert list(problems_of(lambda count=wrong: policy.occurrences(NOON, count))) == ["count"]


def test_ten_thousand_occurrences_are_the_most() -> None:
    assert len(Cron("* * * * * *").occurrences(NOON, 10_000)) == 10_000


# --- for people -----------------------------------------------------------------------------------------------------


def test_a_rule_is_described_in_one_line() -> None:
    assert describe(Cron("0 9 * * MON-FRI", timezone="Europe/Berlin").rule()) == "0 9 * * MON-FRI Europe/Berlin"
    assert describe(Repeat(6, every="30m").rule()) == "6 × every 30m"
    assert describe(Repeat(1, every=0.25).rule()) == "1 × every 250ms"


@given(st.integers(0, EVERY_US_MAX))
def test_a_described_duration_reads_back_exactly(us: int) -> None:
    assert parse_duration_us(describe_duration(us)) == us
