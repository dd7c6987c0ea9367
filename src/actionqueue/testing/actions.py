"""What each kind of step does to the world. Everything about it is drawn from the step's number.

One function a kind, in one table. A step that finds nothing to be about does nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from actionqueue.core import control, epochs
from actionqueue.core.attempts import Finish, Progress
from actionqueue.core.explain import Explain
from actionqueue.core.instants import SUBMIT_INSTANT_MAX
from actionqueue.core.needs import KeyNeed, RateNeed
from actionqueue.core.retry import Delays, Exponential
from actionqueue.core.signals import SendSignal
from actionqueue.core.spec import NO_OPTIONS, PRIORITY_MAX, BatchHead, Submission, TaskOptions, check_count, validate
from actionqueue.core.state import Declaration, Outcome
from actionqueue.core.submission import RetryRun, Submit
from actionqueue.core.usage import ListLimits
from actionqueue.store.codec import digest
from actionqueue.testing import callers, depending, planning
from actionqueue.testing.behaviour import HANDLERS, SECOND_US, SIGNAL_KEYS, SIGNALS
from actionqueue.testing.faults import COMMIT_FAULTS

if TYPE_CHECKING:
    from actionqueue.testing.world import World

_HANDLERS = ("fetch", "fetch", "render", "crunch", "poison", "late", None)
_QUEUES = ("default", "default", "open", "narrow", "wide", None)
_HOW = ("cancel", "cancel", "kill", "abandon")
_SCOPES = (
    ("engine", ""), ("queue", "narrow"), ("queue", "default"), ("handler", "fetch"), ("handler", "late"), ("queue", "wide"),
)  # fmt: skip
_BAD_SCOPES = (("engine", "x"), ("queue", ""), ("planet", "earth"), ("handler", "\n"))
_PASSES_US = (1, 1_000, 120_000, 400_000, SECOND_US, 3 * SECOND_US, 10 * SECOND_US, 31 * SECOND_US, 200 * SECOND_US)
_JUMPS_US = (-7_200 * SECOND_US, -90 * SECOND_US, 45 * SECOND_US, 3_600 * SECOND_US, 400 * 86_400 * SECOND_US)


# --- submitting -----------------------------------------------------------------------------------------------------


def new_item(world: World, chance: Random) -> Submission:
    """A submission with everything that one can have, now and then."""
    pick = chance.random
    number = len(world.witness.by_number)
    body = b'{"n":%d}' % number
    item = Submission(
        world.ids.next(world.time.wall_us), world.ids.next(world.time.wall_us), "fetch", body, digest(body)
    )
    item.handler = _HANDLERS[int(pick() * len(_HANDLERS))] or "render"
    item.queue = _QUEUES[int(pick() * len(_QUEUES))]
    item.priority = int(pick() * 5) - 2 if pick() < 0.7 else None
    item.max_attempts = (1, 2, 3, 5)[int(pick() * 4)] if pick() < 0.7 else None
    if pick() < 0.2:
        item.delay_us = int(pick() * 20) * SECOND_US
    elif pick() < 0.1:
        item.at_us = world.time.wall_us + int(pick() * 40 - 10) * SECOND_US
    if pick() < 0.2:
        item.expires_us = int(pick() * 8_000_000) + 1
    if pick() < 0.15:
        _give_key(item, chance)
    if pick() < 0.15:
        _give_options(item, chance)
    if number % 3 == 0:
        _give_needs(item, Random(number + int(pick() * 1_000)))
    if pick() < 0.1 and item.key is None:
        item.task_id_given, item.content = True, digest(item.body)
    return item


def _give_key(item: Submission, chance: Random) -> None:
    item.key = f"key {chance.randrange(5)}"
    item.content = digest(b"%d" % chance.randrange(2))
    item.key_lifetime_us = chance.choice((None, 5 * SECOND_US, 60 * SECOND_US))
    item.handler = "fetch"


def _give_options(item: Submission, chance: Random) -> None:
    backoff = chance.choice(
        (None, Delays((SECOND_US, 5 * SECOND_US)), Exponential(SECOND_US, 2.0, 8 * SECOND_US, jitter=True))
    )
    item.options = TaskOptions(
        chance.choice((None, SECOND_US, 30 * SECOND_US)),
        backoff,
        ("blue", f"n{chance.randrange(3)}"),
        {"why": [1, None]},
    )


def _give_needs(item: Submission, chance: Random) -> None:
    """Keys of several capacities, in either order; a rate; states to hold the keys over."""
    one, two = (KeyNeed(chance.choice(("a", "b")), 1 + chance.randrange(2)), KeyNeed("c", 1 + chance.randrange(3)))
    item.options = replace(
        item.options or NO_OPTIONS,
        limits=chance.choice(((one,), (one,), (one, two), (two, one), ())),
        rates=chance.choice(((), (), (RateNeed("slow", 1, 2 * SECOND_US, 3),))),
        hold=chance.choice(((), ("retry_wait",), ("retry_wait", "awaiting"))),
    )


def submit(world: World, chance: Random) -> None:
    """A few submissions, of one or several tasks each."""
    for _ in range(1 + chance.randrange(3)):
        count = 1 if chance.random() < 0.8 else 1 + chance.randrange(4)
        items = []
        for _ in range(count):
            item = new_item(world, chance)
            world.witness.send(item)
            items.append(item)
        depending.depend(world, items)
        head = BatchHead(world.ids.next(world.time.wall_us), "together") if chance.random() < 0.25 else None
        callers.send(world, Submit(items, batch=head), chance)


def submit_many(world: World, chance: Random) -> None:
    """More than fit, now and then; and more in one call than there may be."""
    items = [new_item(world, chance) for _ in range(25)]
    for item in items:
        world.witness.send(item)
    callers.send(world, Submit(items), chance)
    callers.refuses(world, lambda: check_count(10_001))


def submit_invalid(world: World, chance: Random) -> None:
    """What must be refused: at the front door, or, from another process, by the engine; or what no release can read."""
    item = new_item(world, chance)
    item.task_id_given = False  # nobody sends it again
    match chance.randrange(6):
        case 0:
            item.priority = PRIORITY_MAX + 1
        case 1:
            item.handler = "x" * 5_000
        case 2:
            item.at_us, item.delay_us = 5, 5
        case 3:
            item.run_id = bytes(16)
        case 4:
            item.body = b" " * 2_000_000
        case _:
            callers.put_body(world, bytes([chance.randrange(256) for _ in range(8)]), None)
            return
    if len(item.body) > 1_000_000 or chance.random() < 0.5:
        callers.refuses(world, lambda: validate(item))
        return
    world.witness.send(item)
    callers.put(world, Submit([item]))


def resubmit(world: World, chance: Random) -> None:
    """The same again, with the ids of before: after ``CommitUnknown``, or out of carefulness."""
    sent = [each for each in world.witness.by_number if each.item.task_id_given and each.fate != "refused"]
    if sent:
        again = sent[-1 - chance.randrange(min(5, len(sent)))]
        if again.fate == "sent":
            again.fate = "unsure"
        callers.send(world, Submit([again.item]), chance, direct_only=True)


# --- controls -------------------------------------------------------------------------------------------------------


def a_run(world: World, chance: Random) -> bytes | None:
    """A run that someone may speak of: mostly a live one, now and then one that ended, or that never was."""
    if chance.random() < 0.04:
        return world.ids.next(world.time.wall_us)
    live = world.ledger.live
    if live and chance.random() < 0.75:
        return list(live)[chance.randrange(len(live))]
    runs = world.ledger.runs
    return list(runs)[chance.randrange(len(runs))] if runs else None


def cancel(world: World, chance: Random) -> None:
    """One run, at one of three levels (or at none there is)."""
    for _ in range(1 + chance.randrange(2)):
        run_id = a_run(world, chance)
        if run_id is not None:
            how = "gently" if chance.random() < 0.03 else _HOW[chance.randrange(4)]
            callers.send(world, control.CancelRun(run_id, how, "someone"), chance)


def cancel_task(world: World, chance: Random) -> None:
    """All runs of a task."""
    run_id = a_run(world, chance)
    if run_id is not None:
        run = world.ledger.runs.get(run_id)
        how = "gently" if chance.random() < 0.05 else _HOW[chance.randrange(4)]
        callers.send(world, control.CancelTask(run_id if run is None else run.task, how, "someone"), chance)


def retry(world: World, chance: Random) -> None:
    """A new run for one that failed or was canceled (or for one that was not)."""
    for _ in range(1 + chance.randrange(2)):
        failed = [run for run in world.ledger.runs.values() if run.state in ("failed", "canceled")]
        run_id = failed[chance.randrange(len(failed))].id if failed and chance.random() < 0.8 else a_run(world, chance)
        if run_id is None:
            return
        new_id = bytes(16) if chance.random() < 0.03 else world.ids.next(world.time.wall_us)
        at_us = -1 if chance.random() < 0.03 else chance.choice((None, None, world.time.wall_us + 3 * SECOND_US))
        world.witness.retries[new_id] = run_id
        command = RetryRun(
            run_id, new_id, "someone", at_us=at_us, with_dependents=chance.random() < 0.4, fresh=new_id[-1] % 4 == 0
        )
        callers.send(world, command, chance)


def reschedule(world: World, chance: Random) -> None:
    """Another instant."""
    for _ in range(1 + chance.randrange(2)):
        waiting = [run.id for run in world.ledger.live.values() if run.state in ("scheduled", "retry_wait")]
        run_id = waiting[chance.randrange(len(waiting))] if waiting and chance.random() < 0.6 else a_run(world, chance)
        if run_id is not None:
            due_at = world.time.wall_us + (chance.randrange(40) - 10) * SECOND_US
            if chance.random() < 0.05:
                due_at = SUBMIT_INSTANT_MAX + 1
            callers.send(world, control.Reschedule(run_id, due_at), chance)


def reprioritize(world: World, chance: Random) -> None:
    """Another priority."""
    for _ in range(1 + chance.randrange(3)):
        run_id = a_run(world, chance)
        if run_id is not None:
            priority = PRIORITY_MAX + 1 if chance.random() < 0.05 else chance.randrange(7) - 3
            callers.send(world, control.Reprioritize(run_id, priority), chance)


def pause(world: World, chance: Random) -> None:
    """The engine, a queue, a handler or a task."""
    run = world.ledger.runs.get(a_run(world, chance) or b"") if chance.random() < 0.3 else None
    if run is not None:
        callers.send(world, control.Pause("task", run.task.hex(), "someone"), chance)
        return
    scope, name = _BAD_SCOPES[chance.randrange(4)] if chance.random() < 0.1 else _SCOPES[chance.randrange(6)]
    callers.send(world, control.Pause(scope, name, "someone"), chance)


def resume(world: World, chance: Random) -> None:
    """What is paused, or is not."""
    for scope, name in sorted(world.ledger.paused) or [_SCOPES[chance.randrange(6)]]:
        if chance.random() < 0.8:
            callers.send(world, control.Resume(scope, name, "someone"), chance)


# --- reports, questions, housekeeping -------------------------------------------------------------------------------


def report(world: World, chance: Random) -> None:
    """What must be refused: a report that comes late, from an earlier epoch, or with a fence of one's own."""
    started = list(world.witness.started.values())
    if not started:
        return
    a = started[-1 - chance.randrange(min(20, len(started)))]
    run = world.ledger.runs[a.run_id]
    fence = a.fence + (1 if run.open == a.attempt_id else 0)
    outcome = chance.choice((Outcome.COMPLETED, Outcome.FAILED, Outcome.LOST, Outcome.SNOOZED))
    if chance.random() < 0.5:
        callers.report(world, Finish(a.run_id, a.attempt_id, fence, outcome))
    else:
        callers.send(world, Progress(a.run_id, a.attempt_id, fence, 1, None, "from afar"), chance, direct_only=True)


