"""A store in memory that fails as disks and processes do, and remembers what had become durable.

``Disk`` is what survives: the store's tables and the list of every batch that was written. Each engine gets a ``store()``
of it, its own hold: when another engine has taken over, the first one's commits are refused and its closing changes
nothing. Faults are armed in a row; each try to commit meets the next one:

================  ================================================================================================
``unavailable``   refused before anything was written; the same batch can be tried again
``disk_full``     the same, with the cause a full disk has
``unknown_lost``  the outcome is unknown to the writer: nothing was written
``unknown_kept``  the outcome is unknown to the writer: everything was
``die_before``    the process dies before the write
``die_after``     the process dies after it, before its engine learns of it
``slow``          the write takes one more move of whoever steps the engine
``epoch_lost``    (never armed) an engine that was taken over tries to commit
``unreadable``    (of readers, ``fail_reads``) the next questions cannot be answered
================  ================================================================================================
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from actionqueue.core.errors import CommitUnknown, EpochLost, StoreUnavailable
from actionqueue.core.rows import Row
from actionqueue.store.memory import MemoryStore
from actionqueue.store.port import Batch, Opened, Reader

COMMIT_FAULTS = ("unavailable", "disk_full", "unknown_lost", "unknown_kept", "die_before", "die_after", "slow")


class Died(BaseException):
    """The process ends here: whoever steps the engine takes no further step of it."""


class Disk:
    """What is left when every process has died."""

    def __init__(self, store_id: bytes = b"simulated store.") -> None:
        self.memory = MemoryStore(fault=self._reach, store_id=store_id)
        self.written: list[Batch] = []
        """Batches that became durable and that nobody has taken note of yet."""
        self.has_died = False
        self.on_fault: Callable[[str], None] = _unnoticed
        self._armed: deque[str] = deque()
        self._now: str | None = None
        self._batch: Batch | None = None
        self._reads_to_fail = 0

    def arm(self, *faults: str) -> None:
        """The next tries to commit meet these."""
        assert all(fault in COMMIT_FAULTS for fault in faults)
        self._armed.extend(faults)

    def fail_reads(self, count: int) -> None:
        """The next so many questions to readers cannot be answered."""
        self._reads_to_fail = count

    def heal(self) -> None:
        """No more faults."""
        self._armed.clear()
        self._reads_to_fail = 0

    def takes_longer(self) -> bool:
        """Whether the commit under way needs one move more than this one."""
        if self._armed and self._armed[0] == "slow":
            self._armed.popleft()
            self.on_fault("slow")
            return True
        return False

    def store(self) -> FaultyStore:
        """A hold of this disk for one engine."""
        return FaultyStore(self)

    def let_go(self) -> None:
        """Whoever holds it is dead, or is taken for dead."""
        self.memory.crash()

    def commit(self, batch: Batch) -> None:
        """Write, or meet a fault."""
        self._now = self._armed.popleft() if self._armed else None
        self._batch = batch
        self.memory.commit(batch)

    def _reach(self, point: str) -> None:
        fault = self._now
        if point == "after_write":
            assert self._batch is not None
            self.written.append(self._batch)
        if fault is None or fault == "slow":
            return
        if (point == "before_write") == (fault in ("unknown_kept", "die_after")):
            return
        self.on_fault(fault)
        match fault:
            case "unavailable":
                raise StoreUnavailable("the database is locked by another program", cause="busy")
            case "disk_full":
                raise StoreUnavailable("the disk is full", cause="full")
            case "unknown_lost" | "unknown_kept":
                raise CommitUnknown("the disk reported an error while the commit was being synced")
            case _:
                self.has_died = True
                raise Died

    def check_readable(self) -> None:
        """Raise where a question meets a fault."""
        if self._reads_to_fail > 0:
            self._reads_to_fail -= 1
            self.on_fault("unreadable")
            raise StoreUnavailable("the store cannot be read now", cause="read")


def _unnoticed(fault: str) -> None:
    del fault


class FaultyStore:
    """One engine's hold of a disk. Implements ``store.port.Store``."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._memory = disk.memory
        self._epoch = 0

    def open(self, *, pid: int, host: str) -> Opened:
        """Take the next epoch."""
        opened = self._memory.open(pid=pid, host=host)
        self._epoch = opened.epoch
        return opened

    def live_rows(self) -> tuple[dict[str, bytes], Iterable[Row], Iterable[Row], Iterable[Row]]:
        """What is live."""
        return self._memory.live_rows()

    def commit(self, batch: Batch) -> None:
        """Write, or meet a fault; or another engine's epoch, whether that is still open or not."""
        if batch.epoch != self._memory.epoch:
            self._disk.on_fault("epoch_lost")
            raise EpochLost("another engine has taken this store over", epoch=batch.epoch, current=self._memory.epoch)
        self._disk.commit(batch)

    def reader(self) -> Reader:
        """A reader whose questions can meet faults."""
        return FaultyReader(self._disk)  # type: ignore[return-value]  # it passes on everything that it does not have

    def prune_log(self, before_seq: int, before_at: int, commits_max: int) -> int:
        """Drop what is old."""
        return self._memory.prune_log(before_seq, before_at, commits_max)

    def prune_replies(self, now: int) -> None:
        """Drop what has expired."""
        self._memory.prune_replies(now)

    def maintain(self) -> dict[str, Any]:
        """Nothing to do."""
        return self._memory.maintain()

    def backup(self, target: str) -> None:
        """A copy as a file."""
        self._memory.backup(target)

    def close(self) -> None:
        """Let go, unless another engine holds it by now."""
        if self._memory.epoch == self._epoch:
            self._memory.close()


