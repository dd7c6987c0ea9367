"""Submit on a disk that fails: ``failing.py STORE ROLE COUNT``, to be run on the shim.

ROLE is "engine", or "client" of no engine. Tells in the file STORE.marks, in order with the writes: "begin N" before a
submission, then "task ID" when it was acknowledged or "refused CODE" when not; "closed" at the end. What is refused is
not tried again: the next one is, after a moment. The store is open when the file STORE.armed is made. An engine that was
fenced is followed by another in the same process, whose result of the last task is waited for.

Checkpoints are made often, so that they are among what fails.
"""

from __future__ import annotations

import sys
import threading
from contextlib import ExitStack, suppress
from pathlib import Path

from actionqueue import ActionQueue, ActionQueueError
from actionqueue.store import sqlite_upkeep
from tests.faults.workload import Marks

WAL_BYTES_SOFT = 128 << 10
PAUSE_S = 0.03
"""After a refusal: the engine tries a full disk again after 50 ms."""


async def work(number: int, filler: str) -> int:
    """Give it back."""
    return number


def main(store: Path, role: str, count: int) -> None:
    """All submissions, one after the other."""
    sqlite_upkeep.WAL_BYTES_SOFT = WAL_BYTES_SOFT
    marks = Marks(store)
    queue = ActionQueue(store, role="client" if role == "client" else "auto", decide_wait=0)
    task, job = queue.task(work), None
    with ExitStack() as stack:
        try:
            if role == "engine":
                stack.enter_context(queue.running())
        except ActionQueueError as error:
            marks.tell(f"refused {error.code}")
            return
        Path(f"{store}.armed").touch()
        for number in range(count):
            marks.tell(f"begin {number}")
            try:
                job = task.submit(number, "x" * (number % 7) * 500)
            except ActionQueueError as error:
                marks.tell(f"refused {error.code}")
                threading.Event().wait(PAUSE_S)
            else:
                marks.tell(f"task {job.id.bytes.hex()}")
        if role == "engine" and job is not None:
            with suppress(ActionQueueError):
                job.result(timeout=30)
    queue.close()
    marks.tell("closed")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
