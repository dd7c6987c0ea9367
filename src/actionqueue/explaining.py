"""Why a run is not running, and what is limited: asked of the engine, or, where none runs, of a fork of its store.

With an engine on the store, in this process or another, the question is a command like any other: its reply comes from
the very state that dispatch goes by. Through the inbox that costs a commit, a few milliseconds. A fork would cost time
in proportion to the live runs, and miss what only the engine's process knows (who was set aside, whose arguments do not
fit); so it is left for when there is nobody to ask. What has ended is read from the store, what is not decided yet from
the inbox.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from msgspec import DecodeError

from actionqueue.core.errors import InvalidSubmission, UnknownRun
from actionqueue.core.explain import Explain, Explanation, ended, explain, find, undecided, without_engine
from actionqueue.core.ids import RunId
from actionqueue.core.machine import Command
from actionqueue.core.plain import parsed
from actionqueue.core.schedules import PutSchedule
from actionqueue.core.state import FIRST_TERMINAL, State
from actionqueue.core.submission import Submit
from actionqueue.core.usage import KINDS, LIMITS_LISTED_MAX, LimitRecord, ListLimits, limits_of, queue_up
from actionqueue.filters import check_limit
from actionqueue.fork import fork
from actionqueue.operate import RunKey, TaskKey, task_id_of
from actionqueue.operations import (
    Operation,
    Script,
    awaiting,
    awaiting_script,
    blocking,
    blocking_script,
)
from actionqueue.signaling import SignalingOperating
from actionqueue.store.codec import decode_command
from actionqueue.store.inbox import waiting_about
from actionqueue.store.port import Reader, RunFilter

T = TypeVar("T")

ASKS_MAX = 3
"""How often engine and store are asked in turn, where a run moves from the one to the other meanwhile."""

SIBLINGS_MAX = 1_000
"""Runs of its task, the newest, among which a retry of a run that has ended is looked for."""


class ExplainingOperating(SignalingOperating):
    """The part of ``ActionQueue`` that says why."""

    @property
    def store(self) -> Path | str:
        """Where the store is."""
        raise AssertionError("supplied by whoever has a store")

    def _script_explain(self, id: RunKey | TaskKey) -> Script[Explanation]:
        """Why a run is not running: the first thing that holds it back, what would release it, and whom it waits for.

        Takes a run's id, or a task's: then it is about its newest live run. ``print`` it to read it. One that runs, or has
        ended, says so. Exact while an engine is on the store; without one it tells how things stand with what the last
        one had. Raises ``UnknownRun``, and the refusal of a submission of this process that was refused later.

        >>> from actionqueue import ActionQueue
        >>> queue = ActionQueue(":memory:")
        >>> @queue.task
        ... def hello() -> None: ...
        >>> with queue.running():
        ...     _ = queue.pause(handler="hello")
        ...     job = hello.submit()
        ...     why = queue.explain(job.run_id)
        ...     type(why.reason).__name__, why.reason.name, why.release
        ('Paused', 'hello', ResumeScope(scope='handler', name='hello'))
        """
        key, line = task_id_of(id), self.line()
        for _ in range(ASKS_MAX):
            reply = yield self._ask(Explain(key))
            if reply is not None:
                return parsed(reply, Explanation)
            key, found = (yield self._read(self._stored(key), absent=lambda: None)) or (key, None)
            if found is None and isinstance(path := self.store, Path):
                found = _undecided(path, key, has_engine=line.engine_present())
            if found is not None:
                told: Explanation = found
                return told
        raise UnknownRun(f"no run or task {RunId(bytes=key)} in this store", run_id=RunId(bytes=key))

    def _op_limits(
        self, *, kind: str | None = None, name: str | None = None, limit: int = 100
    ) -> Operation[list[LimitRecord]]:
        """What bounds how much runs at once, and how far it is used up; what is waited for most comes first.

        Keys and rates that live tasks need, bounded queues, handlers with a ``concurrency``, executors. ``kind`` is one of
        ``key``, ``rate``, ``queue``, ``handler``, ``executor``; ``limit`` 1 to 1000. Of many keys the first 10,000 are
        looked at. Without an engine on the store, with what the last one had. Raises ``InvalidSubmission``.

        >>> from actionqueue import ActionQueue
        >>> queue = ActionQueue(":memory:", queues={"mail": 4})
        >>> with queue.running():
        ...     [(each.name, each.taken, each.capacity) for each in queue.limits(kind="queue")]
        [('mail', 0, 4)]
        """
        if kind is not None and kind not in KINDS:
            raise InvalidSubmission(f"kind: give one of {', '.join(KINDS)}", problems={"kind": "unknown"})
        check_limit(limit)
        wanted = ListLimits(kind, name, min(limit, LIMITS_LISTED_MAX))

        def listed(state: State, now: int) -> list[LimitRecord]:
            queue_up(state, now)
            return limits_of(state, now, wanted)

        line = self.line()
        if line.engine_present():
            return Operation(lambda ticket: line.post(wanted, ticket), lambda reply: parsed(reply, list[LimitRecord]))
        return self._read(lambda reader: _on_fork(reader, listed), absent=list)

    def _ask(self, command: Command) -> Operation[Any]:
        """The engine's reply; None where there is none to ask."""
        line = self.line()
        return Operation(
            lambda ticket: line.post(command, ticket) if line.engine_present() else ticket.settle(None),
            lambda reply: reply,
        )

    def _stored(self, asked: bytes) -> Callable[[Reader], tuple[bytes, Explanation | None]]:
        """The id that the store knows it by, and what the store tells when there is no engine to ask, or it has ended."""
        line = self.line()

        def question(reader: Reader) -> tuple[bytes, Explanation | None]:
            key = line.identify(asked, reader)
            return key, explained_by(reader, key, has_engine=line.engine_present())

        return question

    explain = blocking_script(_script_explain)
    aexplain = awaiting_script(_script_explain)
    limits = blocking(_op_limits)
    alimits = awaiting(_op_limits)


