"""What callers do in the simulated world: they send commands, wait, and look; what they are told goes to the witness."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any

from actionqueue.core.attempts import Finish
from actionqueue.core.errors import ActionQueueError
from actionqueue.core.machine import Command
from actionqueue.engine.tickets import CallTicket
from actionqueue.store.codec import encode_command
from actionqueue.testing.witness import Asked

if TYPE_CHECKING:
    from actionqueue.testing.world import World


def send(world: World, command: Command, chance: Random, *, direct_only: bool = False) -> None:
    """A command goes to the engine, directly or through the inbox; now and then to one that was taken over."""
    if not direct_only and (world.stepper is None or chance.random() < 0.25):
        put(world, command)
        return
    stepper = world.old if world.old is not None and chance.random() < 0.3 else world.stepper
    if stepper is None:
        return
    world.count(command)
    try:
        stepper.engine.post(command, Asked(world.witness, command))
    except ActionQueueError as error:
        world.witness.told(command, error)


def put(world: World, command: Command) -> None:
    """A command goes into the inbox."""
    world.count(command)
    put_body(world, encode_command(command), command)


def put_body(world: World, body: bytes, command: Any) -> None:
    """The same, of what may be no command."""
    command_id = world.ids.next(world.time.wall_us)
    world.witness.put(command_id, command)
    world.inbox.put(command_id, world.time.wall_us, body)
    world.note("sent through the inbox")


def refuses(world: World, call: Callable[[], Any], kind: type[ActionQueueError] = ActionQueueError) -> None:
    """Something that must be refused before any engine hears of it."""
    try:
        call()
    except kind as error:
        world.refusal(error.code)
    else:
        world.problem(f"{kind.__name__} was not raised")


def report(world: World, finish: Finish) -> None:
    """An executor says something that it should not."""
    if world.stepper is not None:
        world.count(finish)
        world.coverage["fault late_report"] += 1
        world.stepper.engine.report([finish])


def await_task(world: World, task_id: bytes) -> None:
    """Someone waits for a result."""
    if world.stepper is not None:
        world.stepper.engine.await_task(task_id, CallTicket(lambda ended: world.witness.heard_end(task_id, ended)))


def read(world: World, run_id: bytes) -> None:
    """Someone looks at a run that was acknowledged."""
    if world.stepper is None:
        return

    record = world.ledger.runs[run_id]

    def answer(found: Any) -> None:
        if isinstance(found, ActionQueueError):
            world.refusal(found.code)
        elif run_id not in found and not record.is_pruned:
            world.problem(f"run {run_id.hex()} was acknowledged, and is not found")

    try:
        world.stepper.engine.read(lambda reader: reader.runs_by_id([run_id]), CallTicket(answer))
    except ActionQueueError as error:
        world.refusal(error.code)
