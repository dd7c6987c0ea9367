"""Submit to somebody else's engine, whether it lives or not: ``submitting.py STORE ACKNOWLEDGED SEED``.

Reads numbers and submits so many tasks each time, in all the ways there are. What was acknowledged is in a file,
synced, before the next is submitted: "task TASK RUN" or "key KEY". Prints "submitted" each time.
"""

import os
import random
import sys
from typing import Any

from jobs import say

from actionqueue import ActionQueue, Retry, fixed

store, acknowledged_path, seed = sys.argv[1:4]
draw = random.Random(seed)
queue = ActionQueue(store, role="client", decide_wait="20ms")
acknowledged = os.open(acknowledged_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def on_loop(pause: float, failures: int) -> str:
    """The engine's is async; here only its name and its arguments matter."""
    raise NotImplementedError


def in_thread(pause: float, failures: int) -> str:
    """As there."""
    raise NotImplementedError


def in_process(pause: float, failures: int) -> str:
    """As there."""
    raise NotImplementedError


TASKS: list[Any] = [queue.task(retry=Retry(3, fixed("20ms")))(each) for each in (on_loop, in_thread, in_process)]
WEIGHTS = (70, 22, 8)
FAILURES = (0, 1, 2, 3)
FAILURE_WEIGHTS = (80, 10, 6, 4)


def acknowledge(line: str) -> None:
    """It was acknowledged: remember that, for certain."""
    os.write(acknowledged, f"{line}\n".encode())
    os.fdatasync(acknowledged)


def a_task() -> Any:
    return draw.choices(TASKS, WEIGHTS)[0]


def arguments() -> tuple[float, int]:
    return draw.uniform(0.01, 0.12), draw.choices(FAILURES, FAILURE_WEIGHTS)[0]


def submit_some(first: int, count: int) -> None:
    """Mostly one by one; some in one commit; some twice under one key."""
    done = 0
    while done < count:
        way = draw.random()
        if way < 0.1:
            jobs = a_task().submit_many([arguments() for _ in range(5)])
            for job in jobs:
                acknowledge(f"task {job.id} {job.run_id}")
            done += len(jobs)
        elif way < 0.2:
            key = f"key-{seed}-{first + done}"
            task, given = a_task().options(idempotency_key=key), arguments()
            for _ in range(2):
                task.submit(*given)
                acknowledge(f"key {key}")
            done += 1
        else:
            job = a_task().submit(*arguments())
            acknowledge(f"task {job.id} {job.run_id}")
            done += 1


total = 0
say("ready")
for line in sys.stdin:
    submit_some(total, int(line))
    total += int(line)
    say("submitted", total)
queue.close()
