"""Where each live run is, and the queues behind that.

Every live run is in exactly one place, and the place names what it waits for:

=============  ================================================================================================
``TIMER``      Scheduled or RetryWait, until an instant: in ``timers``
``HELD``       due, but under a pause: in its lane's ``held`` list, still Scheduled or RetryWait
``LANE``       Ready, in its lane's ``ready``, ordered by (priority, first ready)
``MISFIT``     Ready; its stored arguments do not fit the registered handler: in its lane's ``misfits``
``QUARANTINE`` Ready; live in two crashes in a row, and set aside when it came up while another such run was running
``OVERLAP``    an occurrence of a schedule that is due, after one that has not ended: in its schedule's ``waiting``
``RUNNING``    an attempt is open
=============  ================================================================================================

A **lane** is all Ready runs of one handler in one queue. What blocks one of them blocks them all (a pause, a missing
handler, a full queue, an executor without a free slot), so the *lane* waits for it, not each run: ten thousand runs
behind a paused queue are one parked lane, and the dispatch of an unrelated run never sees them. A lane is in one place
too: in ``open`` (may start now), in the ``waiting`` heap of the ``Slots`` it needs, or parked under a pause or a
missing handler until that changes. When slots free up, the best waiting lane is woken; if it turns out to be blocked
by something else, the next one is (``_wake``). So after ``next_run`` returned None: no free slot has a lane waiting
for it. A lane queues by its best run; when that one leaves, the lane's entry stays, better than it should be, and is
put right when it surfaces. It is never worse than its best run.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

from msgspec import Struct, field

from actionqueue.core.lanes import Lane, Slots
from actionqueue.core.ready import Key
from actionqueue.core.reasons import (
    AheadInLine,
    ArgumentsMisfit,
    HandlerMissing,
    InProgress,
    NoFreeSlot,
    NotYetDue,
    Paused,
    PreviousLive,
    Reason,
    TakesItsTurn,
    Where,
)
from actionqueue.core.retry import DEFAULT_TERMS, AttemptTerms
from actionqueue.core.run import RunState
from actionqueue.core.timers import Timers
from actionqueue.core.upcoming import earlier_runs

if TYPE_CHECKING:
    from actionqueue.core.state import PauseMark, Run

LANES_KEPT = 256
"""Lanes without live tasks are kept up to this number, and forgotten beyond it: an application may name many queues."""
PUTS_BEFORE_TRIM = 64
"""Entries pushed for each two lanes before the heaps of lanes are looked through for outdated ones."""


class Places(Struct, eq=False):
    """All places of one state. See the module's head."""

    lanes: dict[tuple[str, str], Lane] = field(default_factory=dict)
    queues: dict[str, Slots] = field(default_factory=dict)
    executors: dict[str, Slots] = field(default_factory=dict)
    handlers: dict[str, tuple[str, AttemptTerms]] = field(default_factory=dict)
    """Facts of this process: the executor and terms of each registered handler."""
    open: Slots = field(default_factory=lambda: Slots("open", "open"))
    timers: Timers = field(default_factory=Timers)
    quarantined: dict[bytes, Run] = field(default_factory=dict)
    on_trial: dict[bytes, Run] = field(default_factory=dict)
    """The run that was live in two crashes in a row and is running now: at most one at a time."""
    engine_pause: PauseMark | None = None
    _serial: int = 0
    _puts: int = 0
    _chain: Slots | None = None
    _alone: Lane | None = None
    """Between two calls of ``next_run``: the lane just started from, kept out of ``open`` while no other is there."""

    # --- process facts -----------------------------------------------------------------------------------------

    def register(self, handler: str, executor: str, terms: AttemptTerms) -> None:
        """Say that this process runs ``handler`` on ``executor``, which has its slots; opens what waited for it."""
        assert executor in self.executors, "an executor is given its slots before its handlers"
        self.handlers[handler] = (executor, terms)
        for lane in self.lanes.values():
            if lane.handler == handler:
                self._equip(lane)
                self._release_misfits(lane)
                if lane.spot is not self.open:
                    lane.spot = None  # it may wait for the slots of another executor
                self.reopen(lane)

    def set_executor(self, name: str, capacity: int) -> None:
        """Give an executor its number of slots."""
        slots = self.executors.get(name)
        if slots is None:
            self.executors[name] = Slots("executor", name, capacity)
        else:
            slots.capacity = capacity
            self._wake(slots)

    def set_queue(self, name: str, capacity: int | None) -> None:
        """Bound a queue's concurrency (None: unbounded)."""
        slots = self.queue(name)
        slots.capacity = capacity
        self._wake(slots)

    def queue(self, name: str) -> Slots:
        """The queue of that name, made on first use."""
        slots = self.queues.get(name)
        if slots is None:
            slots = self.queues[name] = Slots("queue", name)
        return slots

    def lane(self, queue: str, handler: str) -> Lane:
        """The lane of that handler in that queue, made on first use."""
        lane = self.lanes.get((queue, handler))
        if lane is None:
            slots = self.queue(queue)
            slots.lanes += 1
            lane = self.lanes[queue, handler] = Lane(handler, slots, f"{handler}\0{queue}".encode())
            self._equip(lane)
        return lane

    def let_go(self, lane: Lane) -> None:
        """A task of ``lane`` is live no more. Without any, the lane is forgotten where there are many."""
        lane.tasks -= 1
        if lane.tasks or len(self.lanes) <= LANES_KEPT:
            return
        queue, woken_by = lane.queue, lane.woken_by
        del self.lanes[queue.name, lane.handler]
        lane.spot = lane.woken_by = None
        if self._alone is lane:
            self._alone = None
        queue.lanes -= 1
        if not queue.lanes and queue.capacity is None:
            del self.queues[queue.name]
        if woken_by is not None:
            self._wake(woken_by)

    def _equip(self, lane: Lane) -> None:
        known = self.handlers.get(lane.handler)
        if known is not None:
            lane.executor = self.executors[known[0]]
            lane.terms = None if known[1] == DEFAULT_TERMS else known[1]

    # --- entering and leaving ----------------------------------------------------------------------------------

    def enter_timer(self, run: Run, until: int) -> None:
        """``run`` waits for an instant."""
        run.where, run.until = Where.TIMER, until
        self.timers.add(run, until)

    def enter_lane(self, run: Run) -> None:
        """``run`` is Ready: it queues by priority, then by its order, in its lane."""
        lane = run.task.lane
        run.where = Where.LANE
        ready = lane.ready
        key = ready.add(run)
        spot = lane.spot
        if spot is None:
            if ready.count == 1:
                self._put(lane, self.open, key)
        elif key < lane.key:  # better than whoever was woken for the slots that are free now, perhaps
            self._put(lane, self.open if spot.free else spot, key)

    def leave(self, run: Run) -> None:
        """Take ``run`` out of whatever place it is in."""
        where = run.where
        run.where = Where.NOWHERE
        if where is Where.LANE:
            run.task.lane.ready.remove(run)
        elif where is Where.TIMER:
            self.timers.remove(run)
        elif where is Where.HELD:
            del run.task.lane.held[run.id_bytes]
        elif where is Where.MISFIT:
            del run.task.lane.misfits[run.id_bytes]
        elif where is Where.QUARANTINE:
            del self.quarantined[run.id_bytes]
        elif where is Where.OVERLAP:
            schedule = run.task.extra.schedule
            assert schedule is not None
            del schedule.waiting[run.id_bytes]

    def enter_overlap(self, run: Run) -> None:
        """``run`` is due, and waits until the occurrences of its schedule before it have ended; its state stays."""
        schedule = run.task.extra.schedule
        assert schedule is not None
        run.where = Where.OVERLAP
        schedule.waiting[run.id_bytes] = run

    def enter_held(self, run: Run) -> None:
        """``run`` is due, and a pause holds it; its state stays."""
        run.where = Where.HELD
        run.task.lane.held[run.id_bytes] = run

    def enter_misfit(self, run: Run) -> None:
        """``run`` is Ready, and its stored arguments do not fit the registered handler."""
        run.where = Where.MISFIT
        run.task.lane.misfits[run.id_bytes] = run

    def enter_running(self, run: Run) -> None:
        """An attempt of ``run`` takes its slots."""
        run.where = Where.RUNNING
        lane = run.task.lane
        run_id = run.id_bytes
        lane.queue.running[run_id] = run
        if lane.executor is not None:
            lane.executor.running[run_id] = run
        if run.lost_streak >= 2:
            self.on_trial[run_id] = run

    def leave_running(self, run: Run) -> None:
        """The attempt of ``run`` gives its slots back; the best lane waiting for each is woken."""
        run.where = Where.NOWHERE
        lane = run.task.lane
        run_id = run.id_bytes
        queue, executor = lane.queue, lane.executor
        del queue.running[run_id]
        if queue.waiting:
            self._wake(queue)
        if executor is not None and executor.running.pop(run_id, None) is None:
            executor = self._leave_former_executor(run_id)
        if executor is not None and executor.waiting:
            self._wake(executor)
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
        self.reopen(run.task.lane)

    def _end_trial(self) -> None:
        """Whoever was set aside is back in line; the best of them that can start is the next on trial."""
        released = list(self.quarantined.values())
        self.quarantined.clear()
        for run in released:
            self.enter_lane(run)

    def _release_misfits(self, lane: Lane) -> None:
        lane.unfit.clear()
        lane.outdated = {run_id for run_id, run in lane.queue.running.items() if run.task.lane is lane}
        released = list(lane.misfits.values())
        lane.misfits.clear()
        for run in released:
            self.enter_lane(run)

    # --- pauses ------------------------------------------------------------------------------------------------

    def set_pauses(self, pauses: dict[tuple[str, str], PauseMark]) -> None:
        """Make the pauses in force those; what a lifted pause held becomes due, or open, again."""
        self.engine_pause = pauses.get(("engine", ""))
        for lane in self.lanes.values():
            self.apply_pauses(lane, pauses)

    def apply_pauses(self, lane: Lane, pauses: dict[tuple[str, str], PauseMark]) -> None:
        """The same for one lane."""
        before = lane.pause
        lane.pause = pauses.get(("queue", lane.queue.name)) or pauses.get(("handler", lane.handler))
        if before is not None and lane.pause is None:
            held = list(lane.held.values())
            lane.held.clear()
            for run in held:
                self.enter_timer(run, run.until)
            self.reopen(lane)

    def reopen(self, lane: Lane) -> None:
        """A parked lane may start again."""
        if lane.spot is None and (head := lane.ready.head()) is not None:
            self._put(lane, self.open, _key(head))

    # --- dispatch ----------------------------------------------------------------------------------------------

    def guard(self, lane: Lane) -> Slots | PauseMark | str | None:
        """What blocks a lane now: a pause, ``"handler"``, full slots, or nothing; in this order of precedence."""
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
                self._wake(chain)
            lane = self._next_lane()
            if lane is None:
                return None
            head = lane.ready.head()
            self._chain, lane.woken_by = lane.woken_by, None
            if head is not None and (key := _key(head)) != lane.key:  # woken for a run that is gone: another may try
                self._put(lane, self.open, key)
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
                self._put(lane, blocker, lane.key)

    def _next_lane(self) -> Lane | None:
        """The lane to look at: the one just started from while it is alone, else the best open one."""
        lane = self._alone
        if lane is not None:
            self._alone = None
            head = lane.ready.head()
            if head is not None:
                key = _key(head)
                if not self.open.waiting:
                    lane.key = key
                    return lane
                self._put(lane, self.open, key)
        return self._pop(self.open)

    def _next_of(self, lane: Lane, head: Run) -> None:
        """``head`` of ``lane`` is about to start: what comes after it competes with the other open lanes, if any."""
        if not self.open.waiting:
            self._alone = lane
            return
        following = lane.ready.bound_after(head)
        if following is not None:
            self._put(lane, self.open, following)

    def startable(self, run: Run) -> bool:
        """Whether a run that falls due now may start at once, ahead of nobody."""
        lane = run.task.lane
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

    def next_timer(self) -> int | None:
        """The instant of the earliest timer or deadline to start, if any."""
        due = self.timers.next_due() if self.engine_pause is None else None
        deadline = self.timers.next_deadline()
        return deadline if due is None or (deadline is not None and deadline < due) else due

    def trim(self, live: int) -> None:
        """Look through the heaps that no other call keeps small, where most is outdated. ``live``: how many live runs."""
        self.timers.trim(live)
        if self._puts <= PUTS_BEFORE_TRIM + 2 * len(self.lanes):
            return
        self._puts = 0
        for spot in (self.open, *self.queues.values(), *self.executors.values()):
            spot.waiting[:] = [entry for entry in spot.waiting if _is_there(entry, spot)]
            heapify(spot.waiting)

    # --- lanes in heaps ----------------------------------------------------------------------------------------

    def _put(self, lane: Lane, spot: Slots, key: Key) -> None:
        lane.spot, lane.key = spot, key
        self._serial += 1
        self._puts += 1
        heappush(spot.waiting, (key[0], key[1], self._serial, lane))

    def _pop(self, spot: Slots) -> Lane | None:
        waiting = spot.waiting
        while waiting:
            entry = heappop(waiting)
            if _is_there(entry, spot):
                entry[3].spot = None
                return entry[3]
        return None

    def _wake(self, slots: Slots) -> None:
        """Slots have become free: the best lane that waits for them may try."""
        if not slots.free:
            return
        while (lane := self._pop(slots)) is not None:
            head = lane.ready.head()
            if head is None:
                continue
            key = _key(head)
            if key == lane.key:
                lane.woken_by = slots
                self._put(lane, self.open, key)
                return
            self._put(lane, slots, key)

    # --- questions ---------------------------------------------------------------------------------------------

    def reason(self, run: Run, now: int) -> Reason | None:
        """What ``run`` waits for, made by the guards that hold it back; None for a run that has ended."""
        lane = run.task.lane
        match run.where:
            case Where.NOWHERE:
                return None
            case Where.RUNNING:
                assert run.attempt is not None
                return InProgress(run.attempt.id, run.attempt.started_at)
            case Where.MISFIT:
                return ArgumentsMisfit(lane.handler)
            case Where.QUARANTINE:
                return TakesItsTurn(next(iter(self.on_trial), None))
            case Where.OVERLAP:
                return _previous(run)
            case Where.TIMER if self.engine_pause is None or run.until > now:
                return NotYetDue(run.until, run.state is RunState.RETRY_WAIT)
            case _:
                return self._blocked(run, lane)

    def _blocked(self, run: Run, lane: Lane) -> Reason:
        pause = self.engine_pause or lane.pause
        if pause is not None:
            return Paused(pause.scope, pause.name, pause.at, pause.by)
        blocker = self.guard(lane)
        if isinstance(blocker, Slots):
            return NoFreeSlot(blocker.kind, blocker.name, blocker.capacity or 0, tuple(blocker.running))
        if blocker == "handler":
            return HandlerMissing(lane.handler)
        key = _key(run)
        return AheadInLine(sum(1 for other in lane.ready if _key(other) < key))

    def blocked_count(self, ready: int) -> int:
        """How many of the ``ready`` Ready runs something holds back: all but those of open lanes, of which few are left."""
        if self.engine_pause is not None:
            return ready
        lanes = [entry[3] for entry in self.open.waiting if _is_there(entry, self.open)]
        lanes += [] if self._alone is None else [self._alone]
        return ready - sum(lane.ready.count for lane in lanes if self.guard(lane) is None)

    def dispose(self) -> None:
        """Let go of every run, so that the cycles through them can be freed."""
        for slots in (*self.queues.values(), *self.executors.values(), self.open):
            slots.running.clear()
            slots.waiting.clear()
        for lane in self.lanes.values():
            lane.ready.clear()
            lane.held.clear()
            lane.misfits.clear()
        self.timers.clear()
        self.lanes.clear()
        self.quarantined.clear()
        self.on_trial.clear()


def _key(run: Run) -> Key:
    return -run._effective_priority, run.order  # noqa: SLF001 - the hot path; Run is a RunInstance


def _is_there(entry: tuple[int, int, int, Lane], spot: Slots) -> bool:
    """Whether an entry of a heap of lanes still stands for its lane."""
    lane = entry[3]
    return lane.spot is spot and lane.key == entry[:2]


def _previous(run: Run) -> PreviousLive:
    schedule = run.task.extra.schedule
    assert schedule is not None
    return PreviousLive(tuple(other.id_bytes for other in earlier_runs(run)), schedule.rule.overlap)


def _turn(run: Run) -> tuple[int, int, int]:
    return -run.priority, run.until, run.order