def await_task(world: World, chance: Random) -> None:
    """Someone waits for a result."""
    created = [each for each in world.witness.by_number if each.fate == "created"]
    if created:
        callers.await_task(world, created[-1 - chance.randrange(min(30, len(created)))].item.task_id)


def read(world: World, chance: Random) -> None:
    """Someone looks at a run that they were told of, and asks why it is where it is, or what is limited."""
    known = sorted(world.witness.acknowledged)
    if known:
        callers.read(world, known[chance.randrange(len(known))])
    run_id = a_run(world, chance)
    if run_id is not None and chance.random() < 0.7:
        callers.send(world, Explain(run_id), chance)
    else:
        callers.send(world, ListLimits(), chance)


def declare(world: World, chance: Random) -> None:
    """A handler's decorator says something else."""
    name = chance.choice(("fetch", "render"))
    tags = ("declared",) if chance.random() < 0.5 else ()
    declared = Declaration(name, "open", chance.randrange(3), 1 + chance.randrange(3), 30 * SECOND_US, tags)
    callers.send(world, epochs.Declare([declared]), chance, direct_only=True)


def touch(world: World, chance: Random) -> None:
    """Nothing, durably."""
    callers.send(world, epochs.Touch(), chance, direct_only=True)


def confirm_clock(world: World, chance: Random) -> None:
    """An operator vouches for the clock."""
    callers.send(world, epochs.ConfirmClock("someone"), chance)
    world.serve()


