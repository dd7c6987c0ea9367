"""Telling a story: its steps acted out in a fresh world, to the end or to the first problem."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager

from msgspec import Struct

from actionqueue.testing.actions import ACTIONS
from actionqueue.testing.finale import finish
from actionqueue.testing.steps import Step, drawn
from actionqueue.testing.world import World


class Told(Struct):
    """What came of a story. ``steps_told`` counts those acted out: all, or up to the one that showed the problem."""

    seed: int
    steps: list[Step]
    notes: list[list[str]]
    problems: list[str]
    coverage: Counter[str]
    commands: int

    @property
    def trace(self) -> str:
        """Everything that happened, one thing a line: the same for the same seed, to the byte."""
        return "\n".join(note for notes in self.notes for note in notes)


def tell(seed: int, steps: Sequence[Step] | None = None) -> Told:
    """Act out the story of a seed, or other steps with the handlers of that seed."""
    steps = drawn(seed) if steps is None else list(steps)
    with quiet_log():
        world = World(seed)
        world.perform(lambda world, _: world.open(), 0, "")
        notes = [world.notes]
        for step in steps:
            if world.problems:
                break
            world.perform(ACTIONS[step.kind], step.draw, step.moves)
            notes.append(world.notes)
        if not world.problems:
            finish(world)
            notes.append(world.notes)
    if world.problems and world.stepper is not None:
        world.stepper.drop()
    world.let_go()
    return Told(seed, steps, notes, world.problems, world.coverage, world.commands)


@contextmanager
def quiet_log() -> Generator[None]:
    """What the engine says of the faults it meets is not for anybody to read."""
    logger = logging.getLogger("actionqueue")
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before
