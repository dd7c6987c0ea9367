"""Keys that only so many runs may hold at once, and rates at which runs of a key may start.

**A key is held** by a run while an attempt of it is open; and after an attempt ended, when the run rests in a state that
the task's ``hold`` lists, until its next attempt ends or it does. So it is held over that state and over the wait for the
next start. Which state it rested in is told by the outcome of its latest attempt (``RESTS_IN``), so that the holders follow
from the rows alone (``holds_keys``), live, on replay and after a restart. A run takes all its keys as it starts, and gives
all of them back together: holding some while waiting for others does not occur, and so no circle of runs that wait for
each other's keys. One that holds its keys already queues where they are not asked for (``Lane.holding``). Every way to
end passes ``attempts.end_run``, which gives them back.

**A rate** is a token bucket, kept as the *generic cell rate algorithm* keeps it (ITU-T I.371, annex A, the virtual
scheduling form): one instant per key, the theoretical arrival time ``tat``, from which the bucket is full. With an
interval of ``per / count`` between tokens a start at ``now`` is allowed if ``tat - (burst - 1) * interval <= now``, and
moves ``tat`` to ``max(tat, now) + interval``. The instants are those recorded in started events, so replay gives the same
fill. It is a durable entry (kind ``rate``) while it is in the future, and forgotten when a projection finds it has passed.

Knows: the slots of keys, the meters and buckets of rates. Must not know: which lane waits for what; ``core/places.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

from msgspec import Struct, field, msgpack

from actionqueue.core.lanes import Bucket, KeySlots, Meter, Slots
from actionqueue.core.needs import KeyNeed, RateNeed

if TYPE_CHECKING:
    from actionqueue.core.state import Run

RATE = "rate"
"""The kind of the entries that rates are."""

OUTDATED_TIMERS_MAX = 64
"""Outdated timers of buckets kept beside as many as there are others."""

RESTS_IN = {4: "suspended", 5: "awaiting"}
"""By the outcome of its latest attempt (its code), the state in which a run rested after it; else ``retry_wait``."""


class Fill(Struct, array_like=True):
    """The body of a rate's entry: its ``tat``, and the rate that its latest start went by (for listings)."""

    tat: int
    count: int
    per_us: int
    burst: int


