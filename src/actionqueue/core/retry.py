"""When a failed attempt is tried again: backoff strategies and the terms an attempt runs under.

Knows delays and caps; knows nothing of runs. Jitter is drawn by the caller and handed in, so that a delay is a pure
function of its inputs and can be recorded. Exponential backoff with jitter in [0.5, 1] × delay keeps at least half of
the delay while spreading a herd ("Exponential Backoff And Jitter", M. Brooker, 2015: the "equal jitter" variant).
"""

from __future__ import annotations

from datetime import timedelta

from msgspec import Struct

from actionqueue.core.errors import InvalidSubmission
from actionqueue.core.instants import parse_duration_us

DELAY_US_MAX = 366 * 86_400_000_000
"""The longest backoff, in microseconds (366 days)."""

DELAYS_MAX = 100
"""The longest explicit list of delays."""

ATTEMPTS_MAX = 2**31 - 1
"""The largest ``max_attempts``."""


class Fixed(Struct, frozen=True, tag="fixed", array_like=True, gc=False):
    """The same delay after each failure, in microseconds."""

    delay_us: int

    def delay_after(self, failure_count: int, draw: float) -> int:
        """Microseconds to wait after failure number ``failure_count`` (from 1)."""
        del failure_count, draw
        return self.delay_us


class Exponential(Struct, frozen=True, tag="exponential", array_like=True, gc=False):
    """base × factor^(n - 1), at most ``cap_us``; with jitter, drawn from [0.5, 1] × that."""

    base_us: int
    factor: float
    cap_us: int
    jitter: bool

    def delay_after(self, failure_count: int, draw: float) -> int:
        """Microseconds to wait after failure number ``failure_count`` (from 1); ``draw`` is in [0, 1)."""
        try:
            delay = min(self.cap_us, int(self.base_us * self.factor ** (failure_count - 1)))
        except OverflowError:
            delay = self.cap_us
        return int(delay * (0.5 + draw / 2)) if self.jitter else delay


class Delays(Struct, frozen=True, tag="delays", array_like=True):
    """An explicit list of delays in microseconds, whose last repeats."""

    delays_us: tuple[int, ...]

    def delay_after(self, failure_count: int, draw: float) -> int:
        """Microseconds to wait after failure number ``failure_count`` (from 1)."""
        del draw
        return self.delays_us[min(failure_count, len(self.delays_us)) - 1]


Backoff = Fixed | Exponential | Delays


def _bounded(value: timedelta | float | str, field: str) -> int:
    delay_us = parse_duration_us(value, field=field)
    if delay_us > DELAY_US_MAX:
        raise InvalidSubmission(
            f"{field}: longer than 366 days; give a shorter delay", problems={field: "longer than 366 days"}
        )
    return delay_us


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def fixed(delay: timedelta | float | str) -> Fixed:
    """A constant backoff.

    ``delay`` is a timedelta, seconds, or text such as "5s" (0 to 366 days). Raises ``InvalidDuration``.

    >>> fixed("5s").delay_after(3, 0.0)
    5000000
    """
    return Fixed(_bounded(delay, "delay"))


def exponential(
    base: timedelta | float | str,
    *,
    factor: float = 2,
    cap: timedelta | float | str = "5m",
    jitter: bool = True,
) -> Exponential:
    """An exponential backoff: base, base × factor, base × factor², … up to ``cap``.

    With ``jitter`` each delay is drawn once from [0.5, 1] × delay and recorded. ``factor`` is 1 to 1000.
    Raises ``InvalidDuration``, or ``InvalidSubmission`` when base is above cap.

    >>> [exponential("1s", cap="5s", jitter=False).delay_after(n, 0.0) // 1_000_000 for n in (1, 2, 3, 4)]
    [1, 2, 4, 5]
    """
    base_us, cap_us = _bounded(base, "base"), _bounded(cap, "cap")
    problems: dict[str, str] = {}
    if base_us > cap_us:
        problems["base"] = "larger than cap"
    if not _is_number(factor) or not 1 <= factor <= 1000:
        problems["factor"] = "not between 1 and 1000"
    if problems:
        raise InvalidSubmission(f"exponential backoff: {problems}", problems=problems)
    return Exponential(base_us, float(factor), cap_us, jitter)


def delays(*each: timedelta | float | str) -> Delays:
    """An explicit list of 1 to 100 delays; the last one repeats.

    >>> delays("1s", "10s").delay_after(7, 0.0)
    10000000
    """
    if not 1 <= len(each) <= DELAYS_MAX:
        raise InvalidSubmission("delays: give 1 to 100 delays", problems={"delays": "give 1 to 100 delays"})
    return Delays(tuple(_bounded(delay, f"delays[{n}]") for n, delay in enumerate(each)))


DEFAULT_BACKOFF = Exponential(1_000_000, 2.0, 300_000_000, jitter=True)
"""Exponential from 1 s, cap 5 min, jitter: what a handler gets that names none."""


class Retry(Struct, frozen=True):
    """How often a run is tried, the first attempt included, and how long to wait in between.

    ``max_attempts`` is 1 to 2**31 - 1. Raises ``InvalidSubmission``.

    >>> Retry(max_attempts=5, backoff=exponential("1s")).max_attempts
    5
    """

    max_attempts: int = 3
    backoff: Backoff = DEFAULT_BACKOFF

    def __post_init__(self) -> None:
        problems: dict[str, str] = {}
        if type(self.max_attempts) is not int or not 1 <= self.max_attempts <= ATTEMPTS_MAX:
            problems["max_attempts"] = f"is {self.max_attempts!r}; give a whole number from 1 to {ATTEMPTS_MAX}"
        backoff: object = self.backoff
        if not isinstance(backoff, Backoff):
            problems["backoff"] = f"is {backoff!r}; give fixed(…), exponential(…) or delays(…)"
        if problems:
            listed = "; ".join(f"{name} {problem}" for name, problem in problems.items())
            raise InvalidSubmission(f"Retry: {listed}", problems=problems)


class AttemptTerms(Struct, frozen=True, array_like=True, gc=False):
    """What an attempt runs under, read from its handler at its start and recorded with it.

    ``on_lost`` is None where the default applies: ``retry``, or ``fail`` for a task with ``max_attempts=1``.
    """

    timeout_us: int | None = None
    backoff: Backoff = DEFAULT_BACKOFF
    on_lost: str | None = None
    max_lost: int = 5

    def fails_when_lost(self, max_attempts: int) -> bool:
        """Whether a lost attempt fails its run at once."""
        return self.on_lost == "fail" or (self.on_lost is None and max_attempts == 1)


DEFAULT_TERMS = AttemptTerms()
