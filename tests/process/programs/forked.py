"""What a forked child may do with its parent's queues: ``forked.py STORE``. Prints what it found, line by line."""

import os

from jobs import arguments, make_queue, say

from actionqueue import ActionQueueError, StoreHeld, UsedAfterFork

path, _ = arguments()
open_queue = make_queue(path)
unopened = make_queue(path)
other = make_queue(path + ".other")


def in_child() -> None:
    """All of it happens in the child, while the parent goes on as the engine."""
    try:
        open_queue.handlers["echo"].submit(1)
    except UsedAfterFork as error:
        say("submit", error.code)
    try:
        open_queue.stats()
    except UsedAfterFork as error:
        say("read", error.code)
    try:
        unopened.run_forever()
    except StoreHeld as error:
        say("engine", {"pid": error.facts["pid"], "parent": os.getppid(), "host": error.facts["host"]})
    job = unopened.handlers["echo"].submit(7)
    say("client", job.result(timeout=30))
    unopened.close()
    with other.running():
        say("other", other.handlers["echo"].submit(8).result(timeout=30))
    open_queue.close()
    say("reopened", open_queue.handlers["echo"].submit(9).result(timeout=30))
    open_queue.close()


with open_queue.running():
    open_queue.handlers["echo"].submit(0).result(timeout=30)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            in_child()
            status = 0
        except ActionQueueError as error:
            say("error", repr(error))
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    say("child", os.waitstatus_to_exitcode(status))
    say("parent", open_queue.handlers["echo"].submit(10).result(timeout=30))
say("done")
