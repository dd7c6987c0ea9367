"""What runs wait for that is no instant of their own: signals that may come, deadlines of waits, children.

A run in Awaiting has one **wait**: its kind (``sleep``, ``signal``, ``children``), the name it is recorded under, since
when, and until which instant at the latest. A **signal** is kept from when it arrives until it expires, under its
*address*, (name, key). Its order is the sequence of its event. A wait for a signal is *matched* while a signal of its
address is kept whose order is above ``served``: the order of the newest one that was given to an earlier wait of the run
at that address. So each wait of a run is served by the oldest signal that came to none of its waits before.

Who is matched is in ``waking``, to be made Ready a part at a time (``core/waits.py``), everyone else in ``waiting`` by
address. A signal moves all that wait at its address from there to here at once; nothing ever looks for a match among
others. What is matched is not ended by its deadline any more, and stays matched: signals expire only when nobody is.

Knows: waits, signals, who waits where. Must not know: states, events, what ends a wait.
"""

from __future__ import annotations

from bisect import bisect_right
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

from msgspec import Struct, field

from actionqueue.core.reasons import Where

if TYPE_CHECKING:
    from collections.abc import Iterator

    from actionqueue.core.state import Run

SLEEP, SIGNAL, CHILDREN = "sleep", "signal", "children"
"""The kinds of waits."""

Address = tuple[str, str | None]
"""The name and the key of a signal, or of what waits for one."""
Entry = tuple[int, int, "Run"]
"""(instant, serial, run)"""
OUTDATED_MAX = 64
"""Outdated entries that the heap may have, beside as many as it has others."""


class WaitAsked(Struct, frozen=True, array_like=True, gc=False):
    """What a handler asks to wait for; ``after_us`` is its timeout, from the end of its attempt on (None: for ever)."""

    kind: str
    name: str
    after_us: int | None = None
    signal: str = ""
    key: str | None = None
    served: int = 0
    """The order of the newest signal that an earlier wait of the run was given at that address."""


class Wait(Struct, frozen=True, array_like=True, gc=False):
    """What a run in Awaiting waits for, since when, and until when at the latest."""

    kind: str
    name: str
    since: int
    until: int | None = None
    signal: str = ""
    key: str | None = None
    served: int = 0

    @property
    def address(self) -> Address:
        """Where its signal would come to."""
        return self.signal, self.key


class Signal(Struct, frozen=True, array_like=True):
    """A signal that is kept. ``payload`` is JSON; ``by`` is who sent it."""

    order: int
    at: int
    id: str
    name: str
    key: str | None
    payload: bytes
    by: str = ""

    @property
    def address(self) -> Address:
        """Whom it comes to."""
        return self.name, self.key


