"""Time that passes only when it is told to: elapsed time, and a wall clock that can be set apart from it.

Knows: how the two relate, as on a real machine. Must not know: who looks at them.
"""

from __future__ import annotations

START_US = 1_767_225_600_000_000
"""Where virtual time begins: the first of January 2026, UTC."""


class VirtualTime:
    """One machine's time, in microseconds.

    >>> time = VirtualTime()
    >>> clock = time.clock()
    >>> time.advance(1_000_000)
    >>> time.set_wall(-3_600_000_000)
    >>> clock.now_us() - START_US, clock.wall_us() - START_US
    (1000000, -3599000000)
    """

    __slots__ = ("elapsed_us", "wall_us")

    def __init__(self, at_us: int = START_US) -> None:
        self.elapsed_us = 0
        self.wall_us = at_us

    def advance(self, by_us: int) -> None:
        """That long passes."""
        assert by_us >= 0, "elapsed time never goes back"
        self.elapsed_us += by_us
        self.wall_us += by_us

    def set_wall(self, by_us: int) -> None:
        """Someone sets the wall clock, forward or back; nothing elapses."""
        self.wall_us += by_us

    def clock(self, not_before_us: int = 0) -> VirtualClock:
        """The clock of an engine that opens now, anchored as ``engine.clock.SystemClock`` is."""
        return VirtualClock(self, not_before_us)


class VirtualClock:
    """Implements ``engine.clock.Clock``."""

    __slots__ = ("_base_us", "_time")

    def __init__(self, time: VirtualTime, not_before_us: int = 0) -> None:
        self._time = time
        self._base_us = max(time.wall_us, not_before_us) - time.elapsed_us

    def now_us(self) -> int:
        """The anchor plus what has elapsed since."""
        return self._base_us + self._time.elapsed_us

    def wall_us(self) -> int:
        """The wall clock."""
        return self._time.wall_us

    def until_us(self, instant_us: int) -> int:
        """How long it is until this clock shows that instant; 0 when it did already."""
        return max(0, instant_us - self.now_us())
