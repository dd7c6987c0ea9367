"""An engine to be killed in each state: ``stepping.py STORE``. Prints "engine", and "running NAME ATTEMPT" for each.

``held`` waits for ever at its first attempt and completes at its second; ``failing`` fails at its first, with a backoff
of an hour, and completes at its second; ``broken`` fails for good.
"""

import threading

from jobs import arguments, say

from actionqueue import CONTEXT, ActionQueue, Context, Retry, TerminalFailure, fixed

path, options = arguments()
queue = ActionQueue(path, **options)


@queue.task(retry=Retry(5, fixed("10ms")))
def held(*, ctx: Context = CONTEXT) -> int:
    """Killed with its engine, unless it is a later attempt."""
    say(f"running held {ctx.attempt_number}")
    if ctx.attempt_number == 1:
        threading.Event().wait()
    return ctx.attempt_number


@queue.task(retry=Retry(2, fixed("1h")))
def failing(*, ctx: Context = CONTEXT) -> int:
    """Waits for its second attempt."""
    say(f"running failing {ctx.attempt_number}")
    if ctx.attempt_number == 1:
        raise ValueError("the first time")
    return ctx.attempt_number


@queue.task
def quick(*, ctx: Context = CONTEXT) -> int:
    """Completes at once."""
    say(f"running quick {ctx.attempt_number}")
    return ctx.attempt_number


@queue.task
def broken(*, ctx: Context = CONTEXT) -> int:
    """Fails for good."""
    say(f"running broken {ctx.attempt_number}")
    raise TerminalFailure("for good")


@queue.task(retry=Retry(1))
def once(*, ctx: Context = CONTEXT) -> int:
    """At most once: lost is failed."""
    say(f"running once {ctx.attempt_number}")
    threading.Event().wait()
    return 0


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
    threading.Thread(target=announce, daemon=True).start()
    queue.run_forever()
