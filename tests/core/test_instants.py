"""Instants and durations: what is accepted, exactly what it becomes, and what is refused."""

from __future__ import annotations

import math
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from actionqueue.core.errors import InvalidDuration, InvalidInstant, InvalidSubmission
from actionqueue.core.instants import (
    DURATION_US_MAX,
    INSTANT_MAX,
    SUBMIT_INSTANT_MAX,
    check_instant,
    format_duration,
    format_instant,
    instant_us,
    parse_duration_us,
    shown,
    timedelta_us,
    to_datetime,
)

MICROSECOND = timedelta(microseconds=1)
submit_instants = st.integers(0, SUBMIT_INSTANT_MAX)


def problems_of(refusal: InvalidSubmission) -> dict[str, str]:
    problems = refusal.facts["problems"]
    assert isinstance(problems, dict)
    return problems


# --- durations in ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected_us"),
    [
        ("15m", 900_000_000),
        ("1h30m", 5_400_000_000),
        ("250ms", 250_000),
        ("2d", 172_800_000_000),
        ("1.5s", 1_500_000),
        ("10us", 10),
        ("10µs", 10),
        ("10μs", 10),
        ("1w", 604_800_000_000),
        ("1w2d3h4m5s6ms7us", 788_645_006_007),
        ("2 min 3 s", 123_000_000),
        ("  1h 30m  ", 5_400_000_000),
        ("0s", 0),
        ("0.000001s", 1),
        ("0.25ms", 250),
        ("1.5h", 5_400_000_000),
        ("90m", 5_400_000_000),
        ("15", 15_000_000),
        ("1.5", 1_500_000),
        ("007s", 7_000_000),
        (0, 0),
        (15, 15_000_000),
        (1.5, 1_500_000),
        (0.0, 0),
        (-0.0, 0),
        (1.1, 1_100_000),
        (0.1 + 0.2, 300_000),
        (1e-6, 1),
        (timedelta(0), 0),
        (timedelta(days=1, seconds=2, microseconds=3), 86_402_000_003),
        (timedelta(microseconds=DURATION_US_MAX), DURATION_US_MAX),
        (f"{DURATION_US_MAX}us", DURATION_US_MAX),
    ],
)
def test_a_duration_becomes_exactly_its_microseconds(value: timedelta | int | float | str, expected_us: int) -> None:
    assert parse_duration_us(value) == expected_us


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("", "is empty"),
        ("   ", "is empty"),
        ("-5s", "is negative"),
        ("-1", "is negative"),
        (-1, "is negative"),
        (-0.5, "is negative"),
        (-1e-9, "is negative"),
        (-MICROSECOND, "is negative"),
        (math.nan, "is not a finite number"),
        (math.inf, "is not a finite number"),
        (-math.inf, "is not a finite number"),
        (True, "is a bool"),
        (False, "is a bool"),
        (1e-9, "is finer than a microsecond"),
        ("0.5us", "is finer than a microsecond"),
        ("1.0000001s", "is finer than a microsecond"),
        ("s", "is not a duration"),
        ("5x", "is not a duration"),
        ("5 minutes", "is not a duration"),
        ("15M", "is not a duration"),
        ("1h-5m", "is not a duration"),
        ("1,5s", "is not a duration"),
        (".5s", "is not a duration"),
        ("5.s", "is not a duration"),
        ("1e3", "is not a duration"),
        ("nan", "is not a duration"),
        ("inf", "is not a duration"),
        ("+5s", "is not a duration"),
        ("\u0665s", "is not a duration"),
        ("1_000s", "is not a duration"),
        ("5s5", "is not a duration"),
        ("PT15M", "is not a duration"),
        ("30m1h", "out of order"),
        ("1h1h", "twice"),
        ("1m1min", "twice"),
        ("9" * 101, "is longer than 100 characters"),
        ("9" * 1_000_000, "is longer than 100 characters"),
        ("9" * 99 + "s", "is too long"),
        (f"{DURATION_US_MAX + 1}us", "is too long"),
        (DURATION_US_MAX // 1_000_000 + 1, "is too long"),
        (10**5000, "is too long"),
        (-(10**5000), "is negative"),
        (1e300, "is too long"),
        (timedelta.max, "is too long"),
        (None, "is not a duration"),
        (b"15m", "is not a duration"),
        (Decimal("1.5"), "is not a duration"),
        ([15], "is not a duration"),
    ],
    ids=lambda value: shown(value)[:30],
)
def test_what_is_not_a_duration_is_refused_with_the_reason_and_the_accepted_forms(value: object, why: str) -> None:
    with pytest.raises(InvalidDuration) as refusal:
        parse_duration_us(value, field="delay")  # type: ignore[arg-type]

    problem = problems_of(refusal.value)["delay"]
    assert why in problem
    assert '"15m"' in problem
    assert str(refusal.value) == f"delay: {problem}"
    assert len(problem) < 350