def prune(world: World, chance: Random) -> None:
    """Housekeeping deletes what ended a while ago."""
    world.keep_house(lambda house: house.prune_tasks(world.engine_now() - chance.randrange(90) * SECOND_US))


def prune_log(world: World, chance: Random) -> None:
    """And what the log need not keep."""
    world.keep_house(lambda house: house.prune_log(world.engine_now() - chance.randrange(60) * SECOND_US))


def prune_asked(world: World, chance: Random) -> None:
    """Someone asks for both."""
    before = world.time.wall_us - chance.randrange(90) * SECOND_US
    callers.send(world, epochs.PruneHistory(before, before, "someone"), chance)
    world.serve()


def choose_prune(world: World, chance: Random) -> None:
    """Housekeeping chooses, and loses the processor before it says what."""
    world.choose_prune(chance.random() < 0.4)


def register(world: World, chance: Random) -> None:
    """A handler that came late, or comes anew."""
    world.register(HANDLERS[chance.randrange(len(HANDLERS))])


# --- time, faults, the ends of engines ------------------------------------------------------------------------------


def signal(world: World, chance: Random) -> None:
    """Someone sends a signal, now and then one that was sent before, or another under its id."""
    id = f"signal {chance.randrange(12)}" if chance.random() < 0.4 else world.ids.next(world.time.wall_us).hex()
    payload = b"%d" % chance.randrange(2)
    callers.send(world, SendSignal(id, chance.choice(SIGNALS), chance.choice(SIGNAL_KEYS), payload, "someone"), chance)


