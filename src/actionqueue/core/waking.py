"""Lanes in heaps: those that may start now (``open``), and those that wait for slots or for a token of a rate.

A lane is in one heap at a time (its ``spot``), by the key of its best run. Its entry may be better than its best run is
by now, never worse; entries of lanes that have moved on are outdated and dropped when they surface. Knows: who waits for
what, and whom to wake when slots become free. Must not know: what else may block a lane; ``core/places.py`` asks.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

from msgspec import Struct, field

from actionqueue.core.awaiting import Awaiting
from actionqueue.core.lanes import Bucket, Lane, Slots
from actionqueue.core.limits import Limits
from actionqueue.core.ready import Key
from actionqueue.core.timers import Timers

if TYPE_CHECKING:
    from actionqueue.core.state import PauseMark, Run

PUTS_BEFORE_TRIM = 64
"""Entries pushed for each two lanes before the heaps of lanes are looked through for outdated ones."""


class Waking(Struct, eq=False):
    """The heaps of lanes of one state, and everything that lanes wait for."""

    lanes: dict[tuple[str, str], Lane] = field(default_factory=dict)
    """The base of each family."""
    lane_count: int = 0
    """Of all families, bases included."""
    queues: dict[str, Slots] = field(default_factory=dict)
    executors: dict[str, Slots] = field(default_factory=dict)
    bounds: dict[str, Slots] = field(default_factory=dict)
    """Slots of handlers that have a concurrency of their own."""
    limits: Limits = field(default_factory=Limits)
    open: Slots = field(default_factory=lambda: Slots("open", "open"))
    timers: Timers = field(default_factory=Timers)
    awaiting: Awaiting = field(default_factory=Awaiting)
    engine_pause: PauseMark | None = None
    now: int = 0
    """The instant of the present step: what rates are judged by."""
    _serial: int = 0
    _puts: int = 0

    def put(self, lane: Lane, spot: Slots, key: Key) -> None:
        """``lane`` waits in ``spot`` as ``key``."""
        lane.spot, lane.key = spot, key
        self._serial += 1
        self._puts += 1
        waiting = spot.waiting
        if waiting:
            heappush(waiting, (key[0], key[1], self._serial, lane))
        else:
            spot.waiting = [(key[0], key[1], self._serial, lane)]
        if type(spot) is Bucket:
            self.limits.watch(spot)

    def pop(self, spot: Slots) -> Lane | None:
        """The best lane that waits in ``spot``, taken out; None without one."""
        waiting = spot.waiting
        while waiting:
            entry = heappop(waiting)
            if is_there(entry, spot):
                entry[3].spot = None
                return entry[3]
        return None

    def wake(self, slots: Slots) -> None:
        """Slots have become free: the best lane that waits for them may try."""
        if not slots.free and not (type(slots) is Bucket and slots.next_at <= self.now):
            return
        while (lane := self.pop(slots)) is not None:
            head = lane.ready.head()
            if head is None:
                continue
            key = key_of(head)
            if key == lane.key:
                lane.woken_by = slots
                self.put(lane, self.open, key)
                return
            self.put(lane, slots, key)

    def pass_time(self, now: int) -> None:
        """It is ``now``: buckets that have a token wake who waits for one."""
        self.now = now
        if self.limits.timers and self.engine_pause is None:
            for bucket in self.limits.take_due(now):
                self.wake(bucket)
                if bucket.waiting:
                    self.limits.watch(bucket)

    def next_timer(self) -> int | None:
        """The instant of the earliest timer, deadline (to start, or of a wait) or token that is waited for, if any."""
        times = [self.timers.next_deadline(), self.awaiting.next_due()]
        if self.engine_pause is None:
            times += [self.timers.next_due(), self.limits.next_timer()]
        return min((at for at in times if at is not None), default=None)

    def trim(self, live: int) -> None:
        """Look through the heaps that no other call keeps small, where most is outdated. ``live``: how many live runs."""
        self.timers.trim(live)
        if self._puts <= PUTS_BEFORE_TRIM + 2 * self.lane_count:
            return
        self._puts = 0
        for spot in (self.open, *self.all_slots()):
            if spot.waiting:
                spot.waiting = [entry for entry in spot.waiting if is_there(entry, spot)]
                heapify(spot.waiting)

    def all_slots(self) -> list[Slots]:
        """Everything that lanes wait for."""
        return [*self.queues.values(), *self.executors.values(), *self.bounds.values(), *self.limits.slots()]


def key_of(run: Run) -> Key:
    """What a Ready run queues by."""
    return run.rank, run.order


def is_there(entry: tuple[int, int, int, Lane], spot: Slots) -> bool:
    """Whether an entry of a heap of lanes still stands for its lane."""
    lane = entry[3]
    return lane.spot is spot and lane.key == entry[:2]
