"""Batches: submissions that belong together, under one id.

A batch is decided whole with the tasks in it, and each of its runs carries its mark (``batch_mark``), by which it is
found, counted, canceled and tried again. Of the batch itself an entry remains: its name, how many tasks it had, and the
task that is called when it is complete, which depends on all of them. It goes when the last of its runs is pruned. Nothing
of it is live: a state does not know its batches.

Knows: what is recorded of a batch. Must not know: the tasks in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct, msgpack

from actionqueue.core.ids import NIL
from actionqueue.core.spec import BatchHead, text_problem

if TYPE_CHECKING:
    from actionqueue.core.state import State

BATCH = "batch"
"""The kind of the entries that batches are; their key is the id in hex."""


BATCH_MARK = "\x01batch:"
"""How the mark begins by which the runs of a batch are found."""


class BatchBody(Struct, array_like=True):
    """A batch as the body of its entry."""

    name: str
    at: int
    tasks: int
    callback: bytes | None
    by: str


class BatchOpened(Struct, frozen=True, array_like=True, tag=41):
    """The submissions that follow in this commit belong together."""

    at: int
    batch_id: bytes
    name: str
    tasks: int
    callback: bytes | None = None
    by: str = ""


def batch_mark(batch_id: bytes) -> str:
    """The mark of the runs of a batch."""
    return f"{BATCH_MARK}{batch_id.hex()}"


def batch_problems(head: BatchHead) -> dict[str, str]:
    """What is wrong with a batch, by field."""
    problems: dict[str, str] = {}
    if len(head.id) != len(NIL) or head.id == NIL or (head.callback is not None and len(head.callback) != len(NIL)):
        problems["batch"] = "not an id of 16 bytes, or nil"
    named = text_problem(head.name) if head.name else None
    if named is not None:
        problems["name"] = named
    return problems


def opened(head: BatchHead, tasks: int, now: int, by: str) -> BatchOpened:
    """The event that comes before those of the tasks."""
    return BatchOpened(now, head.id, head.name, tasks, head.callback, by)


def apply_opened(state: State, event: BatchOpened) -> None:
    """Its entry is written."""
    body = BatchBody(event.name, event.at, event.tasks, event.callback, event.by)
    state.dirty_entries[BATCH, event.batch_id.hex()] = msgpack.encode(body)
