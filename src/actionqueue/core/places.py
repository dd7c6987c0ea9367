"""Where each live run is, and the queues behind that.

Every live run is in exactly one place, and the place names what it waits for:

=============  ================================================================================================
``TIMER``      Scheduled or RetryWait, until an instant: in ``timers``
``HELD``       due, but under a pause: in its lane's ``held``, still Scheduled or RetryWait
``LANE``       Ready, in its lane's ``ready``, ordered by (priority, first ready)
``MISFIT``     Ready; its stored arguments do not fit the registered handler: in its lane's ``misfits``
``QUARANTINE`` Ready; live in two crashes in a row, and set aside when it came up while another such run was running
``DEPENDENCY`` Scheduled or Ready, while tasks that its task depends on are live: ``core/graph.py``
``OVERLAP``    an occurrence of a schedule that is due, after one that has not ended: in its schedule's ``waiting``
``AWAITING``   Awaiting a signal, an instant or its children: in ``awaiting`` (``core/awaiting.py``)
``RUNNING``    an attempt is open
=============  ================================================================================================

A **lane** is all Ready runs of one handler in one queue that need the same keys and rates (``core/lanes.py``). What
blocks one of them blocks them all (a pause, a missing handler, a full queue, an executor without a free slot, a key that
is held, a rate without a token), so the *lane* waits for it, not each run: ten thousand runs behind a paused queue, or
on a busy key, are one parked lane, and the dispatch of an unrelated run never sees them. A lane is in one place
too: in ``open`` (may start now), in the ``waiting`` heap of the ``Slots`` it needs, or parked under a pause or a
missing handler until that changes. When slots free up, the best waiting lane is woken; if it turns out to be blocked
by something else, the next one is (``wake``). So after ``next_run`` returned None: no free slot has a lane waiting
for it. A lane queues by its best run; when that one leaves, the lane's entry stays, better than it should be, and is
put right when it surfaces. It is never worse than its best run.

A task that is paused by itself has a lane of its own while it is: its ``lane`` is exchanged at the pause, and back at the
end of it. The slots of both are the same objects, so a running attempt gives back what it took.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from msgspec import field

from actionqueue.core.families import Families
from actionqueue.core.lanes import Lane, Slots
from actionqueue.core.reasons import Where
from actionqueue.core.retry import AttemptTerms
from actionqueue.core.waking import is_there, key_of

if TYPE_CHECKING:
    from actionqueue.core.state import PauseMark, Run, Task


class Places(Families, eq=False):
    """All places of one state. See the module's head."""

    quarantined: dict[bytes, Run] = field(default_factory=dict)
    on_trial: dict[bytes, Run] = field(default_factory=dict)
    """The run that was live in two crashes in a row and is running now: at most one at a time."""
    _chain: Slots | None = None

    # --- process facts -----------------------------------------------------------------------------------------

    def register(self, handler: str, executor: str, terms: AttemptTerms, concurrency: int | None = None) -> None:
        """Say that this process runs ``handler`` on ``executor``, which has its slots; opens what waited for it.

        ``concurrency`` bounds how many attempts of it run at once (None: not by itself).
        """
        assert executor in self.executors, "an executor is given its slots before its handlers"
        self.handlers[handler] = (executor, terms)
        self._bind(handler, concurrency)
        for base in self.lanes.values():
            if base.handler == handler:
                for lane in base.family():
                    self._equip(lane)
                self._release_misfits(base)
                for lane in base.family():
                    if lane.spot is not self.open:
                        lane.spot = None  # it may wait for the slots of another executor
                    self.reopen(lane)

    def _bind(self, handler: str, concurrency: int | None) -> None:
        """Give the handler slots of its own; who runs already holds one."""
        slots = self.bounds.get(handler)
        if slots is not None:
            slots.capacity = concurrency
            self.wake(slots)
        elif concurrency is not None:
            slots = self.bounds[handler] = Slots("handler", handler, concurrency)
            for queue in self.queues.values():
                mine = (item for item in queue.running.items() if item[1].task.lane.handler == handler)
                slots.running.update(mine)

    def set_aging(self, aging_us: int) -> None:
        """Let waiting count as priority: one more for each ``aging_us`` that a run has been ready (0: never)."""
        self.aging_us = aging_us
        for lane in self.all_lanes():
            lane.ready.age_by(aging_us)
            head = lane.ready.head()
            if lane.spot is not None and head is not None:
                self.put(lane, lane.spot, key_of(head))

    # --- entering and leaving ----------------------------------------------------------------------------------

    def enter_timer(self, run: Run, until: int) -> None:
        """``run`` waits for an instant."""
        run.where, run.until = Where.TIMER, until
        self.timers.add(run, until)

    def enter_lane(self, run: Run) -> None:
        """``run`` is Ready: it queues by priority, then by its order, in its lane."""
        lane = run.task.lane
        if lane.keys:
            lane = self.lane_of(run)
        run.where = Where.LANE
        ready = lane.ready
        key = ready.add(run)
        spot = lane.spot
        if spot is None:
            if ready.count == 1:
                self.put(lane, self.open, key)
        elif key < lane.key:  # better than whoever was woken for the slots that are free now, perhaps
            self.put(lane, self.open if spot.free else spot, key)

    def leave(self, run: Run) -> None:
        """Take ``run`` out of whatever place it is in."""
        where = run.where
        lane = run.task.lane
        if where is Where.LANE:
            if lane.keys:
                lane = self.lane_of(run)
            run.where = Where.NOWHERE
            lane.ready.remove(run)
            return
        run.where = Where.NOWHERE
        if where is Where.TIMER:
            self.timers.remove(run)
        elif where is Where.HELD:
            assert lane.held is not None, "its lane keeps what it holds"
            del lane.held[run.id_bytes]
        elif where is Where.MISFIT:
            misfits = (lane.base or lane).misfits
            assert misfits is not None, "its family keeps its misfits"
            del misfits[run.id_bytes]
        elif where is Where.QUARANTINE:
            del self.quarantined[run.id_bytes]
        elif where is Where.OVERLAP:
            schedule = run.task.extra.schedule
            assert schedule is not None
            del schedule.waiting[run.id_bytes]
        elif where is Where.AWAITING:
            self.awaiting.leave(run)

    def enter_overlap(self, run: Run) -> None:
        """``run`` is due, and waits until the occurrences of its schedule before it have ended; its state stays."""
        schedule = run.task.extra.schedule
        assert schedule is not None
        run.where = Where.OVERLAP
        schedule.waiting[run.id_bytes] = run

    def enter_dependency(self, run: Run) -> None:
        """``run`` waits for the tasks that its task depends on; its state stays."""
        run.where = Where.DEPENDENCY

    def enter_held(self, run: Run) -> None:
        """``run`` is due, and a pause holds it; its state stays."""
        run.where = Where.HELD
        lane = run.task.lane
        if lane.held is None:
            lane.held = {}
        lane.held[run.id_bytes] = run

    def enter_misfit(self, run: Run) -> None:
        """``run`` is Ready, and its stored arguments do not fit the registered handler."""
        run.where = Where.MISFIT
        base = run.task.lane.base or run.task.lane
        if base.misfits is None:
            base.misfits = {}
        base.misfits[run.id_bytes] = run

    def enter_running(self, run: Run) -> None:
        """An attempt of ``run`` takes its slots, and its keys unless it holds them already."""
        run.where = Where.RUNNING
        lane = run.task.lane
        run_id = run.id_bytes
        lane.queue.running[run_id] = run
        if lane.executor is not None:
            lane.executor.running[run_id] = run
        if lane.limited:
            if lane.bound is not None:
                lane.bound.running[run_id] = run
            self.hold_keys(run)
        if run.lost_streak >= 2:
            self.on_trial[run_id] = run

    def hold_keys(self, run: Run) -> None:
        """``run`` holds the keys it needs."""
        for slots in run.task.lane.keys:
            slots.running[run.id_bytes] = run

    def release_keys(self, run: Run) -> None:
        """``run`` holds no key any more, if it held any; the best lanes waiting for them are woken."""
        for slots in run.task.lane.keys:
            if slots.running.pop(run.id_bytes, None) is not None:
                for twin in self.limits.twins(slots.name):
                    if twin.waiting:
                        self.wake(twin)

    def leave_running(self, run: Run) -> None:
        """The attempt of ``run`` gives its slots back; the best lane waiting for each is woken. Keys are another matter."""
        run.where = Where.NOWHERE
        lane = run.task.lane
        run_id = run.id_bytes
        queue, executor = lane.queue, lane.executor
        del queue.running[run_id]
        if queue.waiting:
            self.wake(queue)
        if executor is not None and executor.running.pop(run_id, None) is None:
            executor = self._leave_former_executor(run_id)
        if executor is not None and executor.waiting:
            self.wake(executor)
        if lane.limited and lane.bound is not None:
            del lane.bound.running[run_id]
            if lane.bound.waiting:
                self.wake(lane.bound)
        if self.on_trial and self.on_trial.pop(run_id, None) is not None:
            self._end_trial()

    def _leave_former_executor(self, run_id: bytes) -> Slots | None:
        """The handler was registered with another executor while the attempt ran: its slot is given back there."""
        for slots in self.executors.values():
            if slots.running.pop(run_id, None) is not None:
                return slots
        return None

    def _set_aside(self, run: Run) -> None:
        self.leave(run)
        run.where = Where.QUARANTINE
        self.quarantined[run.id_bytes] = run
        self.reopen(self.lane_of(run))

    def _end_trial(self) -> None:
        """Whoever was set aside is back in line; the best of them that can start is the next on trial."""
        released = list(self.quarantined.values())
        self.quarantined.clear()
        for run in released:
            self.enter_lane(run)

    def _release_misfits(self, base: Lane) -> None:
        base.unfit = None
        base.outdated = {
            run_id for run_id, run in base.queue.running.items() if (run.task.lane.base or run.task.lane) is base
        }
        released, base.misfits = base.misfits, None
        for run in (released or {}).values():
            self.enter_lane(run)

    # --- pauses ------------------------------------------------------------------------------------------------

    def set_pauses(self, pauses: dict[tuple[str, str], PauseMark]) -> None:
        """Make the pauses in force those; what a lifted pause held becomes due, or open, again."""
        self.engine_pause = pauses.get(("engine", ""))
        for lane in self.lanes.values():
            self.apply_pauses(lane, pauses)

    def apply_pauses(self, base: Lane, pauses: dict[tuple[str, str], PauseMark]) -> None:
        """The same for one family; the pauses of single tasks stay."""
        before, pause = base.pause, pauses.get(("queue", base.queue.name)) or pauses.get(("handler", base.handler))
        if before is pause:
            return
        for lane in base.family():
            task_id = lane.needs[2]
            self._set_pause(lane, pause or (pauses[("task", task_id.hex())] if task_id else None))

    def _set_pause(self, lane: Lane, pause: PauseMark | None) -> None:
        before, lane.pause = lane.pause, pause
        if before is not None and pause is None:
            held, lane.held = lane.held, None
            for run in (held or {}).values():
                self.enter_timer(run, run.until)
            self.reopen(lane)

    def pause_task(self, task: Task, mark: PauseMark) -> None:
        """``task`` goes on in a lane of its own, which is paused."""
        base = task.lane.base or task.lane
        lane = self.kin(base, (*task.lane.needs[:2], task.id))
        lane.pause = base.pause or mark
        self._exchange_lane(task, lane)

    def resume_task(self, task: Task) -> None:
        """``task`` goes back among the others that need the same."""
        base = task.lane.base
        assert base is not None, "the lane of a paused task is no base"
        self._exchange_lane(task, self.kin(base, (*task.lane.needs[:2], b"")))

    def _exchange_lane(self, task: Task, lane: Lane) -> None:
        moved = [run for run in task.live_runs() if run.where is Where.LANE or run.where is Where.HELD]
        where = [run.where for run in moved]
        for run in moved:
            former = self.lane_of(run)
            self.leave(run)
            former.ready.purge(run)
        before, task.lane = task.lane, lane
        lane.tasks += 1
        for run, its in zip(moved, where, strict=True):
            if its is Where.LANE:
                self.enter_lane(run)
            elif lane.pause is not None:
                self.enter_held(run)
            else:
                self.enter_timer(run, run.until)
        self.let_go(before)

    def held_runs(self) -> Iterator[Run]:
        """The runs that are due and held by a pause other than the engine's."""
        for base in self.lanes.values():
            if base.pause is not None:
                for lane in base.family():
                    yield from (lane.held or {}).values()
        for lane in self.paused_tasks.values():
            if lane.base is not None and lane.base.pause is None:
                yield from (lane.held or {}).values()

    def reopen(self, lane: Lane) -> None:
        """A parked lane may start again."""
        if lane.spot is None and (head := lane.ready.head()) is not None:
            self.put(lane, self.open, key_of(head))

    # --- dispatch ----------------------------------------------------------------------------------------------

    def guard(self, lane: Lane) -> Slots | PauseMark | str | None:
        """What blocks a lane now: a pause, ``"handler"``, full slots (of the queue, the executor, the handler, a key), a
        rate without a token, or nothing; in this order of precedence."""
        if lane.pause is not None:
            return lane.pause
        executor = lane.executor
        if executor is None:
            return "handler"
        queue = lane.queue
        if queue.capacity is not None and len(queue.running) >= queue.capacity:
            return queue
        if executor.capacity is not None and len(executor.running) >= executor.capacity:
            return executor
        return self._limit(lane) if lane.limited else None

    def _limit(self, lane: Lane) -> Slots | None:
        if lane.bound is not None and not lane.bound.free:
            return lane.bound
        for slots in lane.keys:
            if not slots.free:
                return slots
        for bucket in lane.rates:
            if bucket.next_at > self.now:
                return bucket
        return None

    def next_run(self) -> Run | None:
        """The run to start next, still in its lane; None when nothing may start.

        The caller starts it (``leave`` and ``enter_running``, through the started event) before asking again.
        """
        if self.engine_pause is not None:
            return None
        while True:
            chain = self._chain
            if chain is not None:
                self._chain = None
                self.wake(chain)
            lane = self._next_lane()
            if lane is None:
                return None
            head = lane.ready.head()
            self._chain, lane.woken_by = lane.woken_by, None
            if head is not None and (key := key_of(head)) != lane.key:  # woken for a run that is gone: another may try
                self.put(lane, self.open, key)
                continue
            if head is None:
                continue
            blocker = self.guard(lane)
            if blocker is None:
                if head.lost_streak >= 2 and self.on_trial:
                    self._set_aside(head)
                    continue
                self._next_of(lane, head)
                return head
            if isinstance(blocker, Slots):
                self.put(lane, blocker, lane.key)

    def _next_lane(self) -> Lane | None:
        """The lane to look at: the one just started from while it is alone, else the best open one."""
        lane = self._alone
        if lane is not None:
            self._alone = None
            head = lane.ready.head()
            if head is not None:
                key = key_of(head)
                if not self.open.waiting:
                    lane.key = key
                    return lane
                self.put(lane, self.open, key)
        return self.pop(self.open)

    def _next_of(self, lane: Lane, head: Run) -> None:
        """``head`` of ``lane`` is about to start: what comes after it competes with the other open lanes, if any."""
        if not self.open.waiting:
            self._alone = lane
            return
        following = lane.ready.bound_after(head)
        if following is not None:
            self.put(lane, self.open, following)

    def startable(self, run: Run) -> bool:
        """Whether a run that falls due now may start at once, ahead of nobody."""
        lane = self.lane_of(run)
        return (
            run.lost_streak < 2
            and not lane.ready.count
            and self.engine_pause is None
            and not self.open.waiting
            and self.guard(lane) is None
        )

    def due(self, now: int, most: int) -> list[Run]:
        """Take up to ``most`` runs whose instant has come off the timers: largest priority first, then first due."""
        if self.engine_pause is not None:
            return []
        found = self.timers.take_due(now, most)
        found.sort(key=_turn)
        return found

    # --- questions ---------------------------------------------------------------------------------------------

    def blocked_count(self, ready: int) -> int:
        """How many of the ``ready`` Ready runs something holds back: all but those of open lanes, of which few are left."""
        if self.engine_pause is not None:
            return ready
        lanes = [entry[3] for entry in self.open.waiting or () if is_there(entry, self.open)]
        lanes += [] if self._alone is None else [self._alone]
        return ready - sum(lane.ready.count for lane in lanes if self.guard(lane) is None)

    def dispose(self) -> None:
        """Let go of every run, so that the cycles through them can be freed."""
        for slots in (*self.all_slots(), self.open):
            slots.running.clear()
            slots.waiting = None
        for lane in self.all_lanes():
            lane.ready.clear()
            lane.held = lane.misfits = lane.base = lane.kin = lane.holding = lane.spot = lane.woken_by = None
        self.timers.clear()
        self.limits.clear()
        self.awaiting.clear()
        for held in (self.lanes, self.paused_tasks, self.quarantined, self.on_trial):
            held.clear()
        self._chain = self._alone = None


def _turn(run: Run) -> tuple[int, int, int]:
    return -run.priority, run.until, run.order
