"""What must hold of a state after every event, and a digest of all that replay must reproduce.

``check`` reads a state from scratch, by other ways than the code that keeps it: it recounts what is counted, searches
what is indexed, and says in sentences what does not hold. It costs time in proportion to the live state, so it is for
tests, for the simulator and for ``verify``; the engine never calls it on its way.

``fingerprint`` covers what the log determines and nothing else: two states with the same one are the same state. Left
out are facts of the process (registered handlers, free slots, which of the Ready runs are set aside), what is gone at
the next projection (closed attempts, what was touched), and idempotency keys past their lifetime.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from hashlib import blake2b

from msgspec import msgpack

from actionqueue.core.check_limits import has_token, lane_by_rule, lane_fits, limit_problems, queued_by_lane
from actionqueue.core.check_waits import unended, wait_problems
from actionqueue.core.graph import graph_problems
from actionqueue.core.lanes import Lane, Slots
from actionqueue.core.places import Places
from actionqueue.core.ready import aged
from actionqueue.core.reasons import Where
from actionqueue.core.retry import DEFAULT_TERMS
from actionqueue.core.rows import schedule_body
from actionqueue.core.rules import CronRule, rule_problems
from actionqueue.core.schedules import schedule_problems
from actionqueue.core.state import (
    AWAITING,
    CODE_OF,
    FIRST_TERMINAL,
    NO_EXTRA,
    READY,
    RETRY_WAIT,
    RUNNING,
    SCHEDULED,
    STATES,
    Attempt,
    Outcome,
    Run,
    State,
    Task,
)
from actionqueue.core.submission import rare_of
from actionqueue.core.timers import deadline_of, is_ahead
from actionqueue.core.waits import wait_facts

FINGERPRINT_BYTES = 32

_PLACES_OF = {
    SCHEDULED: (Where.TIMER, Where.HELD, Where.OVERLAP, Where.DEPENDENCY),
    RETRY_WAIT: (Where.TIMER, Where.HELD),
    READY: (Where.LANE, Where.MISFIT, Where.QUARANTINE, Where.DEPENDENCY),
    RUNNING: (Where.RUNNING,),
    AWAITING: (Where.AWAITING,),
}
"""Where a run of each state may be. The other live states are passed through within one event."""


def check(state: State, *, settled: bool = False, now: int | None = None, lowered: Collection[str] = ()) -> list[str]:
    """Every invariant that ``state`` violates, as sentences; none means that all is well.

    ``settled`` says that dispatch has run until nothing more could start, and ``now`` at which instant (None: due runs
    are not looked at). ``lowered`` names queues and executors that may be over their capacity because it was lowered.

    >>> check(State())
    []
    """
    found: list[str] = []
    for run_id, run in state.runs.items():
        found += (f"run {run_id.hex()}: {problem}" for problem in _run_problems(state, run_id, run))
    for task_id, task in state.tasks.items():
        found += (f"task {task_id.hex()}: {problem}" for problem in _task_problems(state, task_id, task))
    in_lane: dict[int, list[Run]] = {}
    for run in state.runs.values():
        in_lane.setdefault(id(run.task.lane), []).append(run)
    tasks = Counter(id(task.lane) for task in state.tasks.values())
    lanes = list(state.places.all_lanes())
    tasks.update(id(lane.holding) for lane in lanes if lane.holding is not None)
    queued = queued_by_lane(state)
    for names, base in state.places.lanes.items():
        mine = [run for lane in base.family() for run in in_lane.get(id(lane), [])]
        found += (f"lane {_named(base)}: {problem}" for problem in _family_problems(state, names, base, mine))
        for lane in base.family():
            mine = in_lane.get(id(lane), [])
            found += (f"lane {_named(lane)}: {problem}" for problem in _lane_problems(state, lane, mine, queued))
            if lane.tasks != tasks[id(lane)]:
                found.append(f"lane {_named(lane)}: {tasks[id(lane)]} tasks are in it, {lane.tasks} are counted")
    for slots in (*state.places.queues.values(), *state.places.executors.values(), *state.places.bounds.values()):
        found += (f"{slots.kind} {slots.name}: {problem}" for problem in _slots_problems(state, slots, lowered))
    found += limit_problems(state)
    found += _places_problems(state)
    found += wait_problems(state)
    found += _count_problems(state)
    found += _index_problems(state)
    found += graph_problems(state)
    for schedule in state.schedules.values():
        found += (f"schedule {schedule.task_id.hex()}: {problem}" for problem in schedule_problems(state, schedule))
    if settled:
        found += _unsettled(state, now)
    return found


# --- runs -------------------------------------------------------------------------------------------------------


def _run_problems(state: State, run_id: bytes, run: Run) -> Iterator[str]:
    code = CODE_OF[run.state]
    if run.id_bytes != run_id or run.task_id_bytes != run.task.id:
        yield "its ids do not agree with where it is filed"
    if code not in _PLACES_OF:
        yield f"it rests in {run.state}"
        return
    if run.where not in _PLACES_OF[code]:
        yield f"it is {run.state} and in {run.where.name}: nothing will wake it"
    if state.tasks.get(run.task_id_bytes) is not run.task:
        yield "its task is not a live one"
    if code == SCHEDULED and not _may_wait_until(state, run):
        yield f"it is due at {run.scheduled_at} and waits until {run.until}"
    if code == READY and run.effective_priority != run.priority:
        yield f"it is ready with priority {run.effective_priority} instead of {run.priority}"
    if code == RUNNING and run.task.lane.queue.running.get(run_id) is not run:
        yield "it runs without a slot of its queue"
    if code == RUNNING and (bound := run.task.lane.bound) is not None and bound.running.get(run_id) is not run:
        yield "it runs without a slot of its handler"
    if not 0 < run.order < state.next_order:
        yield f"its order {run.order} was never given (next is {state.next_order})"
    yield from _attempt_problems(state, run, code)
    yield from _instant_problems(state, run, code)


def _may_wait_until(state: State, run: Run) -> bool:
    """Whether it waits for the instant at which it is due: for cron, by the wall clock, and up to the jitter later."""
    rule = run.task.extra.rule
    if not isinstance(rule, CronRule) or not is_ahead(run):
        return run.until == run.scheduled_at or isinstance(rule, CronRule)
    due_at = run.scheduled_at - state.wall_shift
    return due_at <= run.until <= due_at + rule.jitter_us


def _attempt_problems(state: State, run: Run, code: int) -> Iterator[str]:
    attempt, current = run.attempt, run.current_attempt_id_bytes
    if (attempt is not None) != (code == RUNNING) or current != (None if attempt is None else attempt.id):
        yield f"it is {run.state}, its current attempt {current!r}, its open one {attempt!r}"
    if attempt is not None:
        if attempt.number != run.attempt_count or attempt.finished_at is not None or attempt.outcome is not None:
            yield f"its open attempt is number {attempt.number} of {run.attempt_count}, or has ended"
        if not 0 < attempt.fence <= state.last_seq:
            yield f"the fence {attempt.fence} of its attempt was never given"
    closed_count = run.attempt_count - (attempt is not None)
    if run.failure_count + run.lost_count > closed_count:
        yield f"{run.failure_count} failures and {run.lost_count} losses in {closed_count} closed attempts"
    if run.lost_streak > run.lost_count:
        yield f"lost {run.lost_count} times, {run.lost_streak} of them in a row"
    if run.failure_count >= run.task.max_attempts:
        yield f"it is live after {run.failure_count} counted failures of at most {run.task.max_attempts}"
    if (run.latest is None) != (run.attempt_count == 0) or (attempt is not None and run.latest is not attempt):
        yield f"its latest attempt is {run.latest!r}, its open one {attempt!r}, of {run.attempt_count}"
    yield from _closed_problems(run, _closed(run), closed_count)


def _closed(run: Run) -> list[Attempt]:
    """The closed attempts that are in memory: the latest, and those before it that were not projected yet."""
    latest = [] if run.latest is None or run.latest is run.attempt else [run.latest]
    return [*(run.older or []), *latest]


def _closed_problems(run: Run, closed: list[Attempt], closed_count: int) -> Iterator[str]:
    if [each.number for each in closed] != list(range(closed_count - len(closed) + 1, closed_count + 1)):
        yield f"its closed attempts are numbered {[each.number for each in closed]} of {closed_count}"
    counted = Counter(each.outcome for each in closed)
    failures = counted[Outcome.FAILED] + counted[Outcome.TIMED_OUT]
    losses = counted[Outcome.LOST]
    if len(closed) == closed_count and (failures, losses) != (run.failure_count, run.lost_count):
        yield f"it counts {run.failure_count} failures, {run.lost_count} losses; its attempts {failures}, {losses}"
    if closed and closed[-1].outcome is Outcome.LOST and run.lost_count > closed[-1].terms.max_lost:
        yield f"it is live after {run.lost_count} losses of at most {closed[-1].terms.max_lost}"


def _instant_problems(state: State, run: Run, code: int) -> Iterator[str]:
    changed_at, attempt = run.last_state_change_at, run.attempt
    story = [run.created_at]
    for each in [*_closed(run), *([] if attempt is None else [attempt])]:
        story += [each.ready_at, each.started_at] + ([] if each.finished_at is None else [each.finished_at])
    story += [changed_at, state.last_at]
    if story != sorted(story):
        yield f"its instants decrease: {story}"
    if code == RUNNING and not changed_at == run.started_at == (attempt and attempt.started_at):
        yield "it did not start when its attempt did"
    if code == RETRY_WAIT and run.until < changed_at:
        yield f"it waits since {changed_at} until {run.until}, which is earlier"


# --- tasks ------------------------------------------------------------------------------------------------------


def _task_problems(state: State, task_id: bytes, task: Task) -> Iterator[str]:
    live: dict[bytes, Run] = {}
    run = task.head
    while run is not None and run.id_bytes not in live:
        live[run.id_bytes] = run
        run = run.next
    if run is not None:
        yield "its live runs are linked in a circle"
    base = state.places.lanes.get((task.queue, task.handler))
    if task.id != task_id or base is None or lane_by_rule(state, task, base) is not task.lane:
        yield "its id or lane is not the one it is filed under"
    if not live and task_id not in state.underived and not _is_put_off(task):
        yield "it has no live run, and is live"
    if any(each.task is not task or state.runs.get(run_id) is not each for run_id, each in live.items()):
        yield "a run linked to it is not live, or is another task's"
    if task.run_count != sum(task.ended) + len(live) or task.open_count != len(live) or min(task.ended) < 0:
        yield f"of {task.run_count} runs {task.ended} ended, and {len(live)} are live"
    if task.finished_at is not None:
        yield "it is finished, and live"


def _is_put_off(task: Task) -> bool:
    """Whether it has a schedule from which nothing can be derived here: its zone is not known to this machine."""
    rule = task.extra.rule
    return isinstance(rule, CronRule) and bool(rule_problems(rule))


# --- lanes and slots --------------------------------------------------------------------------------------------


def _named(lane: Lane) -> str:
    limits, rates, task_id = lane.needs
    keys = [*(need.key for need in limits), *(need.key for need in rates)]
    return "/".join((lane.queue.name, lane.handler, *keys, task_id.hex())).rstrip("/")


def _family_problems(state: State, names: tuple[str, str], base: Lane, mine: list[Run]) -> Iterator[str]:
    places = state.places
    if (
        base.base is not None
        or names != (base.queue.name, base.handler)
        or places.queues[base.queue.name] is not base.queue
    ):
        yield "it is not filed under its names"
    if (base.misfits or {}) != {run.id_bytes: run for run in mine if run.where is Where.MISFIT}:
        yield "its MISFIT runs are not those it keeps"
    known = places.handlers.get(base.handler)
    for lane in base.family():
        if known is not None and (
            lane.executor is not places.executors[known[0]]
            or (lane.terms or DEFAULT_TERMS) != known[1]
            or lane.bound is not places.bounds.get(base.handler)
        ):
            yield "its executor, terms or bound are not those registered"
        if lane is not base and (lane.base is not base or lane.queue is not base.queue or lane.handler != base.handler):
            yield "one of its kin is of another family"
    for needs, lane in (base.kin or {}).items():
        if lane.needs != needs or not lane_fits(places, lane):
            yield f"its lane for {needs} needs something else"


def _lane_problems(state: State, lane: Lane, mine: list[Run], queued: dict[int, list[Run]]) -> Iterator[str]:
    places = state.places
    waiting = {(run.rank, run.order): run for run in queued.get(id(lane), [])}
    listed = {(run.rank, run.order) for run in lane.ready}
    if listed != set(waiting) or lane.ready.count != len(waiting):
        yield f"{len(waiting)} runs wait in it; it counts {lane.ready.count} and lists {len(listed)}"
    aging_us = places.aging_us
    if lane.ready.aging_us != aging_us or any(
        run.rank != (aged(run, aging_us) if aging_us else -run.effective_priority) for run in waiting.values()
    ):
        yield "a run in it is ranked by something else than its priority and age"
    yield from lane.ready.problems()
    if (lane.held or {}) != {run.id_bytes: run for run in mine if run.where is Where.HELD}:
        yield "its HELD runs are not those it keeps"
    if lane.held and lane.pause is None:
        yield "it holds runs under no pause"
    pauses, task_id = state.pauses, lane.needs[2]
    mark = pauses.get(("task", task_id.hex())) if task_id else None
    if lane.pause != (pauses.get(("queue", lane.queue.name)) or pauses.get(("handler", lane.handler)) or mark):
        yield "its pause is not the one in force"
    if lane.limited != bool(lane.bound is not None or lane.keys or lane.rates):
        yield "it does not know whether it is limited"
    if waiting:
        yield from _waking_problems(places, lane, min(waiting))


def _waking_problems(places: Places, lane: Lane, best: tuple[int, int]) -> Iterator[str]:
    spot = lane.spot
    if spot is None:
        if lane.pause is None and lane.executor is not None:
            yield "it is parked, and neither a pause nor a missing handler keeps it there"
        return
    needed = (places.open, lane.queue, lane.executor, lane.bound, *lane.keys, *lane.rates)
    if not any(spot is each for each in needed):
        yield f"it waits for {spot.kind} {spot.name}, which it does not need"
    if not any(entry[3] is lane and entry[:2] == lane.key for entry in spot.waiting or ()):
        yield f"it waits for {spot.kind} {spot.name}, which does not know"
    if lane.key > best:
        yield f"it queues as {lane.key}, and its best run is {best}"


def _slots_problems(state: State, slots: Slots, lowered: Collection[str]) -> Iterator[str]:
    for run_id, run in slots.running.items():
        mine = slots.kind == "executor" or slots in (run.task.lane.queue, run.task.lane.bound)
        if state.runs.get(run_id) is not run or run.where is not Where.RUNNING or not mine:
            yield f"a slot is held by run {run_id.hex()}, which is {run.state}, or of another queue"
    if slots.capacity is not None and len(slots.running) > slots.capacity and slots.name not in lowered:
        yield f"{len(slots.running)} slots are taken of {slots.capacity}"


# --- the state as a whole ---------------------------------------------------------------------------------------


def _places_problems(state: State) -> Iterator[str]:
    places, runs = state.places, state.runs
    timed = {(run.until, run_id) for run_id, run in runs.items() if run.where is Where.TIMER}
    missing = timed - {(entry[0], entry[2].id_bytes) for entry in places.timers.due_at}
    for _, run_id in missing:
        yield f"run {run_id.hex()}: no timer will wake it"
    if places.timers.waiting != len(timed):
        yield f"{len(timed)} runs wait for an instant, {places.timers.waiting} are counted"
    for name, heap in (("timers", places.timers.due_at), ("deadlines", places.timers.deadlines)):
        if any(heap[n] < heap[(n - 1) // 2] for n in range(1, len(heap))):
            yield f"the heap of {name} is out of order"
    aside = {run_id: run for run_id, run in runs.items() if run.where is Where.QUARANTINE}
    on_trial = {run_id: run for run_id, run in runs.items() if run.where is Where.RUNNING and run.lost_streak >= 2}
    if places.quarantined != aside or places.on_trial != on_trial or len(on_trial) > 1:
        yield f"{len(aside)} runs are set aside and {len(on_trial)} on trial, or others than the places say"
    if aside and not on_trial:
        yield "runs are set aside, and none is on trial"
    if places.engine_pause != state.pauses.get(("engine", "")):
        yield "the engine's pause is not the one in force"
    watched = {(entry[0], entry[2].id_bytes) for entry in places.timers.deadlines}
    for run_id, run in runs.items():
        expires_at = deadline_of(run)
        if (
            expires_at is not None
            and run.attempt_count == 0
            and not is_ahead(run)
            and (expires_at, run_id) not in watched
        ):
            yield f"run {run_id.hex()}: its deadline to start is not watched"


def _count_problems(state: State) -> Iterator[str]:
    live = Counter(CODE_OF[run.state] for run in state.runs.values())
    for code in range(FIRST_TERMINAL):
        if state.counts[code] != live[code]:
            yield f"{live[code]} runs are {STATES[code]}, {state.counts[code]} are counted"
    for n, code in enumerate(range(FIRST_TERMINAL, len(STATES))):
        least = sum(task.ended[n] for task in state.tasks.values())
        if state.counts[code] < least:
            yield f"at least {least} runs are {STATES[code]}, {state.counts[code]} are counted"
    if state.tasks_total < len(state.tasks):
        yield f"{len(state.tasks)} tasks are live, {state.tasks_total} are counted"
    linked = sum(task.open_count for task in state.tasks.values())
    if linked != len(state.runs):
        yield f"{len(state.runs)} runs are live, their tasks know {linked}"


def _index_problems(state: State) -> Iterator[str]:
    for key, task in state.keys.items():
        if state.tasks.get(task.id) is not task or task.extra.key != key:
            yield f"idempotency key {key!r} leads to a task that is not live or has another key"
    for task_id, task in state.tasks.items():
        standing = _standing_key(state, task)
        if standing is not None and state.keys.get(standing) is not task:
            yield f"task {task_id.hex()}: nothing leads from its idempotency key {standing!r} to it"
    orders = Counter(run.order for run in state.runs.values())
    if any(count > 1 for count in orders.values()):
        yield "two runs have the same place in the order"
    attempts = [run.attempt for run in state.runs.values() if run.attempt is not None]
    if len({each.id for each in attempts}) != len(attempts) or len({each.fence for each in attempts}) != len(attempts):
        yield "two open attempts share an id or a fence"
    for (scope, name), mark in state.pauses.items():
        if scope == "task" and bytes.fromhex(name) not in state.tasks:
            yield f"the pause of task {name} has outlived it"
        if (mark.scope, mark.name) != (scope, name):
            yield f"the pause of {scope} {name} is filed under another scope"


def _standing_key(state: State, task: Task) -> str | None:
    until = task.extra.key_until
    return task.extra.key if until is None or until > state.last_at else None


def _unsettled(state: State, now: int | None) -> Iterator[str]:
    places = state.places
    for run_id, run in state.runs.items():
        holding = [slots.name for slots in places.executors.values() if run_id in slots.running]
        if len(holding) != (run.where is Where.RUNNING):
            yield f"run {run_id.hex()}: it is {run.state} and holds slots of {holding}"
    if places.engine_pause is not None:
        return
    for lane in places.all_lanes():
        spot = lane.spot
        if lane.ready and spot is not None and (spot is places.open or spot.free or has_token(spot, now)):
            yield f"lane {_named(lane)}: it could start, and was left waiting for {spot.kind} {spot.name}"
    for schedule in state.underived.values():
        yield f"schedule {schedule.task_id.hex()}: its next run could be derived, and was not"
    yield from unended(places.awaiting, now)
    if now is not None:
        for run_id, run in state.runs.items():
            if run.where is Where.TIMER and run.until <= now:
                yield f"run {run_id.hex()}: it was due at {run.until} and is left waiting at {now}"


# --- the digest -------------------------------------------------------------------------------------------------


def fingerprint(state: State) -> bytes:
    """A digest of everything the log determines: equal for two states exactly if they are the same.

    >>> fingerprint(State()) == fingerprint(State())
    True
    """
    whole = blake2b(digest_size=FINGERPRINT_BYTES)
    pack = msgpack.Encoder(order="deterministic").encode
    whole.update(pack((
        state.last_seq, state.last_at, state.next_order, state.counts, state.tasks_total, state.pruned_before,
        state.occurrences_skipped, state.wall_shift, [schedule_body(each) for _, each in sorted(state.schedules.items())],
        state.epoch, sorted(state.pauses.items()), sorted(state.declarations.items()),
        {key: task.id for key, task in state.keys.items() if _standing_key(state, task) is not None},
        wait_facts(state),
        {key: meter.tat for key, meter in state.places.limits.meters.items() if meter.tat > state.last_at},
    )))  # fmt: skip
    for task_id in sorted(state.tasks):
        whole.update(pack(_task_facts(state.tasks[task_id])))
    for run_id in sorted(state.runs):
        whole.update(pack(_run_facts(state.runs[run_id])))
    return whole.digest()


def _task_facts(task: Task) -> tuple[object, ...]:
    extra = task.extra
    return (
        task.id, task.handler, task.queue, task.priority, task.max_attempts, task.created_at, task.payload_digest,
        task.payload_bytes, task.run_count, task.ended, task.finished_at, extra.canceled_at,
        None if extra == NO_EXTRA else rare_of(extra), sorted(run.id_bytes for run in task.live_runs()),
    )  # fmt: skip


def _run_facts(run: Run) -> tuple[object, ...]:
    return (
        run.id_bytes, run.task_id_bytes, run.state.value, run.current_attempt_id_bytes, run.attempt_count,
        run.created_at, run.scheduled_at, run.effective_priority, run.last_state_change_at, run.order, run.until,
        run.priority, run.failure_count, run.lost_count, run.lost_streak, run.reason, run.lineage, run.cancel,
        run.output, run.started_at, run.error_kind, run.attempt,
    )  # fmt: skip
