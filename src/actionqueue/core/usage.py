"""What bounds how much runs at once, and how far each bound is used up: keys, rates, queues, handlers, executors.

Knows: how to read that off the places. The engine answers ``ListLimits`` with it, as plain values.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from itertools import chain, islice

from msgspec import Struct

from actionqueue.core.ids import RunId
from actionqueue.core.instants import shown_datetime
from actionqueue.core.lanes import Bucket, Slots
from actionqueue.core.places import Places
from actionqueue.core.plain import plain
from actionqueue.core.state import Accepted, State
from actionqueue.core.waking import is_there, key_of
from actionqueue.core.why import listed

KINDS = ("key", "rate", "queue", "handler", "executor")
LIMITS_LOOKED_AT_MAX = 10_000
"""Limits that are looked at for a listing; there may be a key for each customer."""
LIMITS_LISTED_MAX = 1_000
"""Limits in one listing."""


class LimitRecord(Struct, frozen=True, kw_only=True):
    """Something that bounds how many runs go at once (``key``, ``queue``, ``handler``, ``executor``), or start (``rate``).

    ``taken`` of ``capacity`` are held, by ``holders`` (20 at most are named), and ``waiting`` ready runs wait for it. A
    rate lets ``count`` start in ``per_us`` microseconds, ``burst`` at once; ``tokens`` are left, ``next_at`` is when there
    is another one, where none is.
    """

    kind: str
    name: str
    capacity: int | None = None
    taken: int = 0
    holders: tuple[RunId, ...] = ()
    waiting: int = 0
    count: int | None = None
    per_us: int | None = None
    burst: int | None = None
    tokens: int | None = None
    next_at: datetime | None = None


class ListLimits(Struct, array_like=True, tag="list_limits"):
    """Tell what is limited, of one kind and name or all; the most waited for first. Changes nothing."""

    kind: str | None = None
    name: str | None = None
    most: int = 100


def decide_limits(state: State, command: ListLimits, now: int) -> Accepted:
    """The listing."""
    return Accepted([], plain(limits_of(state, now, command)))


def limits_of(state: State, now: int, wanted: ListLimits) -> list[LimitRecord]:
    """Limits that are in use or waited for, and every bounded queue, handler and executor."""
    found = [
        _record(slots, now)
        for slots in islice(_slots(state.places), LIMITS_LOOKED_AT_MAX)
        if wanted.kind in (None, slots.kind) and wanted.name in (None, slots.name)
    ]
    found.sort(key=_order)
    return found[: min(wanted.most, LIMITS_LISTED_MAX)]


def queue_up(state: State, now: int) -> None:
    """Have ready runs wait for what they lack, as dispatch would: in a state that no engine dispatches."""
    places = state.places
    places.pass_time(now)
    for lane in list(places.all_lanes()):
        head = lane.ready.head()
        blocker = None if head is None else places.guard(lane)
        if head is not None and isinstance(blocker, Slots):
            places.put(lane, blocker, key_of(head))


def _slots(places: Places) -> Iterator[Slots]:
    standing = chain(places.executors.values(), places.queues.values(), places.bounds.values())
    yield from (slots for slots in standing if slots.capacity is not None)
    yield from places.limits.slots()


def _order(record: LimitRecord) -> tuple[int, int, int, str]:
    return -record.waiting, -record.taken, KINDS.index(record.kind), record.name


def _record(slots: Slots, now: int) -> LimitRecord:
    waiting = sum(entry[3].ready.count for entry in slots.waiting or () if is_there(entry, slots))
    if not isinstance(slots, Bucket):
        return LimitRecord(
            kind=slots.kind, name=slots.name, capacity=slots.capacity, taken=len(slots.running),
            holders=listed(slots.running), waiting=waiting,
        )  # fmt: skip
    need, behind_us = slots.need, max(0, slots.meter.tat - now)
    tokens = max(0, need.burst - -(-behind_us // slots.interval_us))
    return LimitRecord(
        kind="rate", name=slots.name, waiting=waiting, count=need.count, per_us=need.per_us, burst=need.burst,
        tokens=tokens, next_at=None if tokens else shown_datetime(slots.next_at),
    )  # fmt: skip
