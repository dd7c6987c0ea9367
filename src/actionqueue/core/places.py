"""Where each live run is, and the queues behind that.

Every live run is in exactly one place, and the place names what it waits for:

=============  ================================================================================================
``TIMER``      Scheduled or RetryWait, until an instant: in the ``timers`` heap
``HELD``       due, but under a pause: in its lane's ``held`` list, still Scheduled or RetryWait
``LANE``       Ready, in its lane's heap, ordered by (priority, first ready)
``MISFIT``     Ready; its stored arguments do not fit the registered handler: in its lane's ``misfits``
``QUARANTINE`` Ready; live in two crashes in a row, and set aside when it came up while another such run was running
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

Heaps drop outdated entries when they surface, and are rebuilt when more than half of one is outdated.
"""

from __future__ import annotations

import enum
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

from msgspec import Struct, field

from actionqueue.core.retry import DEFAULT_TERMS, AttemptTerms
from actionqueue.core.run import RunState

if TYPE_CHECKING:
    from actionqueue.core.state import PauseMark, Run

READY = RunState.READY


class Where(enum.Enum):
    """The kinds of place; the value is for rows and reprs."""

    NOWHERE = 0
    TIMER = 1
    HELD = 2
    LANE = 3
    MISFIT = 4
    QUARANTINE = 5
    RUNNING = 6


# --- typed reasons: what explain renders ------------------------------------------------------------------------


class NotYetDue(Struct, frozen=True, tag=True):
    """Scheduled, or backing off, until an instant."""

    until: int
    backing_off: bool


class Paused(Struct, frozen=True, tag=True):
    """Under a pause; released by resuming the same scope."""

    scope: str
    name: str
    at: int
    by: str


class HandlerMissing(Struct, frozen=True, tag=True):
    """No handler of this name is registered with the engine."""

    handler: str


class ArgumentsMisfit(Struct, frozen=True, tag=True):
    """The stored arguments do not fit the registered handler; released by registering one they fit."""

    handler: str


class NoFreeSlot(Struct, frozen=True, tag=True):
    """A queue's or an executor's slots are all taken, by these runs."""

    kind: str
    name: str
    capacity: int
    holders: tuple[bytes, ...]


class TakesItsTurn(Struct, frozen=True, tag=True):
    """Was live in two crashes in a row; starts when the one before it has ended."""

    holder: bytes | None


class AheadInLine(Struct, frozen=True, tag=True):
    """Nothing blocks it; ``ahead`` runs of its lane go first."""

    ahead: int


class InProgress(Struct, frozen=True, tag=True):
    """An attempt is running since ``since``."""

    attempt_id: bytes
    since: int


Reason = NotYetDue | Paused | HandlerMissing | ArgumentsMisfit | NoFreeSlot | TakesItsTurn | AheadInLine | InProgress


# --- lanes and slots --------------------------------------------------------------------------------------------


class Slots(Struct, eq=False):
    """Something of which only so many runs may have one at a time: a queue or an executor.

    ``running`` is the holders themselves, never a count kept beside them. ``capacity`` None is unlimited.
    """

    kind: str
    name: str
    capacity: int | None = None
    running: dict[bytes, Run] = field(default_factory=dict)
    waiting: list[tuple[int, int, int, Lane]] = field(default_factory=list)

    @property
    def free(self) -> bool:
        """Whether one more run may take a slot."""
        return self.capacity is None or len(self.running) < self.capacity


class Lane(Struct, eq=False):
    """The Ready runs of one handler in one queue."""

    handler: str
    queue: Slots
    named: bytes
    """Handler and queue as the checksums of rows cover them."""
    executor: Slots | None = None
    terms: AttemptTerms | None = None
    pause: PauseMark | None = None
    heap: list[tuple[int, int, Run]] = field(default_factory=list)
    ready: int = 0
    held: dict[bytes, Run] = field(default_factory=dict)
    misfits: dict[bytes, Run] = field(default_factory=dict)
    unfit: set[bytes] = field(default_factory=set)
    """Runs that reported misfitting arguments since the handler was registered, until they are Ready again."""
    outdated: set[bytes] = field(default_factory=set)
    """Runs that were running when the handler was registered again: what they report of arguments is of the old one."""
    spot: Slots | None = None
    key: tuple[int, int] = (0, 0)
    woken_by: Slots | None = None

    def note_misfit(self, run_id: bytes) -> None:
        """A run reported that its arguments do not fit: it waits for another handler, unless there is one already."""
        if run_id in self.outdated:
            self.outdated.discard(run_id)
        else:
            self.unfit.add(run_id)


