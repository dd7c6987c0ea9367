"""Batches as users write them: tasks that are submitted together, counted together, and followed by a task of their own.

Knows: how one is put together, sent and read. Must not know: how its tasks wait for each other (``core/graph.py``).
"""

from __future__ import annotations

from datetime import datetime
from operator import itemgetter
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar
from uuid import UUID

from msgspec import Struct, msgpack
from msgspec.structs import replace

from actionqueue.bulk import BulkOperating
from actionqueue.core.batches import BATCH, BatchBody, batch_mark
from actionqueue.core.errors import Conflict, InvalidSubmission, NotFound
from actionqueue.core.ids import BatchId, TaskId, fresh_id_bytes
from actionqueue.core.instants import to_datetime
from actionqueue.core.spec import BatchHead, Depends, Submission, check_count, name_problem
from actionqueue.core.state import STATES
from actionqueue.operations import Operation, awaiting, blocking
from actionqueue.store.port import Reader

if TYPE_CHECKING:
    from actionqueue.app import ActionQueue
    from actionqueue.handle import TaskHandle
    from actionqueue.task import Call

R = TypeVar("R")
BatchKey = BatchId | UUID | str | bytes
LISTED_MAX = 1_000


class BatchRecord(Struct, frozen=True, kw_only=True):
    """A batch: how many tasks it was submitted with, and its runs (retries included) counted by state.

    ``callback`` is the task that follows all the others, if there is one.
    """

    id: BatchId
    name: str
    created_at: datetime
    task_count: int
    callback: TaskId | None
    requested_by: str
    runs: dict[str, int]

    @property
    def open_count(self) -> int:
        """How many of its runs have not ended."""
        return sum(count for state, count in self.runs.items() if state not in ("completed", "failed", "canceled"))


class Batch:
    """Tasks that are submitted together when the ``with`` block ends: all of them in one commit, or none.

    Made by ``queue.batch(name)``. What raises in the block leaves nothing behind. Works with ``async with``, too.

    >>> from actionqueue import ActionQueue
    >>> queue = ActionQueue(":memory:")
    >>> @queue.task
    ... def load(part: int) -> int:
    ...     return part
    >>> @queue.task
    ... def merge(parts: list[int]) -> int:
    ...     return sum(parts)
    >>> with queue.running():
    ...     with queue.batch("import-42") as batch:
    ...         parts = [batch.add(load.bind(n)) for n in (1, 2)]
    ...         whole = batch.add(merge.bind([part.output for part in parts]))
    ...     whole.result(timeout=10), queue.get_batch(batch.id).runs
    (3, {'completed': 3})
    """

    def __init__(self, queue: ActionQueue, name: str) -> None:
        problem = name_problem(name) if name else None
        if problem is not None:
            raise InvalidSubmission(f"batch: {problem}", problems={"name": problem})
        self.id = BatchId(bytes=fresh_id_bytes())
        self.name = name
        self._queue = queue
        self._items: list[Submission] = []
        self._handles: list[TaskHandle[Any]] = []
        self._callback: bytes | None = None
        self._is_sent = False

    def __repr__(self) -> str:
        return f"<Batch {self.name or self.id}: {len(self._items)} tasks>"

    @property
    def handles(self) -> list[TaskHandle[Any]]:
        """Of its tasks, in the order in which they were added."""
        return list(self._handles)

    def add(self, call: Call[R]) -> TaskHandle[R]:
        """One more task; its handle's ``output`` can be passed to later ones. Submitted at the end of the block.

        Raises ``InvalidSubmission``, ``LimitExceeded`` over 10,000 tasks, ``Conflict`` after the block.
        """
        if self._is_sent:
            raise Conflict("the batch was submitted; begin another one")
        check_count(len(self._items) + 1)
        item = call.submission()
        if item.rule is not None:
            problem = "a schedule does not belong in a batch"
            raise InvalidSubmission(f"schedule: {problem}", problems={"schedule": problem})
        handle = self._queue.handle_of(item, call.task.runnable)
        self._items.append(item)
        self._handles.append(handle)
        return handle

    def on_complete(self, call: Call[R]) -> TaskHandle[R]:
        """A task that runs when all those added by now have ended, however they did. Raises as ``add`` does."""
        on = tuple(dict.fromkeys(item.task_id for item in self._items))
        if not on:
            raise InvalidSubmission("on_complete: add tasks first", problems={"on_complete": "no task to follow"})
        handle = self.add(call)
        item = self._items[-1]
        before = item.depends or Depends(())
        item.depends = replace(before, on=tuple(dict.fromkeys((*before.on, *on))), on_failure="run")
        self._callback = item.task_id
        return handle

    def _op_submit(self) -> Operation[Batch]:
        self._is_sent = True
        head = BatchHead(self.id.bytes, self.name, self._callback)
        return self._queue.submission_of_batch(self._items, head, self)

    def learn(self, reply: list[tuple[bytes, bytes, bool | None]]) -> Batch:
        """What was decided of its tasks."""
        for handle, decision in zip(self._handles, reply, strict=True):
            handle.decided(decision)
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._queue.refuse_on_loop("batch")
            self._op_submit().run()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            await self._op_submit().arun()


def read_batch(reader: Reader, batch_id: bytes, body: bytes) -> BatchRecord:
    """A batch from its entry."""
    found = msgpack.decode(body, type=BatchBody)
    counts = reader.count_tagged(batch_mark(batch_id))
    return BatchRecord(
        id=BatchId(bytes=batch_id), name=found.name, created_at=to_datetime(found.at), task_count=found.tasks,
        callback=None if found.callback is None else TaskId(bytes=found.callback), requested_by=found.by,
        runs={STATES[code].value: count for code, count in sorted(counts.items())},
    )  # fmt: skip


class BatchingOperating(BulkOperating):
    """The part of ``ActionQueue`` that concerns batches."""

    def _op_get_batch(self, batch: BatchKey) -> Operation[BatchRecord]:
        """A batch, with its runs counted. Raises ``NotFound``; it is kept as long as any of its tasks."""
        key = BatchId.parse(batch, field="batch").bytes

        def question(reader: Reader) -> BatchRecord:
            for _, hex_id, body in reader.entries(BATCH):
                if hex_id == key.hex():
                    return read_batch(reader, key, body)
            raise NotFound(f"no batch {BatchId(bytes=key)} in this store; `actionqueue batches` lists them")

        return self._read(question)

    def _op_batches(self, *, limit: int = 100) -> Operation[list[BatchRecord]]:
        """The latest batches, newest first; ``limit`` is 1 to 1000."""
        if type(limit) is not int or not 1 <= limit <= LISTED_MAX:
            problem = f"not a whole number from 1 to {LISTED_MAX}"
            raise InvalidSubmission(f"limit: {problem}", problems={"limit": problem})

        def question(reader: Reader) -> list[BatchRecord]:
            found = sorted(reader.entries(BATCH), key=itemgetter(1), reverse=True)[:limit]
            return [read_batch(reader, bytes.fromhex(row[1]), row[2]) for row in found]

        return self._read(question)

    get_batch = blocking(_op_get_batch)
    aget_batch = awaiting(_op_get_batch)
    batches = blocking(_op_batches)
    abatches = awaiting(_op_batches)
