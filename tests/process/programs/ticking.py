"""An engine with schedules, made to be killed: ``ticking.py STORE LEDGER``. Prints "engine" when it takes work.

Each run notes its schedule, its run and its nominal time in the ledger, synced, before it ends.
"""

import os
import sys
import threading

from jobs import say

from actionqueue import CONTEXT, ActionQueue, Context, Cron, Repeat, Retry, fixed

store, ledger_path = sys.argv[1:3]
queue = ActionQueue(store, threads=8, drain_timeout="5s", log_retention="3650d")
RETRY = Retry(3, fixed("50ms"))


def note(name: str, ctx: Context) -> None:
    """One line, on the disk when this returns."""
    ledger = os.open(ledger_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(ledger, f"{name} {ctx.run_id} {ctx.scheduled_at.timestamp()}\n".encode())
    os.fdatasync(ledger)
    os.close(ledger)


@queue.task(schedule=Cron("* * * * * *", misfire="catch_up", overlap="allow"), retry=RETRY, max_lost=1000)
def every(*, ctx: Context = CONTEXT) -> None:
    """Each second there is."""
    note("every", ctx)


@queue.task(schedule=Cron("* * * * * *", misfire_grace="1s"), retry=RETRY, max_lost=1000)
def one_at_a_time(*, ctx: Context = CONTEXT) -> None:
    """By the defaults of ``Cron``: what is missed is run once, what overlaps not at all."""
    note("one_at_a_time", ctx)


@queue.task(schedule=Repeat(10_000, every="100ms"), retry=RETRY, max_lost=1000)
def repeated(*, ctx: Context = CONTEXT) -> None:
    """Ten times a second."""
    note("repeated", ctx)


def announce() -> None:
    """Say that the engine is there; it answers."""
    while (session := queue.session) is None or not session.line.is_engine:
        threading.Event().wait(0.002)
    queue.stats()
    say("engine")


if __name__ == "__main__":
    threading.Thread(target=announce, daemon=True).start()
    queue.run_forever()
