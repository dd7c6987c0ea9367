"""A wake-up for one waiting thread, cheap for the many that ring it."""

from __future__ import annotations

import contextlib
import threading


class Wake:
    """``set`` lets the next (or present) ``wait`` return; ringing twice is ringing once.

    The waiter must look for work after ``wait`` returned, and ringers must publish work before ``set``: then no work is
    ever missed, since a ring that comes between the return and the reset is seen by that look.
    """

    __slots__ = ("_lock", "_rung")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()
        self._rung = False

    def set(self) -> None:
        """Ring."""
        if not self._rung:
            self._rung = True
            with contextlib.suppress(RuntimeError):  # another ringer was faster
                self._lock.release()

    def wait(self, timeout_s: float | None = None) -> None:
        """Return when rung, or after the timeout (seconds)."""
        self._lock.acquire(timeout=-1 if timeout_s is None else min(timeout_s, threading.TIMEOUT_MAX))
        self._rung = False
