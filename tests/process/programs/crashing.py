"""An engine made to be killed: ``crashing.py STORE LEDGER [standby]``. Prints "engine" when it takes work.

A standby prints "standby" while another process is the engine, and takes over when that ends.

Every handler writes to the ledger what it does to the outside world: a line before and a line after, each synced before
it goes on. What the ledger says has happened; what the store says must agree with it.
"""

import asyncio
import os
import sys
import threading
from typing import Any

from jobs import say

from actionqueue import CONTEXT, ActionQueue, Context, Retry, fixed

MAX_ATTEMPTS = 3
MAX_LOST = 5
RETRY = Retry(MAX_ATTEMPTS, fixed("20ms"))

store, ledger_path = sys.argv[1:3]
queue = ActionQueue(store, concurrency=24, threads=8, processes=2, drain_timeout="30s", log_retention="3650d")
_ledger: list[int] = []


def note(what: str, ctx: Context) -> None:
    """One line, on the disk when this returns."""
    if not _ledger:
        _ledger.append(os.open(ledger_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT))
    os.write(_ledger[0], f"{what} {ctx.run_id} {ctx.attempt_id}\n".encode())
    os.fdatasync(_ledger[0])


def fail_if_due(failures: int, ctx: Context) -> None:
    """The first ``failures`` attempts that count fail."""
    if ctx.failure_count < failures:
        raise ValueError(f"failure {ctx.failure_count + 1} of {failures}")


@queue.task(retry=RETRY, max_lost=MAX_LOST)
async def on_loop(pause: float, failures: int, *, ctx: Context = CONTEXT) -> str:
    """An async handler."""
    note("start", ctx)
    await asyncio.sleep(pause)
    fail_if_due(failures, ctx)
    note("end", ctx)
    return str(ctx.attempt_id)


@queue.task(retry=RETRY, max_lost=MAX_LOST)
def in_thread(pause: float, failures: int, *, ctx: Context = CONTEXT) -> str:
    """A plain one."""
    note("start", ctx)
    threading.Event().wait(pause)
    fail_if_due(failures, ctx)
    note("end", ctx)
    return str(ctx.attempt_id)


@queue.task(retry=RETRY, max_lost=MAX_LOST, executor="process")
def in_process(pause: float, failures: int, *, ctx: Context = CONTEXT) -> str:
    """One in a worker process."""
    note("start", ctx)
    threading.Event().wait(pause / 4)  # there are only two of these
    fail_if_due(failures, ctx)
    note("end", ctx)
    return str(ctx.attempt_id)


def announce() -> None:
    """Say that the engine is there; it answers."""
    told = False
    while True:
        session: Any = queue.session
        if session is not None and session.line.is_engine:
            queue.stats()
            say("engine")
            return
        if session is not None and not told:
            say("standby")
            told = True
        threading.Event().wait(0.002)


if __name__ == "__main__":
    threading.Thread(target=announce, daemon=True).start()
    if sys.argv[3:] == ["standby"]:
        with queue.running():
            sys.stdin.read()  # until it is killed, or let go
    else:
        queue.run_forever()
    say("stopped")