class FaultyReader:
    """A reader of a disk. The questions that engines ask can fail, and everything is passed on."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._reader = disk.memory.reader()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)

    def blobs(self, ids: list[bytes]) -> dict[bytes, bytes]:
        """Payloads and results."""
        self._disk.check_readable()
        return self._reader.blobs(ids)

    def projected_seq(self) -> int:
        """The sequence the tables are exact as of."""
        self._disk.check_readable()
        return self._reader.projected_seq()

    def runs_of(self, task_id: bytes) -> list[Row]:
        """All runs of a task."""
        self._disk.check_readable()
        return self._reader.runs_of(task_id)


class InboxRows:
    """An inbox that outlives engines: ``engine.inbox.Rows``, and the senders' side. Needs no bell: readers look."""

    def __init__(self) -> None:
        self._rows: dict[int, tuple[int, bytes, int, int, bytes | None]] = {}
        self._serial = 0
        self._reads_to_fail = 0
        self.on_fault: Callable[[str], None] = _unnoticed

    def put(self, command_id: bytes, at: int, body: bytes | None) -> None:
        """Acknowledged, and so durable, when it returns."""
        self._serial += 1
        self._rows[self._serial] = (self._serial, command_id, at, 1, body)

    def fail_reads(self, count: int) -> None:
        """The next so many looks into it fail."""
        self._reads_to_fail = count

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[bytes]:
        """The ids of the commands that wait."""
        return iter([row[1] for row in self._rows.values()])

    def rows(self, limit: int, known: Any = frozenset()) -> list[Any]:
        """The oldest of those not known."""
        if self._reads_to_fail > 0:
            self._reads_to_fail -= 1
            self.on_fault("inbox_unreadable")
            raise StoreUnavailable("the inbox cannot be read now", cause="read")
        oldest = list(self._rows.values())[:limit]
        return [row for row in oldest if row[1] not in known]

    def delete(self, rows: list[tuple[int, bytes]]) -> None:
        """Forget these, by row id and command id."""
        for row_id, command_id in rows:
            if row_id in self._rows and self._rows[row_id][1] == command_id:
                del self._rows[row_id]

    def wait(self, timeout_s: float) -> None:
        """As a bell: nobody waits."""

    def close(self) -> None:
        """It outlives its reader."""
