"""Is a task safe to retry? Its process is killed at every place where that makes a difference, and it is tried again."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from actionqueue.testing.simulation import Simulation

if TYPE_CHECKING:
    from actionqueue.app import ActionQueue
    from actionqueue.task import Call

WAIT = "1h"
"""How long a killed task is given, in virtual time, for each look at whether it has ended."""
LOOKS_MAX = 1_000
PLACES_MAX = 10_000


def assert_safe_to_retry(
    queue: ActionQueue,
    call: Call[Any],
    *,
    reset: Callable[[], object] | None = None,
    check: Callable[[], object] | None = None,
    seed: int = 0,
) -> list[str]:
    """Run ``call`` once for each place where its process can die, kill it there, and let it be tried again.

    Places are each await of an async handler, each call of its context, and its return, before that is recorded.
    ``reset`` puts the outside world back before each round; ``check`` looks at it after the task has ended and raises
    where it is not as it should be. A task that does not complete is not safe either. Returns the places; raises
    ``AssertionError`` naming the place and what was wrong.
    """
    killed: list[str] = []
    for number in range(PLACES_MAX):
        if reset is not None:
            reset()
        with Simulation(queue, seed=seed, kill_at=number) as sim:
            state = _run(sim, call)
            place = sim.places.killed_at
        said = "without being killed" if place is None else f"after it was killed at {place}"
        assert state == "completed", f"{call} is {state} {said}"
        _check(check, f"{call}: the world is not as it should be {said}")
        if place is None:
            return killed
        killed.append(place)
    raise AssertionError(f"{call} passes more than {PLACES_MAX} places")


def _run(sim: Simulation, call: Call[Any]) -> str:
    job = sim.queue.submit_many([call])[0]
    sim.run_until_idle_or_dead()
    for _ in range(LOOKS_MAX):
        if sim.stepper is None:
            sim.restart()
        state = str(job.state())
        if state in ("completed", "failed", "canceled"):
            return state
        sim.advance(WAIT)
    return str(job.state())


def _check(check: Callable[[], object] | None, said: str) -> None:
    if check is None:
        return
    try:
        check()
    except AssertionError as error:
        raise AssertionError(f"{said}: {error}") from error
