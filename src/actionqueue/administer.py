"""Keeping a store: verify, backup and restore, pruning, the clock; refused commands; finding things by half an id."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from actionqueue.core.epochs import ConfirmClock, PruneHistory
from actionqueue.core.errors import InvalidSubmission, NotRunning, UnknownRun, UnknownTask
from actionqueue.core.ids import RunId, TaskId
from actionqueue.core.instants import instant_us, parse_duration_us
from actionqueue.core.state import COMPLETED, Declaration
from actionqueue.explaining import ExplainingOperating
from actionqueue.filters import check_limit
from actionqueue.line import work_inline
from actionqueue.operate import RunKey, TaskKey, run_id_of, task_id_of
from actionqueue.operations import Operation, Script, awaiting, awaiting_script, blocking, blocking_script
from actionqueue.reading import read_declarations, read_refusals
from actionqueue.records import EngineRecord, Page, Refusal
from actionqueue.store.inbox import count_waiting
from actionqueue.store.lock import read_holder
from actionqueue.store.port import Reader

if TYPE_CHECKING:
    from actionqueue.audit import AuditReport, TaskAudit
    from actionqueue.store.memory import MemoryStore
    from actionqueue.verify import OnProgress, VerifyReport

Age = datetime | timedelta | float | str
"""An instant, or how long ago: an aware datetime; or a timedelta, seconds, or text such as "30d"."""


class PruneSummary(Struct, frozen=True, kw_only=True):
    """What ``prune`` deleted: finished tasks (with their runs), and commits of the log."""

    tasks: int
    commits: int


class Administering(ExplainingOperating):
    """The part of ``ActionQueue`` that looks after its store."""

    memory: MemoryStore | None = None

    @property
    def store(self) -> Path | str:
        """Where the store is: an absolute path, or ``":memory:"``."""
        raise AssertionError("supplied by whoever has a store")

    # --- reads -------------------------------------------------------------------------------------------------

    def _op_refusals(self, *, limit: int = 100, cursor: str | bytes | None = None) -> Operation[Page[Refusal]]:
        """Commands of other processes that the engine refused, newest first; kept for a day. ``limit`` is 1 to 1000."""
        check_limit(limit)
        before = None if cursor is None else TaskId.parse(cursor, field="cursor").bytes
        return self._read(lambda reader: read_refusals(reader, limit, before))

    def _op_find_ids(self, ending: str) -> Operation[list[RunId | TaskId]]:
        """The ids of runs, then of tasks, that end so (six hexadecimal digits or more): the newest 20 of each."""

        def question(reader: Reader) -> list[RunId | TaskId]:
            runs: list[RunId | TaskId] = [RunId(bytes=id) for id in reader.ids_ending(ending, "runs")]
            return runs + [TaskId(bytes=id) for id in reader.ids_ending(ending, "tasks")]

        return self._read(question)

    def _op_get_payload(self, task_id: TaskKey) -> Operation[bytes]:
        """The arguments of a task as they are stored (JSON). Raises ``UnknownTask``."""
        key = task_id_of(task_id)

        def question(reader: Reader) -> bytes:
            body = reader.blobs([key]).get(key)
            if body is None:
                raise UnknownTask(f"no task {TaskId(bytes=key)} in this store", task_id=TaskId(bytes=key))
            return body

        return self._read(question)

    def _op_get_result(self, run_id: RunKey) -> Operation[bytes | None]:
        """The result of a completed run as it is stored; None when it has none. Raises ``UnknownRun``."""
        key = run_id_of(run_id)

        def question(reader: Reader) -> bytes | None:
            row = reader.runs_by_id([key]).get(key)
            if row is None:
                raise UnknownRun(f"no run {RunId(bytes=key)} in this store", run_id=RunId(bytes=key))
            return reader.blobs([key]).get(key) if row[4] == COMPLETED else None

        return self._read(question)

    def engine_holder(self) -> EngineRecord | None:
        """The process that is the engine of this store now, if there is one."""
        store = self.store
        if isinstance(store, str):
            mine = None if self.memory is None else self.memory.holder
            return None if mine is None else EngineRecord(pid=mine[0], host=mine[1], since=None)
        holder = read_holder(store)
        if holder is None:
            return None
        since = None
        with suppress(ValueError):  # a holder that could not be asked
            since = datetime.fromisoformat(holder.since)
        return EngineRecord(pid=holder.pid, host=holder.host, since=since)

    def waiting_commands(self) -> int:
        """How many commands of other processes wait in the inbox for an engine to decide them."""
        store = self.store
        return 0 if isinstance(store, str) else count_waiting(store)

    def _op_declarations(self) -> Operation[dict[str, Declaration]]:
        """What the handlers of this store's engines declare, by name: the defaults of what is submitted by name."""
        return self._read(read_declarations)

    # --- keeping -----------------------------------------------------------------------------------------------

    def _op_verify(self, *, progress: OnProgress | None = None) -> Operation[VerifyReport]:
        """Check every byte of the store, and that its log leads to its tables, beside an engine or without one.

        Takes time in proportion to the store. ``progress`` is called with what is being done, how far it is and of how much
        (0: not known). Damage is no error but what the report is about; raises ``StoreUnavailable``, ``NotAStore``,
        ``StoreTooNew``.
        """
        store = self.store

        def work() -> VerifyReport:
            from actionqueue.verify import verify

            if isinstance(store, str):
                return verify(self._memory().reader(), name=store, progress=progress)
            return verify(store, progress=progress)

        return _inline(work)

    def _op_audit(
        self,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        each: Callable[[TaskAudit], object] | None = None,
    ) -> Operation[AuditReport]:
        """Account for every task created in that range: the runs its policy implies and those asked for, the runs there
        are, how they ended.

        Reads one snapshot of the tables, beside an engine or without one, in time in proportion to the store. What is
        not consistent is no error but what the report is about. ``each`` is called with every task's account, from another
        thread. Raises ``InvalidInstant`` and ``StoreDamaged``.
        """
        since_us, until_us = (
            None if value is None else instant_us(value, field=field)
            for field, value in (("since", since), ("until", until))
        )

        def question(reader: Reader) -> AuditReport:
            from actionqueue.audit import audit

            return audit(reader, since=since_us, until=until_us, each=each)

        return self._read(question)

    def _op_backup(self, path: str | os.PathLike[str]) -> Operation[Path]:
        """Copy the store to a new file, consistently, while it is in use; the file's absolute path.

        It opens paused, since work done after it was made may be repeated. Raises ``StoreError`` when the file exists.
        """
        target = Path(path).absolute()
        store = self.store

        def work() -> Path:
            if isinstance(store, str):
                self._memory().backup(os.fspath(target))
            else:
                from actionqueue.store.backup import backup

                backup(store, target)
            return target

        return _inline(work)

    def _memory(self) -> MemoryStore:
        if self.memory is None:
            raise NotRunning('a ":memory:" store is there from the first time it runs: with queue.running()')
        return self.memory

    def _script_prune(self, /, *, before: Age | None = None, log_before: Age | None = None) -> Script[PruneSummary]:
        """Delete tasks that finished before an instant, and the log before one; what is needed stays.

        Each is an aware datetime, or an age ("30d"). Raises ``Conflict`` while the clock is in doubt, ``NoEngine``
        (``queued``) when none is on the store.
        """
        if before is None and log_before is None:
            raise InvalidSubmission(
                "give before, log_before, or both", problems={"before": "nothing to prune is given"}
            )
        command = PruneHistory(_instant(before, "before"), _instant(log_before, "log_before"), self.asker())
        tasks = commits = 0
        more = True
        while more:
            step = yield self._send(command, lambda reply: reply)
            tasks, commits, more = tasks + step[0], commits + step[1], bool(step[2])
        return PruneSummary(tasks=tasks, commits=commits)

    def _op_confirm_clock(self) -> Operation[None]:
        """Vouch for the clock after it was set: deleting and expiring by age go on at once."""
        return self._send(ConfirmClock(self.asker()), lambda reply: None)

    refusals = blocking(_op_refusals)
    arefusals = awaiting(_op_refusals)
    find_ids = blocking(_op_find_ids)
    afind_ids = awaiting(_op_find_ids)
    declarations = blocking(_op_declarations)
    adeclarations = awaiting(_op_declarations)
    get_payload = blocking(_op_get_payload)
    aget_payload = awaiting(_op_get_payload)
    get_result = blocking(_op_get_result)
    aget_result = awaiting(_op_get_result)
    verify = blocking(_op_verify)
    averify = awaiting(_op_verify)
    audit = blocking(_op_audit)
    aaudit = awaiting(_op_audit)
    backup = blocking(_op_backup)
    abackup = awaiting(_op_backup)
    prune = blocking_script(_script_prune)
    aprune = awaiting_script(_script_prune)
    confirm_clock = blocking(_op_confirm_clock)
    aconfirm_clock = awaiting(_op_confirm_clock)


def restore(backup: str | os.PathLike[str], store: str | os.PathLike[str], *, force: bool = False) -> Path | None:
    """Make the store at ``store`` what a backup holds; nothing may be running on it. It opens paused.

    The backup is checked whole first. With ``force`` a store that is there is moved aside, and its new path returned.
    Raises ``StoreDamaged`` for a damaged backup, ``StoreHeld``, ``StoreError`` when there is a store and not ``force``.
    """
    from actionqueue.store import backup as copies

    return copies.restore(Path(backup), Path(store), force=force)


def _inline(work: Callable[[], Any]) -> Operation[Any]:
    return Operation(lambda ticket: work_inline(work, ticket), lambda reply: reply)


def _instant(value: Age | None, field: str) -> int | None:
    if value is None:
        return None
    if isinstance(value, datetime):
        return instant_us(value, field=field)
    return max(0, time.time_ns() // 1000 - parse_duration_us(value, field=field))


__all__ = ["Administering", "Age", "PruneSummary", "restore"]