class Awaiting(Struct, eq=False):
    """The live waits and the signals that are kept. See the module's head."""

    waits: dict[bytes, Wait] = field(default_factory=dict)
    """By run id: of the runs that are Awaiting."""
    waiting: dict[Address, dict[bytes, Run]] = field(default_factory=dict)
    waking: dict[bytes, Run] = field(default_factory=dict)
    signals: dict[str, Signal] = field(default_factory=dict)
    """By id, in the order of their arrival."""
    kept: dict[Address, list[Signal]] = field(default_factory=dict)
    ends_at: list[Entry] = field(default_factory=list)
    """A heap of the deadlines of waits."""
    timed: int = 0
    """How many waits have one."""
    touched_waits: dict[bytes, None] = field(default_factory=dict)
    touched_signals: dict[str, None] = field(default_factory=dict)
    """Of these the stored entries are outdated."""
    _serial: int = 0

    # --- waits -------------------------------------------------------------------------------------------------

    def enter(self, run: Run, wait: Wait) -> None:
        """``run`` waits for that."""
        run_id = run.id_bytes
        run.where, run.until = Where.AWAITING, wait.until or 0
        self.waits[run_id] = wait
        self.touched_waits[run_id] = None
        if wait.until is not None:
            self._serial += 1
            self.timed += 1
            heappush(self.ends_at, (wait.until, self._serial, run))
        if wait.kind != SIGNAL:
            return
        if self.match(wait) is not None:
            self.waking[run_id] = run
        else:
            self.waiting.setdefault(wait.address, {})[run_id] = run

    def leave(self, run: Run) -> Wait:
        """``run`` waits no more; what it waited for."""
        run_id = run.id_bytes
        run.where = Where.NOWHERE
        wait = self.waits.pop(run_id)
        self.touched_waits[run_id] = None
        if wait.until is not None:
            self.timed -= 1
            if len(self.ends_at) > OUTDATED_MAX + 2 * self.timed:
                self.ends_at = [entry for entry in self.ends_at if _is_awaited(entry)]
                heapify(self.ends_at)
        if wait.kind == SIGNAL and self.waking.pop(run_id, None) is None:
            others = self.waiting[wait.address]
            del others[run_id]
            if not others:
                del self.waiting[wait.address]
        return wait

    def match(self, wait: Wait) -> Signal | None:
        """The signal that serves ``wait``, if it is kept."""
        kept = self.kept.get(wait.address)
        if not kept or kept[-1].order <= wait.served:
            return None
        return kept[bisect_right(kept, wait.served, key=_order_of)]

    # --- signals -----------------------------------------------------------------------------------------------

    def keep(self, signal: Signal) -> None:
        """``signal`` has come: all that wait for it are matched."""
        self.signals[signal.id] = signal
        self.touched_signals[signal.id] = None
        self.kept.setdefault(signal.address, []).append(signal)
        woken = self.waiting.pop(signal.address, None)
        if woken is not None:
            if self.waking:
                self.waking.update(woken)
            else:
                self.waking = woken

    def oldest(self) -> Signal | None:
        """The signal that came first of those kept."""
        return next(iter(self.signals.values()), None)

    def drop(self, upto: int) -> None:
        """The signals up to that order are kept no more."""
        dropped: dict[Address, int] = {}
        for signal in self._upto(upto):
            dropped[signal.address] = dropped.get(signal.address, 0) + 1
            self.touched_signals[signal.id] = None
        for address, count in dropped.items():
            kept = self.kept[address]
            for signal in kept[:count]:
                del self.signals[signal.id]
            if count == len(kept):
                del self.kept[address]
            else:
                del kept[:count]

    def _upto(self, order: int) -> Iterator[Signal]:
        for signal in self.signals.values():
            if signal.order > order:
                return
            yield signal

    # --- deadlines ---------------------------------------------------------------------------------------------

    def due(self, now: int, most: int) -> list[Run]:
        """Up to ``most`` runs whose wait is past its deadline, first due first, but for those that a signal ended before.

        They stay where they are: whoever asks ends their waits.
        """
        found: dict[bytes, Run] = {}  # one that waited twice until the same instant is there twice
        heap = self.ends_at
        while heap and heap[0][0] <= now and len(found) < most:
            entry = heappop(heap)
            run_id = entry[2].id_bytes
            if _is_awaited(entry) and run_id not in self.waking:
                found[run_id] = entry[2]
        return list(found.values())

    def next_due(self) -> int | None:
        """The earliest deadline of a wait."""
        heap = self.ends_at
        while heap and not _is_awaited(heap[0]):
            heappop(heap)
        return heap[0][0] if heap else None

    # --- the whole ---------------------------------------------------------------------------------------------

    def clear(self) -> None:
        """Let go of everything."""
        for held in (self.waits, self.waiting, self.waking, self.signals, self.kept):
            held.clear()
        self.ends_at.clear()
        self.timed = 0


def _order_of(signal: Signal) -> int:
    return signal.order


def _is_awaited(entry: Entry) -> bool:
    return entry[2].where is Where.AWAITING and entry[2].until == entry[0]
