"""The end of a story: everything is let run to its end, and then everything must add up."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

from actionqueue.core import control
from actionqueue.core.signals import SendSignal
from actionqueue.core.state import STATES
from actionqueue.testing import planning
from actionqueue.testing.behaviour import HANDLERS, SECOND_US
from actionqueue.verify import verify

if TYPE_CHECKING:
    from actionqueue.testing.world import World


def finish(world: World) -> None:
    """Everything is let run to its end; then everything must add up."""
    world.notes = []
    try:
        _let_run(world)
    except Exception:
        world.problem(traceback.format_exc())
    world.judge()


def _let_run(world: World) -> None:
    world.disk.heal()
    world.inbox.fail_reads(0)
    world.is_late_there = True
    if world.old is not None:
        world.old.settle()
        world.old.close()
        world.old.drop()
        world.old = None
    if world.stepper is not None and world.stepper.engine.fenced is not None:
        world.stepper.close()
        world.drop()
    if world.stepper is None:
        world.open()
    assert world.stepper is not None
    stepper = world.stepper
    for handler in HANDLERS:
        world.register(handler)
    for executor in world.executors():
        executor.calm_down()
    for _ in range(2_000):
        paused = sorted(world.ledger.paused) if stepper.engine.refusal() is None else []
        for scope, name in paused:  # also what was still in the inbox
            stepper.engine.post(control.Resume(scope, name, "the end"))
        planning.end_all(world)
        _signal_all(world)
        world.act()
        stepper.read_inbox()
        world.act()
        world.keep_house(lambda house: house.serve_asked())
        if not len(world.inbox) and not stepper.state.runs:
            break
        next_us = world.next_us()
        world.time.advance(SECOND_US if next_us is None else max(0, next_us - world.time.elapsed_us))
    else:
        world.problem("it does not come to an end")
    world.witness.account()
    if not stepper.drain(1.0, world.pass_plainly):
        world.problem("the last engine does not close")
    world.drop()
    _verify(world)


def _signal_all(world: World) -> None:
    """Whoever waits for a signal is sent one."""
    stepper = world.stepper
    if stepper is None or stepper.engine.refusal() is not None:
        return
    for address in sorted(stepper.state.places.awaiting.waiting, key=str):
        id = world.ids.next(world.time.wall_us).hex()
        stepper.engine.post(SendSignal(id, *address))


def _verify(world: World) -> None:
    reader = world.disk.memory.reader()
    report = verify(reader, name="the simulated store")
    for problem in report.problems:
        world.problem(f"verify: {problem.kind} {problem.place}: {problem.message}")
    world.ledger.waits.account(reader.steps_of)
    for run_id, run in world.ledger.runs.items():
        row = reader.runs_by_id([run_id]).get(run_id)
        if (row is None) != run.is_pruned:
            world.problem(f"run {run_id.hex()} is in the tables, or is not, otherwise than it should be")
        elif row is not None and (STATES[row[4]].value, row[15], row[16], row[17]) != (
            run.state, run.starts, run.failures, run.losses,
        ):  # fmt: skip
            world.problem(f"run {run_id.hex()} is told by the tables otherwise than by the log")
