"""An engine with handlers that outlast a drain: ``draining.py STORE OPTIONS [HANDLER …]`` submits those and runs.

Each says "running NAME ATTEMPT" when it does. Prints "engine" when it is one, "stopped" with the signal handlers it
found again, at the end.
"""

import asyncio
import os
import signal
import sys
import threading
from typing import Any

from jobs import arguments, say

from actionqueue import CONTEXT, ActionQueue, Context

path, options = arguments()
queue = ActionQueue(path, **options)
STUCK = threading.Event()


def begun(ctx: Context) -> None:
    """Say that this attempt runs."""
    name = ctx._control.assignment.runnable.name
    say(f"running {name} {ctx.attempt_number}", os.getpid())


@queue.task
async def sleeper(*, ctx: Context = CONTEXT) -> str:
    """Ends when it is cancelled; at its second attempt at once."""
    begun(ctx)
    if ctx.attempt_number == 1:
        await asyncio.get_running_loop().create_future()
    return "slept"


@queue.task
async def stubborn(*, ctx: Context = CONTEXT) -> str:
    """Swallows its cancellation."""
    begun(ctx)
    while ctx.attempt_number == 1:
        try:
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            continue
    return "gave in"


@queue.task
def stuck(*, ctx: Context = CONTEXT) -> str:
    """A thread that nothing ends."""
    begun(ctx)
    if ctx.attempt_number == 1:
        STUCK.wait()
    return "came loose"


@queue.task
def polite(*, ctx: Context = CONTEXT) -> str:
    """A thread that looks at its token."""
    begun(ctx)
    while ctx.attempt_number == 1:
        ctx.check_canceled()
        threading.Event().wait(0.01)
    return "stopped"


@queue.task
def short(*, ctx: Context = CONTEXT) -> str:
    """Ends within any drain, but not before it was asked to: when it reads a line."""
    begun(ctx)
    sys.stdin.readline()
    return "ended"


@queue.task(executor="process")
def spinner(*, ctx: Context = CONTEXT) -> str:
    """A worker process in a call of C code that holds the interpreter."""
    begun(ctx)
    if ctx.attempt_number == 1:
        sum(range(10**15))
    return "killed"


def main(names: list[str]) -> None:
    """Submit what was asked for and be the engine."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    for name in names:
        handler: Any = queue.handlers[name]
        handler.submit()
    if names:
        queue.close()
    threading.Thread(target=announce, daemon=True).start()
    queue.run_forever()
    after = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    say("stopped", before == after)


def announce() -> None:
    """Say when the engine answers."""
    while True:
        session = queue.session
        if session is not None and session.engine is not None:
            queue.stats()
            say("engine")
            return
        threading.Event().wait(0.005)


if __name__ == "__main__":
    main(sys.argv[3:])