def pass_time(world: World, chance: Random) -> None:
    """Time passes, and everybody does what they do then."""
    world.pass_time(_PASSES_US[chance.randrange(len(_PASSES_US))])


def jump(world: World, chance: Random) -> None:
    """Someone sets the wall clock."""
    world.set_wall(_JUMPS_US[chance.randrange(len(_JUMPS_US))])


def fault(world: World, chance: Random) -> None:
    """The next commits meet what disks and processes do."""
    kind = chance.choice(COMMIT_FAULTS)
    world.disk.arm(*[kind] * (1 + chance.randrange(4) if kind in ("unavailable", "disk_full", "slow") else 1))


def read_fault(world: World, chance: Random) -> None:
    """The next questions to the store, or to the inbox, cannot be answered."""
    if chance.random() < 0.7:
        world.disk.fail_reads(1 + chance.randrange(3))
    else:
        world.inbox.fail_reads(1 + chance.randrange(3))


def crash(world: World, chance: Random) -> None:
    """The process dies, wherever it is."""
    world.crash("killed")
    if chance.random() < 0.5:
        world.open()


def restart(world: World, chance: Random) -> None:
    """An engine opens, where none is."""
    if world.stepper is None:
        world.open()


def take_over(world: World, chance: Random) -> None:
    """Another engine opens while the first believes that it holds the store."""
    world.take_over()


def second(world: World, chance: Random) -> None:
    """Another engine is refused while the first holds the store."""
    world.open_second()


def drain(world: World, chance: Random) -> None:
    """The engine ends in order, or is killed while it tries to."""
    world.drain(chance.choice((0.0, 0.0, 0.3, 1.0)), chance.choice((3, 1_000, 1_000)))


ACTIONS: dict[str, Callable[[World, Random], Any]] = {
    "submit": submit, "submit_invalid": submit_invalid, "submit_many": submit_many, "resubmit": resubmit, "cancel": cancel,
    "cancel_task": cancel_task, "retry": retry, "reschedule": reschedule, "reprioritize": reprioritize, "pause": pause,
    "resume": resume, "report": report, "await": await_task, "read": read, "declare": declare, "touch": touch,
    "confirm_clock": confirm_clock, "prune": prune, "prune_log": prune_log, "prune_asked": prune_asked,
    "choose_prune": choose_prune, "register": register, "pass": pass_time, "jump": jump, "fault": fault,
    "read_fault": read_fault, "crash": crash, "restart": restart, "take_over": take_over, "second": second, "drain": drain,
    "signal": signal, "schedule": planning.submit, "of_schedule": planning.control, "depend": depending.add,
}  # fmt: skip
