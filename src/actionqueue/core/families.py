"""Families of lanes: which there are, how they come and go, and in which one a run queues.

A lane is made when the first task needs it, and forgotten after the last one where there are many. Knows: the facts of
the process that a lane is equipped with (executors, registered handlers, bounds). Must not know: what is in a lane.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from msgspec import field

from actionqueue.core.lanes import NO_NEEDS, Lane, Needs, Slots
from actionqueue.core.retry import DEFAULT_TERMS, AttemptTerms
from actionqueue.core.waking import Waking

if TYPE_CHECKING:
    from actionqueue.core.state import Run

LANES_KEPT = 256
"""Lanes without live tasks are kept up to this number, and forgotten beyond it: an application may name many queues."""


class Families(Waking, eq=False):
    """The lanes of one state, by family."""

    handlers: dict[str, tuple[str, AttemptTerms]] = field(default_factory=dict)
    """Facts of this process: the executor and terms of each registered handler."""
    paused_tasks: dict[bytes, Lane] = field(default_factory=dict)
    """The lanes of their own of tasks that are paused by themselves."""
    aging_us: int = 0
    """A fact of this process too: how long a run is ready until that counts as one priority more (0: never)."""
    _alone: Lane | None = None
    """Between two calls of ``next_run``: the lane just started from, kept out of ``open`` while no other is there."""

    # --- slots -------------------------------------------------------------------------------------------------

    def set_executor(self, name: str, capacity: int) -> None:
        """Give an executor its number of slots."""
        slots = self.executors.get(name)
        if slots is None:
            self.executors[name] = Slots("executor", name, capacity)
        else:
            slots.capacity = capacity
            self.wake(slots)

    def set_queue(self, name: str, capacity: int | None) -> None:
        """Bound a queue's concurrency (None: unbounded)."""
        slots = self.queue(name)
        slots.capacity = capacity
        self.wake(slots)

    def set_key_capacity(self, key: str, capacity: int) -> None:
        """Let a capacity apply to a key instead of those that its runs were submitted with (for what-if questions)."""
        self.limits.capacities[key] = capacity
        for slots in self.limits.twins(key):
            slots.capacity = capacity
            self.wake(slots)

    def queue(self, name: str) -> Slots:
        """The queue of that name, made on first use."""
        slots = self.queues.get(name)
        if slots is None:
            slots = self.queues[name] = Slots("queue", name)
        return slots

    # --- lanes -------------------------------------------------------------------------------------------------

    def lane(self, queue: str, handler: str) -> Lane:
        """The plain lane of that handler in that queue, made on first use."""
        lane = self.lanes.get((queue, handler))
        if lane is None:
            slots = self.queue(queue)
            slots.lanes += 1
            lane = self.lanes[queue, handler] = Lane(handler, slots, f"{handler}\0{queue}".encode())
            self._add(lane)
        return lane

    def kin(self, base: Lane, needs: Needs) -> Lane:
        """The lane of that family whose runs need that, made on first use."""
        if needs == NO_NEEDS:
            return base
        if base.kin is None:
            base.kin = {}
        lane = base.kin.get(needs)
        if lane is None:
            limits, rates, task_id = needs
            lane = base.kin[needs] = Lane(
                base.handler, base.queue, base.named, base, needs,
                keys=tuple([self.limits.at_key(need) for need in limits]),
                rates=tuple([self.limits.bucket(need) for need in rates]),
                pause=base.pause,
            )  # fmt: skip
            if task_id:
                self.paused_tasks.setdefault(task_id, lane)  # the other one is its ``holding``, which holds no due run
            self._add(lane)
        return lane

    def _add(self, lane: Lane) -> None:
        self.lane_count += 1
        lane.ready.aging_us = self.aging_us
        self._equip(lane)

    def _equip(self, lane: Lane) -> None:
        known = self.handlers.get(lane.handler)
        if known is not None:
            lane.executor = self.executors[known[0]]
            lane.terms = None if known[1] == DEFAULT_TERMS else known[1]
            lane.bound = self.bounds.get(lane.handler)
        lane.limited = bool(lane.bound is not None or lane.keys or lane.rates)

    def all_lanes(self) -> Iterator[Lane]:
        """Every lane of every family."""
        for base in tuple(self.lanes.values()):
            yield from base.family()

    def lane_of(self, run: Run) -> Lane:
        """The lane in which ``run`` queues: its task's, or the one beside that where it holds its keys already."""
        lane = run.task.lane
        if not lane.keys or run.id_bytes not in lane.keys[0].running:
            return lane
        if lane.holding is None:
            base = lane.base
            assert base is not None, "a lane that needs keys is no base"
            lane.holding = self.kin(base, ((), *lane.needs[1:]))
            lane.holding.pause = lane.pause
            lane.holding.tasks += 1
        return lane.holding

    def let_go(self, lane: Lane) -> None:
        """A task of ``lane`` is live no more. Without any, the lane is forgotten where there are many."""
        lane.tasks -= 1
        if not lane.tasks and (self.lane_count > LANES_KEPT or lane.needs[2]):
            self._forget(lane)

    def _forget(self, lane: Lane) -> None:
        base, woken_by = lane.base, lane.woken_by
        if base is None:
            if lane.kin:
                return  # forgotten after them
            del self.lanes[lane.queue.name, lane.handler]
            self._leave_queue(lane.queue)
        else:
            self._leave_limits(lane)
            assert base.kin is not None, "kin is known to its base"
            del base.kin[lane.needs]
        self.lane_count -= 1
        lane.spot = lane.woken_by = None
        if self._alone is lane:
            self._alone = None
        if woken_by is not None:
            self.wake(woken_by)
        if base is not None and not base.tasks and self.lane_count > LANES_KEPT:
            self._forget(base)

    def _leave_queue(self, queue: Slots) -> None:
        queue.lanes -= 1
        if not queue.lanes and queue.capacity is None:
            del self.queues[queue.name]

    def _leave_limits(self, lane: Lane) -> None:
        for slots in lane.keys:
            self.limits.leave_key(slots)
        for bucket in lane.rates:
            self.limits.leave_bucket(bucket)
        if lane.holding is not None:
            self.let_go(lane.holding)
        if lane.needs[2] and self.paused_tasks.get(lane.needs[2]) is lane:
            del self.paused_tasks[lane.needs[2]]
