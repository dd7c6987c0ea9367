"""Write the fixture store of the present release: one of everything that a store can hold.

Each release keeps its fixture under ``tests/fixtures``, and every later release must open it (``tests/store/
test_fixtures.py``). Run it once a release: ``python scripts/make_fixture_store.py``.
"""

from __future__ import annotations

import socket
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from actionqueue import (
    CONTEXT,
    ActionQueue,
    Context,
    Cron,
    Limit,
    Rate,
    Repeat,
    Retry,
    RunFailed,
    TerminalFailure,
    __version__,
    fixed,
)

F = TypeVar("F", bound=Callable[..., object])
TARGET = Path(__file__).resolve().parent.parent / "tests" / "fixtures"


def main() -> int:
    """Run a small story on a fresh store and keep a backup of it."""
    target = TARGET / f"store-{__version__}.db"
    if target.exists():
        print(f"{target} exists; a released fixture is never written again")
        return 1
    TARGET.mkdir(exist_ok=True)
    socket.gethostname = lambda: "fixture"
    with tempfile.TemporaryDirectory() as folder:
        tell(ActionQueue(Path(folder) / "jobs.db", queues={"slow": 1}), target)
    print(f"wrote {target} ({target.stat().st_size} bytes)")
    return 0


def neutral(function: F) -> F:
    """The same function, whose tracebacks name no path of the machine that made the fixture."""
    function.__code__ = function.__code__.replace(co_filename="jobs.py")
    return function


def tell(queue: ActionQueue, target: Path) -> None:
    """The story: completed with and without a result, failed after retries, canceled, scheduled, paused, retried."""

    @queue.task(name="add")
    @neutral
    def add(a: int, b: int) -> int:
        return a + b

    @queue.task(name="quiet")
    @neutral
    async def quiet() -> None:
        return None

    @queue.task(name="flaky", retry=Retry(max_attempts=3, backoff=fixed("1ms")))
    @neutral
    def flaky(*, ctx: Context = CONTEXT) -> str:
        ctx.progress(ctx.attempt_number, 3, "trying")
        if ctx.attempt_number < 3:
            raise ValueError(f"attempt {ctx.attempt_number}")
        return "third time"

    @queue.task(name="broken")
    @neutral
    def broken() -> None:
        raise TerminalFailure("always")

    with queue.running():
        add.options(tags=["sums"], idempotency_key="one-and-two", metadata={"by": "fixture"}).submit(1, 2).result(
            timeout=30
        )
        quiet.submit().result(timeout=30)
        flaky.submit().result(timeout=30)
        failed = broken.submit()
        try:
            failed.result(timeout=30)
        except RunFailed:
            queue.retry_run(failed.run_id)
        add.options(delay="9000d").submit(3, 4)
        add.options(delay="9000d").submit(5, 6).cancel()
        queue.pause(queue="slow")
        add.options(queue="slow", priority=7).submit(7, 8)
        add.options(schedule=Repeat(2, every="10ms")).submit(11, 12)
        while queue.stats().runs["scheduled"] > 1:
            time.sleep(0.01)
        queue.run_until_idle(timeout=30)
        _schedules_and_limits(queue)
        queue.backup(target)


def _schedules_and_limits(queue: ActionQueue) -> None:
    """A named schedule far ahead, one that is over, a run that holds its key while it backs off, a rate in use."""
    add = queue.handlers["add"]
    queue.schedule("yearly", add.bind(9, 10), Cron("0 0 1 1 *", starts_at=datetime(2050, 1, 1, tzinfo=UTC)))

    @queue.task(
        name="held",
        limits=[Limit("account:{account}", capacity=2)],
        rate=[Rate("mail", count=1, per="100d")],
        hold=["retry_wait"],
        retry=Retry(max_attempts=2, backoff=fixed("300d")),
    )
    @neutral
    def held(account: int) -> None:
        raise ValueError("not yet")

    run_id = held.submit(7).run_id
    deadline = time.monotonic() + 30
    while queue.get_run(run_id).state != "retry_wait" and time.monotonic() < deadline:
        time.sleep(0.01)
    held.submit(8)


if __name__ == "__main__":
    sys.exit(main())