# --- from the store ---------------------------------------------------------------------------------------------


def explained_by(reader: Reader, key: bytes, *, has_engine: bool) -> Explanation | None:
    """What a store tells: of a run that has ended, and, where there is no engine to ask, of a live one."""
    row = reader.runs_by_id([key]).get(key)
    if row is None:
        row = next(iter(reader.runs(RunFilter(task=key, limit=1))), None)
    if row is None:
        return None
    task = reader.tasks_by_id([row[1]])[row[1]]
    if row[4] >= FIRST_TERMINAL and (row[0] == key or task[12] is not None):
        return ended(row, reader.runs(RunFilter(task=row[1], limit=SIBLINGS_MAX)), _now())
    return None if has_engine else _on_fork(reader, lambda state, now: _without_engine(state, key, now))


def _on_fork(reader: Reader, question: Callable[[State, int], T]) -> T:
    machine = fork(reader)
    try:
        return question(machine.state, max(machine.state.last_at, _now()))
    finally:
        machine.state.dispose()


def _without_engine(state: State, key: bytes, now: int) -> Explanation | None:
    run = find(state, key)
    return None if run is None else without_engine(state, explain(state, run, now))


def _undecided(path: Path, key: bytes, *, has_engine: bool) -> Explanation | None:
    """A submission that waits in the inbox."""
    for at, body in waiting_about(path, key):
        try:
            command = decode_command(body)
        except DecodeError:  # the engine will refuse it
            continue
        for item in command.items if isinstance(command, Submit | PutSchedule) else ():
            if key in (item.task_id, item.run_id):
                return undecided(item, at, _now(), has_engine=has_engine)
    return None


def _now() -> int:
    return time.time_ns() // 1000


__all__ = ["ExplainingOperating", "Explanation", "LimitRecord"]
