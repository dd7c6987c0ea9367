"""What the ledger knows of waits, signals and steps, from the events and the rows alone.

It keeps every signal and every wait as plain records and looks through all of them where the engine keeps indexes, and
it remembers what each chain was given; so that it can say of each wait that ended whether it was its turn, by a signal that
was kept then, or by its deadline, and of each step that it was done once after its record was durable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from actionqueue.core import signals, steps, waits
from actionqueue.core.awaiting import SIGNAL, SLEEP, Signal, Wait
from actionqueue.store.port import Batch


class WaitBook:
    """Of one ledger, which hears of ``problems``."""

    def __init__(self, problems: list[str]) -> None:
        self.waiting: dict[bytes, Wait] = {}
        self.kept: dict[int, signals.SignalKept] = {}
        """By order."""
        self.ids: set[str] = set()
        """Of every signal there ever was."""
        self.rows: dict[bytes, dict[str, tuple[str, bytes]]] = {}
        """What is recorded, by chain and name."""
        self._expected: dict[bytes, dict[str, tuple[str, bytes | None]]] = {}
        """The same by the events; the body where they tell it."""
        self._given: dict[bytes, set[int]] = {}
        """The orders of the signals that each chain was given."""
        self._problems = problems

    # --- events ----------------------------------------------------------------------------------------------------

    def began(self, run_id: bytes, wait: Wait | None, at: int) -> None:
        """An attempt ended waiting."""
        if wait is None or wait.since != at or (wait.until is not None and wait.until < at):
            self._problems.append(f"run {run_id.hex()} waits for {wait}, since or until another instant")
        elif run_id in self.waiting:
            self._problems.append(f"run {run_id.hex()} waits for two things")
        else:
            self.waiting[run_id] = wait

    def left(self, run_id: bytes) -> None:
        """A run has ended, or is Ready."""
        self.waiting.pop(run_id, None)

    def ended(self, event: waits.WaitsEnded, token_of: Callable[[bytes], bytes]) -> None:
        """Waits are over."""
        for run_id in event.run_ids:
            wait = self.waiting.pop(run_id, None)
            if wait is None:
                self._problems.append(f"run {run_id.hex()}: a wait ends that there is not")
                continue
            token = token_of(run_id)
            said = f"run {run_id.hex()}: its wait for {wait.signal or wait.kind} ended ({event.how})"
            self._problems += (f"{said} {why}" for why in self._judged(event, wait, token))
            body = waits._pack(waits._record_of(event.how, wait.since, self._signal(event.order)))  # noqa: SLF001
            self._record(token, wait.name, wait.kind, body, is_new=True)
            if event.order:
                self._given.setdefault(token, set()).add(event.order)

    def _judged(self, event: waits.WaitsEnded, wait: Wait, token: bytes) -> Iterator[str]:
        given = self._given.get(token, set())
        fitting = [
            order
            for order, kept in self.kept.items()
            if wait.kind == SIGNAL and (kept.name, kept.key) == (wait.signal, wait.key) and order not in given
        ]
        if event.how == waits.SIGNALED:
            if event.order not in fitting:
                yield "by a signal that is not kept, is another's, or was given before"
            elif event.order != min(fitting):
                yield "by a signal before whose turn it was"
        elif fitting:
            yield "although a signal for it had come"
        elif wait.until is None or wait.until > event.at:
            yield "before its time"
        elif (event.how == waits.SLEPT) != (wait.kind == SLEEP):
            yield "as another kind of wait"

    def _signal(self, order: int) -> Signal | None:
        event = self.kept.get(order)
        if event is None:
            return None
        return Signal(order, event.at, event.signal_id, event.name, event.key, event.payload, event.by)

    def signaled(self, event: signals.SignalKept, seq: int) -> None:
        """A signal has come."""
        if any(each.signal_id == event.signal_id for each in self.kept.values()):
            self._problems.append(f"signal {event.signal_id!r} is kept twice")
        self.kept[seq] = event
        self.ids.add(event.signal_id)

    def expired(self, event: signals.SignalsExpired) -> None:
        """Signals are kept no more."""
        gone = [order for order in self.kept if order <= event.upto]
        if len(gone) != event.count:
            self._problems.append(f"{event.count} signals were said to expire, and {len(gone)} did")
        for order in gone:
            old = self.kept.pop(order)
            for run_id, wait in self.waiting.items():
                if (wait.signal, wait.key) == (old.name, old.key) and order > wait.served and wait.kind == SIGNAL:
                    self._problems.append(f"signal {old.signal_id!r} expired while run {run_id.hex()} waited for it")

    def stepped(self, event: steps.StepRecorded, token: bytes) -> None:
        """A step was done."""
        if event.kind != steps.NOTE and event.name in self._expected.get(token, {}):
            self._problems.append(f"step {event.name!r} of chain {token.hex()} is recorded twice")
        self._record(token, event.name, event.kind, None, is_new=event.is_new)

    def _record(self, token: bytes, name: str, kind: str, body: bytes | None, *, is_new: bool) -> None:
        chain = self._expected.setdefault(token, {})
        if is_new and name in chain:
            self._problems.append(f"{name!r} of chain {token.hex()} is recorded as new, and is there")
        chain[name] = (kind, body)

    def retried(self, token: bytes, records: int, *, fresh: bool) -> None:
        """A chain goes on."""
        if fresh:
            self._expected.pop(token, None)
            self._given.pop(token, None)
        count = sum(kind != steps.NOTE for kind, _ in self._expected.get(token, {}).values())
        if records != count:
            self._problems.append(f"chain {token.hex()} goes on with {records} records; it has {count}")

    # --- rows ------------------------------------------------------------------------------------------------------

    def written(self, batch: Batch) -> None:
        """What a batch wrote of records must be what its events mean."""
        for token in batch.dropped_steps:
            self.rows.pop(token, None)
        touched = set(batch.dropped_steps)
        for token, name, kind, _, body in batch.steps:
            self.rows.setdefault(token, {})[name] = (kind, body)
            touched.add(token)
        for token in touched:
            self._compare(token, self.rows.get(token, {}))

    def _compare(self, token: bytes, rows: dict[str, tuple[str, bytes]]) -> None:
        expected = self._expected.get(token, {})
        told = {
            name: (kind, rows.get(name, ("", b""))[1] if body is None else body)
            for name, (kind, body) in expected.items()
        }
        if told != rows:
            self._problems.append(
                f"chain {token.hex()} has the records {sorted(rows)}; its events tell of {sorted(told)}"
            )

    def pruned(self, token: bytes) -> None:
        """The run is gone, and what its chain recorded."""
        for of in (self.rows, self._expected, self._given):
            of.pop(token, None)

    # --- handlers --------------------------------------------------------------------------------------------------

    def was_given(self, token: bytes, records: list[tuple[str, str, bytes]] | None) -> bool:
        """Whether an attempt that starts was given everything that its chain has recorded."""
        return {name: (kind, body) for name, kind, body in records or ()} == self.rows.get(token, {})

    def is_recorded(self, token: bytes, name: str) -> bool:
        """Whether a step is done, durably."""
        return name in self.rows.get(token, {})

    def account(self, there: Callable[[list[bytes]], dict[bytes, list[tuple[bytes, str, str, int, bytes]]]]) -> None:
        """At the end: nothing waits, and the tables hold every record."""
        if self.waiting:
            self._problems.append(f"{len(self.waiting)} runs wait after everything was let run to its end")
        for token, rows in there(list(self.rows)).items():
            self._compare(token, {name: (kind, body) for _, name, kind, _, body in rows})
