"""Timetables: what policies are accepted, the rules they become, and when those are due."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from actionqueue.core.errors import InvalidSubmission
from actionqueue.core.instants import instant_us
from actionqueue.core.timetables import (
    Cron,
    CronRule,
    Repeat,
    RepeatRule,
    describe,
    policy_of,
    rule_problems,
    timetable,
)

NOON = datetime(2026, 11, 2, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    "policy",
    [
        Repeat(3, "1s"),
        Repeat(2, 0.5, first_at=NOON, misfire_window="1d"),
        Cron("@daily"),
        Cron(" 0  9 * * 1", starts_at=NOON),
    ],
)
def test_a_rule_survives_its_encoding_and_makes_the_same_policy(policy: Repeat | Cron) -> None:
    rule = policy.rule()
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(rule), type=RepeatRule | CronRule) == rule
    assert rule_problems(rule) == {}
    assert policy_of(rule).rule() == rule
    assert describe(rule)


def test_a_cron_timetable_counts_what_it_enumerates() -> None:
    times = timetable(Cron("*/20 9-17 * * MON-FRI", timezone="Europe/Berlin").rule(), 0)
    start, end = instant_us(NOON), instant_us(NOON.replace(month=12))
    found: list[int] = []
    due = times.next_after(start)
    while due is not None and due <= end:
        found.append(due)
        due = times.next_after(due)
    assert times.count(start, end) == len(found)
    assert times.last_until(end) == found[-1]
    assert times.nth_after(start, 100) == found[99]


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Repeat(0, "1s"), "count"),
        (lambda: Repeat(1, "0s"), "every"),
        (lambda: Cron("61 * * * *"), "expression"),
        (lambda: Cron("0 0 30 2 *"), "expression"),
        (lambda: Cron("@daily", timezone="Mars/Base"), "timezone"),
    ],
)
def test_what_is_wrong_is_refused_with_its_field(make: Any, field: str) -> None:
    with pytest.raises(InvalidSubmission) as refused:
        make()
    assert list(refused.value.problems) == [field]
