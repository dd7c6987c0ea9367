"""What one turn of the writer leaves to be done, and in which order: first the commit, then its effects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import Struct, field

from actionqueue.core.attempts import AttemptFinished
from actionqueue.core.errors import ActionQueueError
from actionqueue.core.machine import Command, Event
from actionqueue.core.rows import Projection, Row
from actionqueue.core.spec import Depends
from actionqueue.core.state import ErrorInfo, Output
from actionqueue.engine.tickets import Ticket
from actionqueue.executors.port import Assignment
from actionqueue.store.port import Reader


class Post(Struct):
    """A command on its way to the writer.

    ``as_of`` is the sequence its looked-up facts are exact as of (None: none were looked up). ``command_id`` is set on
    what came through the inbox: its reply is recorded in the commit. ``failure`` is why the look-up failed, if it did;
    ``failures`` counts those after which it was made again although the store seemed damaged.
    """

    command: Command
    ticket: Ticket | None = None
    as_of: int | None = None
    command_id: bytes | None = None
    failure: ActionQueueError | None = None
    failures: int = 0


class Ended(Struct, gc=False):
    """How a task's newest run ended, for whoever waits for its result. ``body`` is the encoded result."""

    run_id: bytes
    state: int
    reason: str
    body: bytes | None
    error: ErrorInfo | None


class Joining(Struct):
    """An attempt that starts with the results of other tasks in its arguments.

    ``lately`` are those that ended so lately that their rows may not be written yet: the run that completed, its result.
    """

    assignment: Assignment
    depends: Depends
    lately: dict[bytes, tuple[bytes, Output | None]]


class Turn(Struct):
    """What the writer decided since the last hand-over: one transaction, and what follows once it is durable."""

    events: list[Event] = field(default_factory=list)
    blobs: list[tuple[bytes, bytes]] = field(default_factory=list)
    replies: list[tuple[bytes, Any]] = field(default_factory=list)
    """(inbox command id, reply or refusal)"""
    settled: list[tuple[Ticket, Any]] = field(default_factory=list)
    starts: dict[str, list[Assignment]] = field(default_factory=dict)
    """By executor: attempts to hand over, as they were when they were decided."""
    unread: list[Assignment] = field(default_factory=list)
    """Those of them whose arguments have left memory, and are read first."""
    unrecorded: list[Assignment] = field(default_factory=list)
    """Those of them whose chains have records, which are read first."""
    steps: list[Row] = field(default_factory=list)
    """Rows of records, written with the events that tell of them."""
    dropped_steps: list[bytes] = field(default_factory=list)
    """Chains whose records go."""
    joining: list[Joining] = field(default_factory=list)
    """Those of them that take the results of other tasks, which are read then."""
    stops: list[tuple[str, bytes, str, bool]] = field(default_factory=list)
    """(executor, attempt id, reason, by force)"""
    abandoned: list[tuple[str, bytes]] = field(default_factory=list)
    ended: list[tuple[bytes, Ended]] = field(default_factory=list)
    """(task id, how its newest run ended)"""
    lookups: list[Post] = field(default_factory=list)
    """Commands whose facts are looked up once this is durable."""
    awaiting: list[tuple[bytes, Ticket]] = field(default_factory=list)
    """Tasks that had ended before someone asked for their result."""
    unfinished: list[AttemptFinished] = field(default_factory=list)
    """Attempts that ended without completing, for the log."""
    reads: list[tuple[Callable[[Reader], Any], Ticket]] = field(default_factory=list)
    """Questions to a reader, asked once this is durable."""
    store_jobs: list[tuple[Callable[[], object], Ticket]] = field(default_factory=list)
    """Work on the store's writing side, done after the commit on its thread."""
    pruned_tasks: list[bytes] = field(default_factory=list)
    projection: Projection | None = None

    def is_empty(self) -> bool:
        """Whether there is nothing to do at all."""
        return not (
            self.events
            or self.settled
            or self.replies
            or self.projection
            or self.lookups
            or self.awaiting
            or self.reads
            or self.store_jobs
            or self.stops
            or self.abandoned
        )

    def writes(self) -> bool:
        """Whether it has anything to commit."""
        return bool(self.events or self.replies or self.projection)
