"""What callers do with schedules in the simulated world. The rules drawn are so plain that ``calendar`` can count them."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from actionqueue.core import epochs, schedules
from actionqueue.core.rules import CronRule, RepeatRule, Rule
from actionqueue.core.spec import Submission
from actionqueue.core.state import Declaration
from actionqueue.core.submission import Submit
from actionqueue.store.codec import digest
from actionqueue.testing import callers
from actionqueue.testing.behaviour import SECOND_US

if TYPE_CHECKING:
    from actionqueue.testing.world import World

LIVE_SCHEDULES_MAX = 4
_MISFIRES = ("catch_up", "coalesce", "skip")
_OVERLAPS = ("allow", "queue", "skip", "cancel_running")
_HANDLERS = ("fetch", "render", "crunch", "late")
WINDOW_US = 40 * SECOND_US


def _drawn_rule(chance: Random) -> Rule:
    misfire, overlap = chance.choice(_MISFIRES), chance.choice(_OVERLAPS)
    grace_us = chance.choice((0, 2 * SECOND_US, 20 * SECOND_US))
    if chance.random() < 0.4:
        window_us = chance.choice((None, WINDOW_US))
        every_us = chance.choice((1, 3, 10)) * SECOND_US
        return RepeatRule(1 + chance.randrange(8), every_us, None, misfire, grace_us, window_us, overlap)
    most = chance.choice((None, 1 + chance.randrange(9)))
    jitter_us = chance.choice((0, 0, 2 * SECOND_US))
    expression = f"*/{chance.choice((2, 5, 20))} * * * * *"
    return CronRule(expression, "Asia/Tokyo", most, None, None, jitter_us, misfire, grace_us, WINDOW_US, overlap)


def _drawn_item(world: World, chance: Random) -> Submission:
    number = len(world.witness.by_number)
    body = b'{"n":%d}' % number
    ids = world.ids
    item = Submission(ids.next(world.time.wall_us), ids.next(world.time.wall_us), "fetch", body, digest(body))
    item.handler = chance.choice(_HANDLERS)
    item.queue = chance.choice(("default", "open", "narrow"))
    item.rule = _drawn_rule(chance)
    item.content = digest(repr(item.rule).encode())
    if chance.random() < 0.1:
        item.expires_us = 3 * SECOND_US
    return item


def submit(world: World, chance: Random) -> None:
    """A schedule, with a name, without one, or declared by a handler (or declared no more)."""
    kind = chance.randrange(4)
    if kind == 0 and chance.random() < 0.5:
        handler = chance.choice(_HANDLERS[:2])
        callers.send(world, epochs.Declare([Declaration(handler)]), chance, direct_only=True)
        return
    if len(world.ledger.calendar.live()) >= LIVE_SCHEDULES_MAX:
        return
    item = _drawn_item(world, chance)
    world.witness.send(item)
    if kind == 0:
        item.handler = item.schedule_name = chance.choice(_HANDLERS[:2])
        item.schedule_origin = "code"
        callers.send(world, epochs.Declare([Declaration(item.handler)], [item]), chance, direct_only=True)
    elif kind == 1:
        item.schedule_name, item.schedule_origin = chance.choice(("a", "b", "fetch")), "call"
        callers.send(world, schedules.PutSchedule(item, by="someone"), chance)
    else:
        callers.send(world, Submit([item]), chance)


def control(world: World, chance: Random) -> None:
    """Run one now, fill a range of it, or end it; now and then one that is not there."""
    known = world.ledger.calendar.live()
    if not known and chance.random() < 0.9:
        return
    name = known[chance.randrange(len(known))].hex() if known and chance.random() < 0.95 else "nobody's"
    kind = chance.random()
    if kind < 0.5:
        run_id = bytes(16) if chance.random() < 0.03 else world.ids.next(world.time.wall_us)
        world.witness.requested.add(run_id)
        callers.send(world, schedules.Trigger(name, run_id, "someone"), chance)
    elif kind < 0.8:
        until = world.time.wall_us - chance.randrange(30) * SECOND_US
        since = until - (1 + chance.randrange(60)) * SECOND_US
        callers.send(world, schedules.AskBackfill(name, since, until, "someone"), chance)
    else:
        callers.send(world, schedules.Retire(name, "someone"), chance)


def end_all(world: World) -> None:
    """Nothing occurs any more."""
    assert world.stepper is not None
    if world.stepper.engine.refusal() is None:
        for task_id in world.ledger.calendar.live():
            world.stepper.engine.post(schedules.Retire(task_id.hex(), "the end"))
