"""Signals and what runs have recorded, as operators and other programs see them: sending, listing.

Each is written once, as an ``_op_…`` method that returns an ``Operation`` (``operate.py``).
"""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
from msgspec import Struct, msgpack

from actionqueue.core.awaiting import Signal as KeptSignal
from actionqueue.core.errors import InvalidSubmission, UnknownRun
from actionqueue.core.ids import RunId, fresh_id_bytes
from actionqueue.core.instants import shown_datetime
from actionqueue.core.records import STEP
from actionqueue.core.signals import SendSignal, signal_problems
from actionqueue.core.steps import NOTE, UNASKED
from actionqueue.core.waits import wait_record
from actionqueue.filters import check_limit
from actionqueue.operate import RunKey, run_id_of
from actionqueue.operations import Operation, awaiting, blocking
from actionqueue.records import Signal, signal_of
from actionqueue.scheduling import SchedulingOperating
from actionqueue.signature import encode_hook
from actionqueue.store.port import Reader

_encode = msgspec.json.Encoder(enc_hook=encode_hook).encode
_kept = msgpack.Decoder(KeptSignal).decode


class StepRecord(Struct, frozen=True, kw_only=True):
    """Something a run (or an earlier run of its retry chain) has recorded under a name.

    ``kind`` is ``step``, ``sleep`` or ``signal``; ``outcome`` is ``recorded`` for a step, else how the wait ended:
    ``slept``, ``signaled`` or ``timed_out``. ``value`` is a step's result, or the payload of the signal, which ``by``
    sent. ``unasked`` says that the attempt which completed the run did not ask for it: its code has changed.
    """

    name: str
    kind: str
    at: datetime
    outcome: str
    value: Any = None
    by: str = ""
    unasked: bool = False


class SignalingOperating(SchedulingOperating):
    """The part of ``ActionQueue`` that concerns signals and records of runs."""

    def _op_signal(
        self,
        name: str,
        *,
        key: str | int | None = None,
        payload: Any = None,
        id: str | None = None,
        by: str | None = None,
    ) -> Operation[bool]:
        """Send a signal; whether it is new. It wakes every run that waits for that name and key, and is kept for others.

        ``payload`` is a JSON value of at most 64 KiB encoded; a number as ``key`` is taken as its text. ``id`` makes the
        call safe to repeat: the same signal again changes nothing, while the first is kept (7 days, and 100,000 of
        them). ``by`` is who is recorded as its sender (default: this program's user and host). Raises
        ``InvalidSubmission``, ``PayloadTooLarge``, and ``SignalConflict`` for another signal of that id.

        >>> from actionqueue import ActionQueue
        >>> queue = ActionQueue(":memory:")
        >>> with queue.running():
        ...     (
        ...         queue.signal("approved", key=42, payload={"ok": True}, id="a1"),
        ...         queue.signal("approved", key=42, payload={"ok": True}, id="a1"),
        ...         [each.key for each in queue.signals()],
        ...     )
        (True, False, ['42'])
        """
        try:
            body = _encode(payload)
        except (TypeError, ValueError, NotImplementedError, RecursionError) as error:
            raise InvalidSubmission(f"payload: not JSON ({error})", problems={"payload": str(error)}) from error
        command = SendSignal(
            str(UUID(bytes=fresh_id_bytes())) if id is None else id,
            name, None if key is None else str(key), body, self.asker() if by is None else by,
        )  # fmt: skip
        problem = signal_problems(command)
        if problem is not None:
            raise problem
        return self._send(command, bool)

    def _op_signals(
        self, *, name: str | None = None, key: str | int | None = None, limit: int = 100
    ) -> Operation[list[Signal]]:
        """The signals that are kept, newest first, of a ``name`` and a ``key`` where given. ``limit`` is 1 to 1000."""
        check_limit(limit)
        text = None if key is None else str(key)

        def question(reader: Reader) -> list[Signal]:
            kept = [_kept(body) for _, _, body in reader.entries("signal")]
            wanted = [
                each for each in kept if (name is None or each.name == name) and (text is None or each.key == text)
            ]
            wanted.sort(key=lambda each: -each.order)
            return [signal_of(each) for each in wanted[:limit]]

        return self._read(question, absent=list)

    def _op_steps(self, run_id: RunKey) -> Operation[list[StepRecord]]:
        """What a run and those it retries have recorded, in order. Raises ``UnknownRun``."""
        wanted = run_id_of(run_id)

        def question(reader: Reader) -> list[StepRecord]:
            row = reader.runs_by_id([wanted]).get(wanted)
            if row is None:
                raise UnknownRun(f"no run {RunId(bytes=wanted)} in this store", run_id=RunId(bytes=wanted))
            token = row[20] or wanted
            return read_steps(reader, token)

        return self._read(question)

    signal = blocking(_op_signal)
    asignal = awaiting(_op_signal)
    signals = blocking(_op_signals)
    asignals = awaiting(_op_signals)
    steps = blocking(_op_steps)
    asteps = awaiting(_op_steps)


def read_steps(reader: Reader, token: bytes) -> list[StepRecord]:
    """The records of a retry chain."""
    rows = reader.steps_of([token])[token]
    unasked: set[str] = set()
    for _, name, kind, _, body in rows:
        if kind == NOTE and name == UNASKED:
            unasked.update(msgspec.json.decode(body))
    return [
        _step_record(name, kind, at, body, unasked=name in unasked)
        for _, name, kind, at, body in rows
        if not name.startswith("\0")
    ]


def _step_record(name: str, kind: str, at: int, body: bytes, *, unasked: bool) -> StepRecord:
    if kind == STEP:
        return StepRecord(
            name=name, kind=kind, at=shown_datetime(at), outcome="recorded", value=msgspec.json.decode(body),
            unasked=unasked,
        )  # fmt: skip
    record = wait_record(body)
    return StepRecord(
        name=name, kind=kind, at=shown_datetime(at), outcome=record.how, value=msgspec.json.decode(record.payload),
        by=record.by, unasked=unasked,
    )  # fmt: skip
