"""Submit, and mark when: ``marking.py STORE MARKS ROLE SYNC COUNT``, to be run under strace.

ROLE is "engine", or "client" of no engine. SYNC is "safe", or "unsafe": then no connection syncs, and the test must
notice. Each mark is one write to the file MARKS: "begin N" and "end N" around a submission, "runs N" when its handler
does. A submission that is refused is made again under its key, as the error says.
"""

import functools
import os
import sqlite3
import sys
import threading
from typing import Any

from jobs import say

from actionqueue import ActionQueue, ActionQueueError, Retry, fixed

store, marks_path, role, sync, count = sys.argv[1:6]
marks = os.open(marks_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
queue = ActionQueue(store, role="client" if role == "client" else "auto", decide_wait=0)


def mark(what: str, number: int) -> None:
    os.write(marks, f"{what} {number}\n".encode())


class Unsafe(sqlite3.Connection):
    """A connection from which the setting is taken away that the promises rest on."""

    def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        """No connection ever syncs."""
        if statement.replace(" ", "").startswith("PRAGMAsynchronous="):
            statement = "PRAGMA synchronous = OFF"
        return super().execute(statement, *values)


@queue.task(retry=Retry(3, fixed("10ms")))
async def handler(number: int) -> int:
    """Its start must be on the disk before it runs."""
    mark("runs", number)
    return number


def submit(number: int) -> bool:
    """One submission between two marks; whether it was acknowledged."""
    mark("begin", number)
    try:
        handler.options(idempotency_key=f"key-{number}").submit(number)
    except ActionQueueError as error:
        say("refused", {"number": number, "code": error.code})
        return False
    mark("end", number)
    return True


def submit_all() -> None:
    for number in range(int(count)):
        while not submit(number):
            threading.Event().wait(0.05)


def all_completed() -> bool:
    try:
        return queue.stats().runs["completed"] > int(count)
    except ActionQueueError:  # the store is changing hands
        return False


if sync == "unsafe":
    sqlite3.connect = functools.partial(sqlite3.connect, factory=Unsafe)
if role == "client":
    submit_all()
else:
    with queue.running():
        handler.submit(-1).result(timeout=30)
        submit_all()
        while not all_completed():
            threading.Event().wait(0.02)
queue.close()
say("done")
