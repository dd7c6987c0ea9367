"""The queue of these tests and its handlers: imported by the programs as ``jobs``, by the tests with its full name."""

import json
import os
import sys
from typing import Any

from actionqueue import ActionQueue


def say(line: str, *value: object) -> None:
    """One line that a test waits for, with a value as JSON; in one write, since several threads speak."""
    os.write(1, (" ".join([line, *map(json.dumps, value)]) + "\n").encode())


def arguments() -> tuple[str, dict[str, Any]]:
    """A program's arguments: the store, and options of the queue as JSON."""
    return sys.argv[1], json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}


async def echo(value: int) -> int:
    """Give it back."""
    return value


def whoami() -> int:
    """The process that runs it."""
    return os.getpid()


def make_queue(store: str | os.PathLike[str], **options: Any) -> ActionQueue:
    """A queue on ``store`` with every handler of these tests."""
    queue = ActionQueue(store, **options)
    for handler in (echo, whoami):
        queue.task(handler)
    return queue