@given(seconds=st.floats(0, DURATION_US_MAX / 1_000_001, exclude_min=True, allow_subnormal=False))
@example(seconds=5e-7)
@example(seconds=2.5e-6)
@example(seconds=4503599627.370497)
def test_a_float_is_rounded_to_the_nearest_microsecond_by_its_exact_value(seconds: float) -> None:
    exact_us = Fraction(seconds) * 1_000_000
    assume(exact_us >= Fraction(1, 2))

    assert abs(parse_duration_us(seconds) - exact_us) <= Fraction(1, 2)


@given(us=st.integers(0, DURATION_US_MAX))
def test_timedelta_text_and_microseconds_agree(us: int) -> None:
    assert parse_duration_us(timedelta(microseconds=us)) == us
    assert parse_duration_us(f"{us}us") == us
    assert parse_duration_us(f"{us // 1_000_000}.{us % 1_000_000:06}") == us


@given(text=st.text(max_size=12) | st.from_regex(r"([0-9]{1,3}(\.[0-9]{1,3})?(w|d|h|m|s|ms|us)){1,4}", fullmatch=True))
def test_any_text_is_read_or_refused_and_nothing_else_happens(text: str) -> None:
    read_us = None
    with suppress(InvalidDuration):
        read_us = parse_duration_us(text)

    assert read_us is None or 0 <= read_us <= DURATION_US_MAX


@given(delta=st.timedeltas())
def test_a_timedelta_is_counted_without_rounding(delta: timedelta) -> None:
    assert timedelta_us(delta) == delta // MICROSECOND


# --- durations out ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("us", "text"),
    [
        (0, "0 us"),
        (999, "999 us"),
        (1_000, "1 ms"),
        (1_500, "1.5 ms"),
        (250_000, "250 ms"),
        (999_999, "999.999 ms"),
        (1_000_000, "1 s"),
        (1_500_000, "1.5 s"),
        (59_999_999, "59.999 s"),
        (60_000_000, "1 min"),
        (123_000_000, "2 min 3 s"),
        (3_600_000_000, "1 h"),
        (5_400_000_000, "1 h 30 min"),
        (86_399_999_999, "23 h 59 min"),
        (86_400_000_000, "1 d"),
        (86_400_000_000 * 400 + 3_600_000_000, "400 d 1 h"),
        (-1_500_000, "-1.5 s"),
    ],
)
def test_a_duration_is_shown_short(us: int, text: str) -> None:
    assert format_duration(us) == text


@given(us=st.integers(0, DURATION_US_MAX) | st.integers(0, 200_000_000_000))
def test_a_shown_duration_reads_back_as_at_most_itself_and_shows_the_same(us: int) -> None:
    text = format_duration(us)
    read_us = parse_duration_us(text)

    assert read_us <= us
    assert us - read_us <= us / 24
    assert format_duration(read_us) == text


# --- instants --------------------------------------------------------------------------------------------------------


def test_the_bounds_are_64_bits_and_the_end_of_the_year_9999() -> None:
    assert INSTANT_MAX == 18_446_744_073_709_551_615
    assert to_datetime(SUBMIT_INSTANT_MAX) == datetime.max.replace(tzinfo=UTC)
    assert instant_us(datetime.max.replace(tzinfo=UTC)) == SUBMIT_INSTANT_MAX


@given(us=submit_instants)
@example(us=0)
@example(us=SUBMIT_INSTANT_MAX)
def test_an_instant_survives_datetime_and_text_to_the_microsecond(us: int) -> None:
    moment = to_datetime(us)

    assert moment.tzinfo is UTC
    assert instant_us(moment) == us
    assert instant_us(datetime.fromisoformat(format_instant(us))) == us


