"""What a task needs beside its queue and executor: keys that only so many runs may hold, and tokens of a rate.

Plain data, fixed at submission and stored with the task (``TaskOptions``). ``Limit`` and ``Rate`` are how people write
them, ``KeyNeed`` and ``RateNeed`` how they are kept; in a handler's declaration the keys are templates, in a task they
are rendered. Knows: the fields, their bounds and what is wrong with them. Must not know: who holds what
(``core/limits.py``), or how a template is rendered (``actionqueue/templates.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

from msgspec import Struct

from actionqueue.core.errors import InvalidSubmission
from actionqueue.core.instants import parse_duration_us, shown

LIMITS_MAX = 10
"""Limits of one task, and as many rates."""

LIMIT_KEY_CHARACTERS_MAX = 250
"""The key of a limit or a rate, rendered."""

CAPACITY_MAX = 1_000_000
"""The largest capacity of a key."""

TOKENS_MAX = 1_000_000_000
"""The largest count or burst of a rate."""

PERIOD_US_MAX = 366 * 86_400_000_000
"""The longest period of a rate, in microseconds (366 days)."""

HOLD_STATES = ("retry_wait", "suspended", "awaiting")
"""States over which a run may keep its keys."""


class Limit(Struct, frozen=True):
    """At most ``capacity`` runs (1 to 1,000,000) hold a key at once; the key may name arguments.

    In ``limits=`` of a task the key is a template: ``{name}`` is the argument of that name, ``{{`` and ``}}`` are
    braces. In a ``TaskConstraints`` it is taken as it is. A run goes by the capacity it was submitted with.
    Raises ``InvalidSubmission``.

    >>> Limit("mail:{tenant}", capacity=4)
    Limit(key_template='mail:{tenant}', capacity=4)
    """

    key_template: str
    capacity: int = 1

    def __post_init__(self) -> None:
        _refuse("Limit", {
            "key_template": _text_problem(self.key_template), "capacity": _whole(self.capacity, CAPACITY_MAX)
        })  # fmt: skip


class _Keyed(Struct, frozen=True):
    key_template: str


class Rate(_Keyed, frozen=True, kw_only=True):
    """At most ``count`` starts ``per`` period of a key, after a burst of up to ``burst`` (default: ``count``).

    A token bucket: it holds up to ``burst`` tokens, gains one every ``per / count``, and each attempt takes one as it
    starts (retries too). ``count`` and ``burst`` are 1 to 1,000,000,000; ``per`` is a timedelta, seconds, or text such
    as "1s", up to 366 days. The key may name arguments, as that of a ``Limit``. Raises ``InvalidSubmission``.

    >>> Rate("mail:{tenant}", count=10, per="1s", burst=20).burst
    20
    """

    count: int
    per: timedelta | float | str
    burst: int | None = None

    def __post_init__(self) -> None:
        problems = {"key_template": _text_problem(self.key_template), "count": _whole(self.count, TOKENS_MAX)}
        if self.burst is not None:
            problems["burst"] = _whole(self.burst, TOKENS_MAX)
        try:
            problems["per"] = _period_problem(parse_duration_us(self.per, field="per"))
        except InvalidSubmission as error:
            problems["per"] = error.message.removeprefix("per: ")
        _refuse("Rate", problems)


class KeyNeed(Struct, frozen=True, array_like=True, gc=False):
    """One of ``capacity`` places at a key."""

    key: str
    capacity: int = 1


class RateNeed(Struct, frozen=True, array_like=True, gc=False):
    """A token of a key for each attempt: ``burst`` at once, then ``count`` in ``per_us`` microseconds."""

    key: str
    count: int
    per_us: int
    burst: int

    @property
    def interval_us(self) -> int:
        """Microseconds from one token to the next, rounded up: never more than ``count`` in a period."""
        return -(-self.per_us // self.count)


def key_need(limit: Limit) -> KeyNeed:
    """A limit as it is kept."""
    return KeyNeed(limit.key_template, limit.capacity)


def rate_need(rate: Rate) -> RateNeed:
    """A rate as it is kept."""
    burst = rate.count if rate.burst is None else rate.burst
    return RateNeed(rate.key_template, rate.count, parse_duration_us(rate.per, field="per"), burst)


def need_problems(
    limits: Sequence[KeyNeed], rates: Sequence[RateNeed], hold: Sequence[str]
) -> Iterator[tuple[str, str | None]]:
    """(field, problem) of everything that is wrong with a task's needs."""
    yield from _key_problems("limits", [need.key for need in limits])
    yield from _key_problems("rates", [need.key for need in rates])
    for n, need in enumerate(limits):
        yield f"limits[{n}].capacity", _whole(need.capacity, CAPACITY_MAX)
    for n, each in enumerate(rates):
        yield f"rates[{n}].count", _whole(each.count, TOKENS_MAX)
        yield f"rates[{n}].burst", _whole(each.burst, TOKENS_MAX)
        yield f"rates[{n}].per", _period_problem(each.per_us)
    unknown = [state for state in hold if state not in HOLD_STATES]
    if unknown or len(set(hold)) < len(hold):
        yield "hold", f"give any of {', '.join(HOLD_STATES)}, each once"


def _key_problems(field: str, keys: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    if len(keys) > LIMITS_MAX:
        yield field, f"more than {LIMITS_MAX}"
    for n, key in enumerate(keys):
        yield f"{field}[{n}]", _text_problem(key) or ("the same key twice" if key in keys[:n] else None)


def _text_problem(value: object) -> str | None:
    from actionqueue.core.spec import text_problem

    return text_problem(value, LIMIT_KEY_CHARACTERS_MAX)


def _whole(value: Any, most: int) -> str | None:
    return (
        None
        if type(value) is int and 1 <= value <= most
        else f"is {shown(value)}; give a whole number from 1 to {most}"
    )


def _period_problem(per_us: Any) -> str | None:
    return None if type(per_us) is int and 1 <= per_us <= PERIOD_US_MAX else "give a microsecond to 366 days"


def _refuse(what: str, problems: dict[str, str | None]) -> None:
    found = {name: problem for name, problem in problems.items() if problem is not None}
    if found:
        listed = "; ".join(f"{name}: {problem}" for name, problem in found.items())
        raise InvalidSubmission(f"{what}: {listed}", problems=found)
