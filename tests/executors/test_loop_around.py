"""The async executor and its surroundings: the host application's loop, and resources."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from actionqueue.core.state import Outcome
from actionqueue.executors.loop import AsyncExecutor
from tests.executors import handlers
from tests.executors.rig import PATIENCE_S, Rig, error_of, rig_of

pytestmark = pytest.mark.usefixtures("own_loop")

# --- on the host's loop -----------------------------------------------------------------------------------------------


def test_on_the_host_s_loop_only_its_own_tasks_are_cancelled() -> None:
    async def host() -> tuple[Rig, bytes, Any]:
        executor = AsyncExecutor(loop=asyncio.get_running_loop())
        rig = Rig(executor)
        mine = asyncio.create_task(asyncio.sleep(600))
        assignment = rig.assign(handlers.waits_for_ever)
        executor.start([assignment])
        await asyncio.to_thread(rig.wait_until, lambda: assignment.attempt_id in rig.progress)
        value = await asyncio.to_thread(rig.value, handlers.async_echo, 5)

        await asyncio.to_thread(executor.close, PATIENCE_S)

        assert not mine.cancelling()
        mine.cancel()
        return rig, assignment.attempt_id, value

    rig, attempt_id, value = asyncio.run(host())

    assert value == [5, True]
    assert rig.ends[attempt_id].outcome is Outcome.INTERRUPTED


def test_close_on_the_loop_itself_does_not_wait_for_itself() -> None:
    async def host() -> Rig:
        executor = AsyncExecutor(loop=asyncio.get_running_loop())
        rig = Rig(executor)
        executor.start([rig.assign(handlers.waits_for_ever)])
        await asyncio.to_thread(rig.wait_until, lambda: bool(rig.progress))
        executor.close(60)
        await asyncio.to_thread(rig.wait_until, lambda: bool(rig.ends))
        return rig

    rig = asyncio.run(asyncio.wait_for(host(), PATIENCE_S))

    assert [end.outcome for end in rig.ends.values()] == [Outcome.INTERRUPTED]


def test_a_host_s_loop_that_was_closed_refuses_and_does_not_raise() -> None:
    async def host() -> Rig:
        return Rig(AsyncExecutor(loop=asyncio.get_running_loop()))

    rig = asyncio.run(host())

    end = rig.run(handlers.async_echo, 1)

    assert (end.outcome, end.delay_us) == (Outcome.INTERRUPTED, 1_000_000)
    rig.executor.close(1)


# --- resources --------------------------------------------------------------------------------------------------------


def test_resources_are_entered_once_and_left_at_close_by_the_same_task() -> None:
    story: list[str] = []

    @asynccontextmanager
    async def resources() -> AsyncIterator[str]:
        async with asyncio.timeout(600):  # refuses to be left by another task
            story.append("entered")
            yield "pool"
            story.append("left")

    with rig_of(AsyncExecutor(resources=resources)) as rig:
        assert story == []

        values = [rig.value(handlers.uses_resources), rig.value(handlers.uses_resources)]

        assert values == ["pool", "pool"]
        assert story == ["entered"]
        rig.executor.close(PATIENCE_S)
        assert story == ["entered", "left"]


def test_resources_that_cannot_be_entered_fail_attempts_and_are_tried_again() -> None:
    tries: list[int] = []

    @asynccontextmanager
    async def resources() -> AsyncIterator[str]:
        tries.append(1)
        await asyncio.sleep(0)
        if len(tries) == 1:
            raise ConnectionError("the database is down")
        yield "pool"

    with rig_of(AsyncExecutor(resources=resources)) as rig:
        end = rig.run(handlers.uses_resources)

        assert error_of(end) == (Outcome.FAILED, "ConnectionError", False)
        assert end.reason == "no_resources"
        assert end.error is not None
        assert "the database is down" in end.error.message
        assert rig.value(handlers.uses_resources) == "pool"


def test_an_attempt_stopped_while_the_resources_are_entered_never_runs() -> None:
    entering = threading.Event()

    @asynccontextmanager
    async def resources() -> AsyncIterator[str]:
        entering.set()
        await asyncio.get_running_loop().create_future()
        yield "never"

    with rig_of(AsyncExecutor(resources=resources)) as rig:
        attempt_id = rig.start(handlers.uses_resources)
        assert entering.wait(PATIENCE_S)

        rig.executor.stop(attempt_id, "timed_out", force=False)

        assert rig.end_of(attempt_id).outcome is Outcome.TIMED_OUT
        rig.executor.close(PATIENCE_S)
