"""What must hold of keys, rates and the lanes that need them: the part of ``check`` that is about limits.

Who holds a key and in which lane a run queues is worked out here from the runs alone, not asked of the places.
"""

from __future__ import annotations

from collections.abc import Iterator

from actionqueue.core.lanes import Bucket, KeySlots, Lane, Slots
from actionqueue.core.limits import holds_keys
from actionqueue.core.places import Places
from actionqueue.core.reasons import Where
from actionqueue.core.state import Run, State, Task


def lane_by_rule(state: State, task: Task, base: Lane) -> Lane | None:
    """The lane of the family that a task belongs in."""
    options = task.extra.options
    own = task.id if ("task", task.id.hex()) in state.pauses else b""
    if not options.limits and not options.rates and not own:
        return base
    return (base.kin or {}).get((options.limits, options.rates, own))


def queued_by_lane(state: State) -> dict[int, list[Run]]:
    """By the identity of each lane, the runs that must be queued in it."""
    queued: dict[int, list[Run]] = {}
    for run in state.runs.values():
        if run.where is Where.LANE:
            lane = run.task.lane
            if lane.keys and holds_keys(run):
                base = lane.base or lane
                _, rates, own = lane.needs
                lane = (base.kin or {}).get(((), rates, own), base)
            queued.setdefault(id(lane), []).append(run)
    return queued


def lane_fits(places: Places, lane: Lane) -> bool:
    """Whether the slots and buckets of a lane are those of what it is named by."""
    limits, rates, _ = lane.needs
    return [(slots.name, slots.asked) for slots in lane.keys] == [(need.key, need.capacity) for need in limits] and all(
        any(slots is twin for twin in places.limits.twins(slots.name)) for slots in lane.keys
    ) and [bucket.need for bucket in lane.rates] == list(rates) and all(
        places.limits.buckets.get(bucket.need) is bucket for bucket in lane.rates
    )  # fmt: skip


def limit_problems(state: State) -> Iterator[str]:
    """Everything that is wrong with the keys and rates of a state."""
    limits = state.places.limits
    needed: dict[int, int] = {}
    for lane in state.places.all_lanes():
        for slots in (*lane.keys, *lane.rates):
            needed[id(slots)] = needed.get(id(slots), 0) + 1
    yield from _key_problems(state, needed)
    for need, bucket in limits.buckets.items():
        if bucket.need != need or bucket.lanes != needed.get(id(bucket), 0) or not bucket.lanes:
            yield f"rate {bucket.name}: {needed.get(id(bucket), 0)} lanes need it, {bucket.lanes} are counted"
        if bucket.meter is not limits.meters.get(bucket.name):
            yield f"rate {bucket.name}: it goes by another meter"
        if bucket.running:
            yield f"rate {bucket.name}: a token is held"
        if bucket.waiting and (
            bucket.wake_at is None
            or not any(entry[:1] == (bucket.wake_at,) and entry[2] is bucket for entry in limits.timers)
        ):
            yield f"rate {bucket.name}: lanes wait for it, and no timer will wake them"
    for key, meter in limits.meters.items():
        buckets = sum(bucket.meter is meter for bucket in limits.buckets.values())
        timed = sum(entry[1] == key for entry in limits.passing)
        if meter.buckets != buckets or timed != meter.timed or not (buckets or timed):
            yield f"rate {key}: its meter counts {meter.buckets} of {buckets} buckets, and is looked at {timed} times"
        if meter.tat > state.last_at and not timed:
            yield f"rate {key}: nobody will notice that it has passed"


def _key_problems(state: State, needed: dict[int, int]) -> Iterator[str]:
    holders: dict[str, dict[bytes, Run]] = {}
    for run_id, run in state.runs.items():
        if holds_keys(run):
            for need in run.task.extra.options.limits:
                holders.setdefault(need.key, {})[run_id] = run
    limits = state.places.limits
    for key in holders.keys() - limits.keys.keys():
        yield f"key {key}: it is held, and not known"
    for key, first in limits.keys.items():
        due = holders.get(key, {})
        if first.running != due:
            yield f"key {key}: {_named(first.running)} hold it, {_named(due)} should"
        largest = max((slots.capacity or 0 for slots in limits.twins(key)), default=0)
        if len(first.running) > largest and key not in limits.capacities:
            yield f"key {key}: {len(first.running)} hold it, its capacity is {largest}"
        for slots in limits.twins(key):
            yield from _slots_problems(slots, first, needed.get(id(slots), 0))
        if len({slots.asked for slots in limits.twins(key)}) < sum(1 for _ in limits.twins(key)):
            yield f"key {key}: two slots of one capacity"


def _slots_problems(slots: KeySlots, first: KeySlots, lanes: int) -> Iterator[str]:
    if slots.name != first.name or slots.running is not first.running:
        yield f"key {first.name}: slots of another key are among its own"
    if slots.lanes != lanes or not lanes:
        yield f"key {first.name}: {lanes} lanes need it by capacity {slots.asked}, {slots.lanes} are counted"


def has_token(spot: Slots, now: int | None) -> bool:
    """Whether ``spot`` is a bucket with a token at ``now``."""
    return isinstance(spot, Bucket) and now is not None and spot.next_at <= now


def _named(runs: dict[bytes, Run]) -> str:
    return "nobody" if not runs else ", ".join(run_id.hex()[-8:] for run_id in runs)
