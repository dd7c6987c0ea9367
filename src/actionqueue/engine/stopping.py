"""Attempts that must end: past their timeout, or asked to stop. In memory only; a crash makes them lost anyway.

An attempt with a timeout is watched until then. Once it is being stopped it has a grace period to end by itself; after
that it is given up: closed with the outcome it was being stopped for, and its slot returned.
"""

from __future__ import annotations

from heapq import heappop, heappush

from msgspec import Struct

from actionqueue.core.state import Attempt, Outcome, Run

_OUTCOMES = {"timed_out": Outcome.TIMED_OUT, "canceled": Outcome.CANCELED}


class Due(Struct):
    """An attempt whose time has come: to be stopped (``outcome`` None), or to be given up with that outcome."""

    run: Run
    attempt: Attempt
    outcome: Outcome | None
    reason: str


class Stopping:
    """Deadlines of attempts. ``grace_us`` is how long code may take to end after it was asked to."""

    def __init__(self, grace_us: int) -> None:
        self.grace_us = grace_us
        self._heap: list[tuple[int, int, Due]] = []
        self._graces: dict[bytes, str] = {}
        self._watched: set[bytes] = set()
        self._serial = 0

    def __bool__(self) -> bool:
        return bool(self._watched or self._graces)

    def watch(self, run: Run, attempt: Attempt, deadline: int) -> None:
        """Stop ``attempt`` at ``deadline`` unless it has ended."""
        self._watched.add(attempt.id)
        self._push(deadline, Due(run, attempt, None, "timed_out"))

    def begin(self, run: Run, attempt: Attempt, reason: str, now: int) -> None:
        """``attempt`` was asked to stop for ``reason``; its grace period begins (once)."""
        if attempt.id not in self._graces:
            self._graces[attempt.id] = reason
            self._push(now + self.grace_us, Due(run, attempt, _OUTCOMES[reason], reason))

    def ended(self, attempt_id: bytes) -> None:
        """The attempt has ended; its deadlines mean nothing any more."""
        self._watched.discard(attempt_id)
        self._graces.pop(attempt_id, None)

    def is_stopping(self, attempt_id: bytes) -> bool:
        """Whether the attempt has been asked to stop."""
        return attempt_id in self._graces

    def due(self, now: int) -> list[Due]:
        """What is due, once each."""
        found = []
        heap = self._heap
        while heap and heap[0][0] <= now:
            each = heappop(heap)[2]
            attempt_id = each.attempt.id
            if each.outcome is None:
                if attempt_id in self._watched and attempt_id not in self._graces:
                    found.append(each)
                self._watched.discard(attempt_id)
            elif attempt_id in self._graces:
                found.append(each)
        return found

    def next_due(self) -> int | None:
        """The earliest deadline that still means something."""
        heap = self._heap
        while heap and not self._is_current(heap[0][2]):
            heappop(heap)
        return heap[0][0] if heap else None

    def _is_current(self, due: Due) -> bool:
        return due.attempt.id in (self._watched if due.outcome is None else self._graces)

    def _push(self, at: int, due: Due) -> None:
        self._serial += 1
        heappush(self._heap, (at, self._serial, due))
        if len(self._heap) > 64 + 4 * (len(self._watched) + len(self._graces)):
            self._heap = sorted(entry for entry in self._heap if self._is_current(entry[2]))
