"""The engine's instants: elapsed time on a wall-clock anchor.

Delays, backoffs and timeouts follow elapsed time, so between two readings the engine's clock moves by what really
elapsed (including sleep of the machine, where the platform can tell), whatever happens to the wall clock. It is anchored
once, at opening: at the wall clock, or at the last recorded instant if that is later, so recorded instants never
decrease. When wall clock and engine clock disagree by more than a minute, the wall clock was set: ``disagreement_us``
says so, and whoever deletes things by age stops until it has been stable (see ``Doubt``).
"""

from __future__ import annotations

import time
from typing import Protocol

DISAGREEMENT_US_MAX = 60_000_000
STABLE_US = 600_000_000


class Clock(Protocol):
    """Where the engine reads time; tests and the simulator bring their own."""

    def now_us(self) -> int:
        """The present instant of the engine."""
        ...

    def wall_us(self) -> int:
        """What the wall clock says."""
        ...


def _elapsed_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic_ns()


class SystemClock:
    """Elapsed time of this machine, anchored at the wall clock (or at ``not_before``, if that is later)."""

    __slots__ = ("_base_us",)

    def __init__(self, not_before_us: int = 0) -> None:
        self._base_us = max(time.time_ns() // 1000, not_before_us) - _elapsed_ns() // 1000

    def now_us(self) -> int:
        """The anchor plus what has elapsed since."""
        return self._base_us + _elapsed_ns() // 1000

    def wall_us(self) -> int:
        """The wall clock."""
        return time.time_ns() // 1000


class Doubt:
    """Whether the clock can be trusted for deleting and expiring things.

    >>> doubt = Doubt()
    >>> doubt.look(now_us=0, wall_us=3_600_000_000)
    True
    >>> doubt.confirm(now_us=1, wall_us=3_600_000_001)
    >>> doubt.look(now_us=2, wall_us=3_600_000_002)
    False
    """

    __slots__ = ("_accepted_us", "_last_us", "_since_us")

    def __init__(self) -> None:
        self._accepted_us = 0
        self._since_us: int | None = None
        self._last_us = 0

    def look(self, *, now_us: int, wall_us: int) -> bool:
        """Whether there is doubt now; call it about once a second."""
        apart = wall_us - now_us
        if abs(apart - self._accepted_us) <= DISAGREEMENT_US_MAX:
            self._since_us = None
            return False
        if self._since_us is None or abs(apart - self._last_us) > DISAGREEMENT_US_MAX:
            self._since_us = now_us
        self._last_us = apart
        if now_us - self._since_us >= STABLE_US:
            self.confirm(now_us=now_us, wall_us=wall_us)
            return False
        return True

    def confirm(self, *, now_us: int, wall_us: int) -> None:
        """An operator vouches for the clock as it is."""
        self._accepted_us = wall_us - now_us
        self._since_us = None
