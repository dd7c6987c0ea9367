"""A store as it was at an instant: its log replayed up to then, into a private store that is read like any other.

So every question that can be asked of a store can be asked of its past. It reaches as far back as the log does
(``log_retention``). Where the log's start was pruned, the past holds the tasks that were submitted after it, and pauses
are not known. Payloads and results are not in the log; ``present`` still has them.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from actionqueue.core.errors import BeyondLog, StoreDamaged
from actionqueue.core.instants import instant_us, to_datetime
from actionqueue.core.machine import Machine
from actionqueue.core.rows import project
from actionqueue.core.submission import TaskSubmitted
from actionqueue.store.codec import decode_events
from actionqueue.store.port import Batch, Commit, Reader
from actionqueue.store.sqlite import SQLiteStore
from actionqueue.store.sqlite_reader import SQLiteReader
from actionqueue.store_client import StoreClient
from actionqueue.verify_log import beyond, concerning, forget

EVENTS_PER_PROJECTION = 5_000

OnProgress = Callable[[str, int, int], object]
"""Called with what is being done, how far it is, and of how much."""


class PastStore(StoreClient):
    """The store ``present`` as it was at an instant. Made anew each time, in a temporary folder; ``close`` deletes it.

    Raises ``BeyondLog``, ``InvalidInstant``, and what reading raises. Takes about 10 µs an event.

    >>> from datetime import UTC
    >>> PastStore(StoreClient("none.db"), datetime(2026, 11, 24, 9, tzinfo=UTC))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    actionqueue.core.errors.StoreUnavailable: there is no store at ...
    """

    def __init__(self, present: StoreClient, at: datetime, *, progress: OnProgress | None = None) -> None:
        self.present = present
        self.at = at
        self.begins_at: datetime | None = None
        """Where the log begins, if its start was pruned: what was submitted before it is not in this past."""
        reader = SQLiteReader(present.store)
        self._folder = tempfile.TemporaryDirectory(prefix="actionqueue-past-")
        path = Path(self._folder.name) / "past.db"
        try:
            begins_at_us = rewind(reader, path, instant_us(at, field="at"), progress=progress)
        except BaseException:
            self._folder.cleanup()
            raise
        finally:
            reader.close()
        if begins_at_us is not None:
            self.begins_at = to_datetime(begins_at_us)
        super().__init__(path, decide_wait=0)

    def close(self) -> None:
        """Let go of it, and delete it."""
        super().close()
        self._folder.cleanup()


def rewind(reader: Reader, path: Path, at: int, *, progress: OnProgress | None = None) -> int | None:
    """Make the store ``path`` what ``reader``'s was at the instant ``at``; the log itself is not copied.

    Returns the instant of the log's beginning when its start was pruned, else None. Raises ``BeyondLog``.
    """
    anchor = reader.anchor()
    past = _Past(path, partial=anchor is not None)
    last_seq = reader.projected_seq()
    try:
        for commit in reader.commits(0):
            if past.begins_at is None:
                past.begins_at = commit.at
            if not past.feed(commit, at):
                break
            if progress is not None:
                progress("log", commit.last_seq, last_seq)
        if past.begins_at is None or (anchor is not None and at < past.begins_at):
            raise _beyond(past.begins_at)
        past.flush()
    finally:
        past.close()
    return past.begins_at if anchor is not None else None


def _beyond(begins_at: int | None) -> BeyondLog:
    if begins_at is None:
        return BeyondLog("nothing was ever logged in this store, so it has no past", begins_at=None)
    begins = to_datetime(begins_at)
    return BeyondLog(
        f"the log begins at {begins.isoformat()}; what was before it was pruned (log_retention says how long it is kept)",
        begins_at=begins.isoformat(),
    )


class _Past:
    """The private store while it is being made."""

    def __init__(self, path: Path, *, partial: bool) -> None:
        self.begins_at: int | None = None
        self._machine = Machine()
        self._partial = partial
        self._submitted: set[bytes] = set()
        """With a pruned log: the tasks that are in this past."""
        self._since_flush = 0
        self._store = SQLiteStore(path)
        self._epoch = self._store.open(pid=os.getpid(), host=socket.gethostname()).epoch

    def feed(self, commit: Commit, at: int) -> bool:
        """Apply what happened up to ``at``; False when there is nothing more to come."""
        state = self._machine.state
        if commit.first_seq > state.last_seq + 1:
            state.last_seq = commit.first_seq - 1
        for event in decode_events(commit.events, commit.version):
            if event.at > at:
                return False
            self._apply(event, commit)
        self._since_flush += commit.last_seq - commit.first_seq + 1
        if self._since_flush >= EVENTS_PER_PROJECTION:
            self.flush()
        return True

    def _apply(self, event: Any, commit: Commit) -> None:
        state = self._machine.state
        for task_id in beyond(event, state, self._submitted.__contains__) if self._partial else ():
            forget(state, task_id)
            self._submitted.discard(task_id)
        told = concerning(event, state, self._submitted.__contains__) if self._partial else event
        if told is None:
            state.last_seq += 1
            return
        try:
            self._machine.apply(told)
        except Exception as error:
            raise StoreDamaged(
                f"the log tells what cannot be, in the commit that ends at sequence {commit.last_seq}: "
                f"{type(error).__name__}: {error}. Run `actionqueue verify` for the extent.",
                place=f"commits {commit.last_seq}",
            ) from error
        if self._partial and type(told) is TaskSubmitted:
            self._submitted.add(told.task_id)

    def flush(self) -> None:
        """Write what was touched."""
        self._since_flush = 0
        state = self._machine.state
        self._store.commit(Batch(None, 0, self._epoch, [], project(state)))
        state.recent.clear()
        state.recent_before.clear()

    def close(self) -> None:
        """Let go of everything but the file."""
        self._store.close()
        self._machine.state.dispose()