@given(one=submit_instants, other=submit_instants)
def test_the_texts_of_instants_sort_like_the_instants(one: int, other: int) -> None:
    assert (format_instant(one) < format_instant(other)) == (one < other)


@given(
    moment=st.datetimes(min_value=datetime(1970, 1, 2), max_value=datetime(9999, 12, 30)),  # noqa: DTZ001
    offset_min=st.integers(-1439, 1439),
)
def test_the_same_moment_in_any_zone_is_the_same_instant(moment: datetime, offset_min: int) -> None:
    zone = timezone(timedelta(minutes=offset_min))

    assert instant_us(moment.replace(tzinfo=UTC).astimezone(zone)) == instant_us(moment.replace(tzinfo=UTC))


def test_instants_are_shown_in_utc_with_six_decimals() -> None:
    assert format_instant(0) == "1970-01-01T00:00:00.000000Z"
    assert format_instant(SUBMIT_INSTANT_MAX) == "9999-12-31T23:59:59.999999Z"


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (datetime(2026, 11, 2, 9), "naive"),  # noqa: DTZ001
        (datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC), "before 1970"),
        (datetime(1970, 1, 1, tzinfo=timezone(timedelta(hours=1))), "before 1970"),
        (datetime.min.replace(tzinfo=timezone(timedelta(hours=14))), "before 1970"),
        (datetime.max.replace(tzinfo=timezone(timedelta(hours=-1))), "after the year 9999"),
        (date(2026, 11, 2), "is not a datetime"),
        ("2026-11-02T09:00:00Z", "is not a datetime"),
        (1_793_610_000, "is not a datetime"),
        (None, "is not a datetime"),
    ],
    ids=str,
)
def test_what_names_no_instant_is_refused_with_what_to_do(value: object, why: str) -> None:
    with pytest.raises(InvalidInstant) as refusal:
        instant_us(value, field="at")  # type: ignore[arg-type]

    assert why in problems_of(refusal.value)["at"]
    assert isinstance(refusal.value, ValueError)


def test_a_naive_datetime_is_refused_with_both_ways_to_make_it_aware() -> None:
    with pytest.raises(InvalidInstant, match=r"\.replace\(tzinfo=UTC\).*\.astimezone\(\)"):
        instant_us(datetime(2026, 11, 2, 9))  # noqa: DTZ001


@pytest.mark.parametrize("us", [-1, SUBMIT_INSTANT_MAX + 1, INSTANT_MAX])
def test_an_instant_no_datetime_can_hold_is_refused(us: int) -> None:
    with pytest.raises(InvalidInstant):
        to_datetime(us)
    with pytest.raises(InvalidInstant):
        format_instant(us)


@pytest.mark.parametrize("us", [0, 1, SUBMIT_INSTANT_MAX, INSTANT_MAX - 1, INSTANT_MAX])
def test_every_instant_of_64_bits_can_be_recorded(us: int) -> None:
    assert check_instant(us) == us


@pytest.mark.parametrize("value", [-1, INSTANT_MAX + 1, 10**5000, True, False, 1.0, "1", None], ids=shown)
def test_what_cannot_be_recorded_as_an_instant_is_refused_and_the_field_named(value: object) -> None:
    with pytest.raises(InvalidInstant) as refusal:
        check_instant(value, field="created_at")  # type: ignore[arg-type]

    assert list(problems_of(refusal.value)) == ["created_at"]


# --- showing values --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [("15x", "'15x'"), (7, "7"), (2**20000, "an int of 20001 bits"), ([1], "[1]"), (None, "None")],
    ids=["text", "int", "long int", "list", "none"],
)
def test_a_value_is_shown_by_its_repr_or_its_size(value: object, text: str) -> None:
    assert shown(value) == text


@pytest.mark.parametrize("value", ["x" * 10_000_000, b"x" * 1_000, list(range(1_000))], ids=["text", "bytes", "list"])
def test_a_long_value_is_shown_cut(value: object) -> None:
    assert len(shown(value)) == 51
    assert shown(value).endswith("…")