class Limits(Struct, eq=False):
    """The keys and rates that lanes need, or that are in use."""

    keys: dict[str, KeySlots] = field(default_factory=dict)
    """The slots of each key; those for other capacities are its ``twin``s."""
    capacities: dict[str, int] = field(default_factory=dict)
    """Capacities that apply instead of those submitted."""
    meters: dict[str, Meter] = field(default_factory=dict)
    buckets: dict[RateNeed, Bucket] = field(default_factory=dict)
    timers: list[tuple[int, int, Bucket]] = field(default_factory=list)
    """A heap of (instant, serial, bucket) of buckets that lanes wait for; outdated unless ``wake_at`` says the same."""
    passing: list[tuple[int, str]] = field(default_factory=list)
    """A heap of (instant, key): when to look whether a meter's ``tat`` has passed. One for each that is timed."""
    _serial: int = 0

    # --- keys --------------------------------------------------------------------------------------------------

    def at_key(self, need: KeyNeed) -> KeySlots:
        """The slots that ``need`` asks for, made on first use; they count one lane more."""
        first = slots = self.keys.get(need.key)
        while slots is not None and slots.asked != need.capacity:
            slots = slots.twin
        if slots is None:
            running: dict[bytes, Run] = {} if first is None else first.running
            capacity = self.capacities.get(need.key, need.capacity)
            slots = KeySlots("key", need.key, capacity, running, asked=need.capacity, twin=first)
            self.keys[need.key] = slots
        slots.lanes += 1
        return slots

    def leave_key(self, slots: KeySlots) -> None:
        """A lane less needs these slots. Without any they are forgotten: then nobody can hold the key by them."""
        slots.lanes -= 1
        if slots.lanes:
            return
        first = self.keys[slots.name]
        if first is not slots:
            while first.twin is not slots:
                assert first.twin is not None, "slots of a key are among its twins"
                first = first.twin
            first.twin = slots.twin
        elif slots.twin is None:
            del self.keys[slots.name]
        else:
            self.keys[slots.name] = slots.twin

    def twins(self, key: str) -> Iterator[KeySlots]:
        """The slots of a key, of each capacity."""
        slots = self.keys.get(key)
        while slots is not None:
            yield slots
            slots = slots.twin

    # --- rates -------------------------------------------------------------------------------------------------

    def bucket(self, need: RateNeed) -> Bucket:
        """The bucket that ``need`` asks for, made on first use; it counts one lane more."""
        bucket = self.buckets.get(need)
        if bucket is None:
            meter = self._meter(need.key)
            meter.buckets += 1
            interval_us = need.interval_us
            bucket = self.buckets[need] = Bucket(
                "rate", need.key, need=need, meter=meter, interval_us=interval_us,
                slack_us=(need.burst - 1) * interval_us,
            )  # fmt: skip
        bucket.lanes += 1
        return bucket

    def leave_bucket(self, bucket: Bucket) -> None:
        """A lane less needs it. The meter stays while its instant is to come."""
        bucket.lanes -= 1
        if bucket.lanes:
            return
        bucket.wake_at = None
        del self.buckets[bucket.need]
        meter = bucket.meter
        meter.buckets -= 1
        if not meter.buckets and not meter.timed:
            del self.meters[meter.key]

    def _meter(self, key: str) -> Meter:
        meter = self.meters.get(key)
        if meter is None:
            meter = self.meters[key] = Meter(key)
        return meter

    def take(self, bucket: Bucket, now: int, entries: dict[tuple[str, str], bytes | None]) -> None:
        """A run starts: a token is gone. The entry of the rate is among ``entries`` then."""
        meter, need = bucket.meter, bucket.need
        meter.tat = tat = max(meter.tat, now) + bucket.interval_us
        entries[RATE, need.key] = msgpack.encode(Fill(tat, need.count, need.per_us, need.burst))
        self._time(meter)

    def restore(self, key: str, body: bytes) -> None:
        """The entry of a rate, read back."""
        meter = self._meter(key)
        meter.tat = msgpack.decode(body, type=Fill).tat
        self._time(meter)

    def _time(self, meter: Meter) -> None:
        if not meter.timed:
            meter.timed = True
            heappush(self.passing, (meter.tat, meter.key))

    def forget_passed(self, now: int, entries: dict[tuple[str, str], bytes | None]) -> None:
        """Rates whose bucket is full again need no entry; what no lane needs either is forgotten."""
        heap = self.passing
        while heap and heap[0][0] <= now:
            _, key = heappop(heap)
            meter = self.meters[key]
            if meter.tat > now:
                heappush(heap, (meter.tat, key))
                continue
            meter.timed = False
            entries[RATE, key] = None
            if not meter.buckets:
                del self.meters[key]

    # --- timers ------------------------------------------------------------------------------------------------

    def watch(self, bucket: Bucket) -> None:
        """A lane waits for a token of ``bucket``: its timer is set to the instant of the next one."""
        at = bucket.next_at
        if bucket.wake_at == at:
            return
        bucket.wake_at = at
        self._serial += 1
        heappush(self.timers, (at, self._serial, bucket))
        if len(self.timers) > OUTDATED_TIMERS_MAX + 2 * len(self.buckets):
            self.timers = [entry for entry in self.timers if entry[2].wake_at == entry[0]]
            heapify(self.timers)

    def next_timer(self) -> int | None:
        """The earliest instant at which a bucket that is waited for has a token."""
        while self.timers:
            at, _, bucket = self.timers[0]
            is_set = bucket.wake_at == at
            if is_set and bucket.waiting and bucket.next_at == at:
                return at
            heappop(self.timers)
            if is_set:
                bucket.wake_at = None
                if bucket.waiting:
                    self.watch(bucket)  # others of its key have started since
        return None

    def take_due(self, now: int) -> list[Bucket]:
        """Buckets that are waited for and have a token, each once; their timers are not set any more."""
        found: list[Bucket] = []
        while (at := self.next_timer()) is not None and at <= now:
            bucket = heappop(self.timers)[2]
            bucket.wake_at = None
            found.append(bucket)
        return found

    # --- the whole ---------------------------------------------------------------------------------------------

    def slots(self) -> Iterator[Slots]:
        """Everything of limits that lanes wait for."""
        for slots in self.keys.values():
            yield from self.twins(slots.name)
        yield from self.buckets.values()

    def clear(self) -> None:
        """Let go of everything."""
        for slots in self.slots():
            slots.running.clear()
            slots.waiting = None
        for held in (self.keys, self.meters, self.buckets, self.timers, self.passing):
            held.clear()


def holds_keys(run: Run) -> bool:
    """Whether ``run``, which is live, holds the keys it needs: the rule in the module's head, from its facts alone."""
    latest = run.latest
    if latest is None:
        return False
    outcome = latest.outcome
    if outcome is None:
        return True
    hold = run.task.extra.options.hold
    return bool(hold) and RESTS_IN.get(outcome.value, "retry_wait") in hold
