"""Dependencies in stories: what is submitted after others, and what is made to wait later on."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING

from actionqueue.core.dependencies import AddDependencies
from actionqueue.core.spec import Depends, Submission
from actionqueue.testing import callers

if TYPE_CHECKING:
    from actionqueue.testing.world import World

LATEST = 40
"""Tasks that something depends on are among the latest so many."""


def depend(world: World, items: Sequence[Submission]) -> None:
    """Let some of those about to be submitted depend on others, of them or of before; now and then on nothing there is."""
    chance = Random(items[0].task_id)
    for item in items:
        if item.rule is not None or chance.random() > 0.35:
            continue
        on = dict.fromkeys(_upstream(world, chance, item) for _ in range(1 + chance.randrange(3)))
        on.pop(item.task_id if chance.random() < 0.98 else b"", None)
        if on:
            item.depends = Depends(tuple(on), chance.choice(("cancel", "cancel", "run")), chance.random() < 0.2)


def _upstream(world: World, chance: Random, item: Submission) -> bytes:
    if chance.random() < 0.02:
        return world.ids.next(world.time.wall_us)
    known = world.witness.by_number[-LATEST:]  # those that are submitted together are the last of them
    chosen = known[-1 - int(len(known) * chance.random() ** 2)]
    if chance.random() < 0.97 and chosen.number > world.witness.by_task[item.task_id].number:
        return known[0].item.task_id  # else they may wait for each other
    return chosen.item.task_id


def add(world: World, chance: Random) -> None:
    """Someone lets what has not started, or has, wait for more."""
    for _ in range(1 + chance.randrange(2)):
        live = [run.task for run in world.ledger.live.values() if not run.starts]
        known = [each.item.task_id for each in world.witness.by_number[-LATEST:]]
        if not known:
            return
        task_id = chance.choice(live) if live and chance.random() < 0.8 else chance.choice(known)
        on = tuple(dict.fromkeys(chance.choice(known) for _ in range(1 + chance.randrange(2))))
        callers.send(world, AddDependencies(task_id, on, "someone"), chance)
