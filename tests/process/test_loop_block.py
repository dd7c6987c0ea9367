"""A handler that blocks an event loop holds up that loop, and nothing else (issue line 7)."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from actionqueue import ActionQueue
from tests.process.support import PATIENCE_S, eventually

ACKNOWLEDGED_S_MAX = 0.5
"""Far above a commit, far below the block: what waited for the loop would take seconds."""
BLOCKED_FOR_S = 2.0


@pytest.fixture
def let_go() -> Iterator[threading.Event]:
    """Ends the blocking handlers; at the latest after the test."""
    event = threading.Event()
    yield event
    event.set()


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_handler_that_blocks_the_handlers_loop_delays_no_acknowledgement_and_no_timer(
    store: Path, let_go: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    """Submissions are committed, due runs start in time, and after a second the log says who it is."""
    queue = ActionQueue(store)
    blocking = threading.Event()

    @queue.task(name="blocker")
    async def blocker() -> None:
        blocking.set()
        let_go.wait(PATIENCE_S)

    @queue.task(name="stamp")
    def stamp() -> float:
        return time.monotonic()

    @queue.task(name="waits")
    async def waits() -> str:
        return "after it"

    with queue.running():
        job = blocker.submit()
        assert blocking.wait(PATIENCE_S)
        held_up = waits.submit()
        began = time.monotonic()
        slowest = 0.0
        while time.monotonic() - began < BLOCKED_FOR_S:
            sent = time.monotonic()
            later = stamp.options(delay="100ms").submit()
            slowest = max(slowest, time.monotonic() - sent)
            started = later.result(timeout=PATIENCE_S)
            assert 0.1 <= started - sent < 0.1 + ACKNOWLEDGED_S_MAX
        assert slowest < ACKNOWLEDGED_S_MAX
        assert held_up.state() == "running"
        eventually(
            lambda: any("'blocker' has blocked" in each for each in warnings_of(caplog)), "a warning that names it"
        )
        let_go.set()
        assert held_up.result(timeout=PATIENCE_S) == "after it"
        job.result(timeout=PATIENCE_S)


def test_on_a_host_loop_commits_and_timers_go_on_and_the_handler_is_named(
    store: Path, let_go: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    """Other threads still submit, plain handlers still start when due, while the host's own loop stands still."""
    queue = ActionQueue(store)
    blocking = threading.Event()
    times: list[float] = []

    @queue.task(name="blocker")
    async def blocker() -> None:
        blocking.set()
        let_go.wait(PATIENCE_S)

    @queue.task(name="stamp")
    def stamp() -> float:
        return time.monotonic()

    def beside_the_loop() -> None:
        """In a thread of its own: the loop's is taken."""
        try:
            assert blocking.wait(PATIENCE_S)
            for _ in range(5):
                sent = time.monotonic()
                started = stamp.options(delay="100ms").submit().result(timeout=PATIENCE_S)
                times.append(started - sent)
            eventually(lambda: any("'blocker' has blocked" in each for each in warnings_of(caplog)), "a warning")
        finally:
            let_go.set()

    async def host() -> None:
        async with queue:
            beside = asyncio.create_task(asyncio.to_thread(beside_the_loop))
            job = await blocker.asubmit()
            await job.aresult(timeout=PATIENCE_S)
            await beside

    asyncio.run(host())
    assert len(times) == 5
    assert max(times) < 0.1 + ACKNOWLEDGED_S_MAX