class Places(Struct, eq=False):
    """All places of one state. See the module's head."""

    lanes: dict[tuple[str, str], Lane] = field(default_factory=dict)
    queues: dict[str, Slots] = field(default_factory=dict)
    executors: dict[str, Slots] = field(default_factory=dict)
    handlers: dict[str, tuple[str, AttemptTerms]] = field(default_factory=dict)
    """Facts of this process: the executor and terms of each registered handler."""
    open: Slots = field(default_factory=lambda: Slots("open", "open"))
    timers: list[tuple[int, int, Run]] = field(default_factory=list)
    timed: int = 0
    expiries: list[tuple[int, int, Run]] = field(default_factory=list)
    quarantined: dict[bytes, Run] = field(default_factory=dict)
    on_trial: dict[bytes, Run] = field(default_factory=dict)
    """The run that was live in two crashes in a row and is running now: at most one at a time."""
    engine_pause: PauseMark | None = None
    expiry_suspended: bool = False
    """Set while the clock cannot be trusted: no deadline to start passes."""
    _serial: int = 0
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
            lane = self.lanes[queue, handler] = Lane(handler, self.queue(queue), f"{handler}\0{queue}".encode())
            self._equip(lane)
        return lane

    def _equip(self, lane: Lane) -> None:
        known = self.handlers.get(lane.handler)
        if known is not None:
            lane.executor = self.executors[known[0]]
            lane.terms = None if known[1] == DEFAULT_TERMS else known[1]

    # --- entering and leaving ----------------------------------------------------------------------------------

    def enter_timer(self, run: Run, until: int) -> None:
        """``run`` waits for an instant."""
        run.where, run.until = Where.TIMER, until
        self._serial += 1
        self.timed += 1
        heappush(self.timers, (until, self._serial, run))

    def watch_expiry(self, run: Run, expires_at: int) -> None:
        """Remember the deadline to start of ``run``."""
        self._serial += 1
        heappush(self.expiries, (expires_at, self._serial, run))

    def enter_lane(self, run: Run) -> None:
        """``run`` is Ready: it queues by priority, then by its order, in its lane."""
        lane = run.task.lane
        run.where = Where.LANE
        key = (-run._effective_priority, run.order)  # noqa: SLF001 - the hot path; Run is a RunInstance
        heappush(lane.heap, (key[0], key[1], run))
        lane.ready += 1
        spot = lane.spot
        if spot is None:
            if lane.ready == 1:
                self._put(lane, self.open, key)
        elif key < lane.key:  # better than whoever was woken for the slots that are free now, perhaps
            self._put(lane, self.open if spot.free else spot, key)

    def leave(self, run: Run) -> None:
        """Take ``run`` out of whatever place it is in; its heap entries become outdated."""
        where = run.where
        run.where = Where.NOWHERE
        if where is Where.LANE:
            lane = run.task.lane
            lane.ready -= 1
            if lane.heap[0][2] is run:
                heappop(lane.heap)
            elif len(lane.heap) > 64 + 2 * lane.ready:
                lane.heap = [entry for entry in lane.heap if _is_current(entry)]
                heapify(lane.heap)
        elif where is Where.TIMER:
            self.timed -= 1
            if len(self.timers) > 64 + 2 * self.timed:
                self.timers = [entry for entry in self.timers if _is_timed(entry)]
                heapify(self.timers)
        elif where is Where.HELD:
            del run.task.lane.held[run.id_bytes]
        elif where is Where.MISFIT:
            del run.task.lane.misfits[run.id_bytes]
        elif where is Where.QUARANTINE:
            del self.quarantined[run.id_bytes]

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
        if lane.spot is None and self._head(lane) is not None:
            self._put(lane, self.open, lane.heap[0][:2])

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
            head = self._head(lane)
            self._chain, lane.woken_by = lane.woken_by, None
            if (
                head is not None and lane.heap[0][:2] != lane.key
            ):  # it was woken for a run that is gone: another may try
                self._put(lane, self.open, lane.heap[0][:2])
                continue
            if head is None:
                continue
            blocker = self.guard(lane)
            if blocker is None:
                if head.lost_streak >= 2 and self.on_trial:
                    self._set_aside(head)
                    continue
                self._next_of(lane)
                return head
            if isinstance(blocker, Slots):
                self._put(lane, blocker, lane.heap[0][:2])

    def _next_lane(self) -> Lane | None:
        """The lane to look at: the one just started from while it is alone, else the best open one."""
        lane = self._alone
        if lane is not None:
            self._alone = None
            if self._head(lane) is not None:
                if not self.open.waiting:
                    lane.key = lane.heap[0][:2]
                    return lane
                self._put(lane, self.open, lane.heap[0][:2])
        return self._pop(self.open)

    def _next_of(self, lane: Lane) -> None:
        """The head of ``lane`` is about to start: what comes after it competes with the other open lanes, if any."""
        if not self.open.waiting:
            self._alone = lane
            return
        following = self._second(lane)
        if following is not None:
            self._put(lane, self.open, following)

    def startable(self, run: Run) -> bool:
        """Whether a run that falls due now may start at once, ahead of nobody."""
        lane = run.task.lane
        return (
            run.lost_streak < 2
            and lane.ready == 0
            and self.engine_pause is None
            and not self.open.waiting
            and self.guard(lane) is None
        )

    def due(self, now: int, most: int) -> list[Run]:
        """Take up to ``most`` runs whose instant has come off the timers: largest priority first, then first due."""
        found: list[Run] = []
        if self.engine_pause is not None:
            return found
        timers = self.timers
        while timers and timers[0][0] <= now and len(found) < most:
            entry = heappop(timers)
            if _is_timed(entry):
                self.timed -= 1
                entry[2].where = Where.NOWHERE
                found.append(entry[2])
        found.sort(key=_turn)
        return found

    def next_timer(self) -> int | None:
        """The instant of the earliest timer or deadline to start, if any."""
        timers, expiries = self.timers, self.expiries
        while timers and not _is_timed(timers[0]):
            heappop(timers)
        while expiries and not _may_expire(expiries[0]):
            heappop(expiries)
        first = timers[0][0] if timers and self.engine_pause is None else None
        if expiries and not self.expiry_suspended and (first is None or expiries[0][0] < first):
            first = expiries[0][0]
        return first

    def expired(self, now: int, most: int) -> list[Run]:
        """Up to ``most`` runs whose deadline to start has passed before they started."""
        found: list[Run] = []
        if self.expiry_suspended:
            return found
        while self.expiries and self.expiries[0][0] <= now and len(found) < most:
            entry = heappop(self.expiries)
            if _may_expire(entry):
                found.append(entry[2])
        return found

    def trim(self, live: int) -> None:
        """Rebuild the heaps that no other call keeps small, where most is outdated. ``live``: how many live runs."""
        if len(self.expiries) > 64 + 2 * live:
            self.expiries = [entry for entry in self.expiries if _may_expire(entry)]
            heapify(self.expiries)
        most = 64 + 2 * len(self.lanes)
        for spot in (self.open, *self.queues.values(), *self.executors.values()):
            if len(spot.waiting) > most:
                lanes = [lane for lane in self.lanes.values() if lane.spot is spot]
                spot.waiting.clear()
                for lane in lanes:
                    self._put(lane, spot, lane.key)

    # --- lanes in heaps ----------------------------------------------------------------------------------------

    def _head(self, lane: Lane) -> Run | None:
        heap = lane.heap
        while heap:
            if _is_current(heap[0]):
                return heap[0][2]
            heappop(heap)
        return None

    def _second(self, lane: Lane) -> tuple[int, int] | None:
        """The key of the entry after the head; may be outdated, which the next pop finds out."""
        heap = lane.heap
        if len(heap) < 2:
            return None
        if len(heap) == 2 or heap[1][:2] < heap[2][:2]:
            return heap[1][:2]
        return heap[2][:2]

    def _put(self, lane: Lane, spot: Slots, key: tuple[int, int]) -> None:
        lane.spot, lane.key = spot, key
        self._serial += 1
        heappush(spot.waiting, (key[0], key[1], self._serial, lane))

    def _pop(self, spot: Slots) -> Lane | None:
        waiting = spot.waiting
        while waiting:
            high, order, _, lane = heappop(waiting)
            if lane.spot is spot and lane.key == (high, order):
                lane.spot = None
                return lane
        return None

    def _wake(self, slots: Slots) -> None:
        """Slots have become free: the best lane that waits for them may try."""
        if not slots.free:
            return
        while (lane := self._pop(slots)) is not None:
            if self._head(lane) is None:
                continue
            key = lane.heap[0][:2]
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
        key = (-run.effective_priority, run.order)
        return AheadInLine(len({entry[2].id_bytes for entry in lane.heap if entry[:2] < key and _is_current(entry)}))

    def blocked_count(self) -> int:
        """How many Ready runs something holds back: a sum over lanes, not over runs."""
        blocked = len(self.quarantined)
        for lane in self.lanes.values():
            blocked += len(lane.misfits)
            if lane.ready and (self.engine_pause is not None or self.guard(lane) is not None):
                blocked += lane.ready
        return blocked

    def dispose(self) -> None:
        """Let go of every run, so that the cycles through them can be freed."""
        for slots in (*self.queues.values(), *self.executors.values(), self.open):
            slots.running.clear()
            slots.waiting.clear()
        for lane in self.lanes.values():
            lane.heap.clear()
            lane.held.clear()
            lane.misfits.clear()
        for heap in (self.timers, self.expiries):
            heap.clear()
        self.lanes.clear()
        self.quarantined.clear()
        self.on_trial.clear()


def _is_current(entry: tuple[int, int, Run]) -> bool:
    run = entry[2]
    return run.where is Where.LANE and run.order == entry[1] and run.effective_priority == -entry[0]


def _is_timed(entry: tuple[int, int, Run]) -> bool:
    return entry[2].where is Where.TIMER and entry[2].until == entry[0]


def _may_expire(entry: tuple[int, int, Run]) -> bool:
    run = entry[2]
    return run.where is not Where.NOWHERE and run.attempt_count == 0


def _turn(run: Run) -> tuple[int, int, int]:
    return -run.priority, run.until, run.order
