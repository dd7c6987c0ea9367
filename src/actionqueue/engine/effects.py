"""What a turn lets out once it is durable, and the look-ups of what has left memory. Never on the writer's thread."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from actionqueue.core.attempts import AttemptFinished
from actionqueue.core.errors import (
    ActionQueueError,
    PayloadTooLarge,
    StoreDamaged,
    StoreUnavailable,
    UnknownTask,
)
from actionqueue.core.ids import RunId, TaskId
from actionqueue.core.rows import Row
from actionqueue.core.state import FAILED, RETRY_WAIT, Outcome
from actionqueue.engine import lookups, outputs
from actionqueue.engine.tickets import CallTicket, Ticket, settle_all
from actionqueue.engine.work import Ended, Joining, Post, Turn
from actionqueue.executors.endings import failed, put_off
from actionqueue.executors.port import Asked, Assignment
from actionqueue.store.codec import digest
from actionqueue.store.port import Reader, Store

if TYPE_CHECKING:
    from actionqueue.engine.engine import Engine

logger = logging.getLogger("actionqueue")

RECENT_ENDED_MAX = 1_000
RECENT_BODY_BYTES_MAX = 4_096
PUT_OFF_US = 1_000_000

_NOT_JOINED: dict[type[ActionQueueError], str] = {
    PayloadTooLarge: "arguments_too_large", StoreDamaged: "result_damaged", UnknownTask: "result_pruned",
}  # fmt: skip
"""Why an attempt fails that cannot be given the results it takes."""

T = TypeVar("T")


class Asking:
    """A reader for one thread: opened when it is first needed, and anew after it could not read."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._reader: Reader | None = None

    def ask(self, question: Callable[[Reader], T]) -> T:
        """The answer; raises what opening and reading raise."""
        try:
            if self._reader is None:
                self._reader = self._store.reader()
            return question(self._reader)
        except StoreUnavailable:
            self.close()
            raise

    def close(self) -> None:
        """Let go of it."""
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()


class Effects:
    """Lets turns out. ``release`` runs on the commit thread, look-ups on their own."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.recent: dict[bytes, Ended] = {}
        """How the latest tasks ended, so that asking for a result right away costs no query."""
        self.on_failure: Callable[[bytes], None] | None = None
        self._jobs: SimpleQueue[Callable[[Asking], None] | None] = SimpleQueue()
        self._payloads, self._lookups = Asking(engine.store), Asking(engine.store)

    # --- once durable ------------------------------------------------------------------------------------------

    def release(self, turn: Turn) -> None:
        """Everything the turn implies for the world outside; what is done is taken off it, for ``refuse`` if this fails."""
        if turn.ended:
            self._remember(turn.ended)
        if turn.abandoned:
            self._abandon(turn)
        if turn.starts:
            self._start(turn)
        if turn.settled:
            settled, turn.settled = turn.settled, []
            settle_all(settled)
        self._stop(turn)
        if turn.lookups:
            posts, turn.lookups = turn.lookups, []
            self._jobs.put(lambda asking: self._look_up(asking, posts))
        if turn.awaiting:
            awaiting, turn.awaiting = turn.awaiting, []
            self._jobs.put(lambda asking: self._tell_ended(asking, awaiting))
        if turn.reads:
            reads, turn.reads = turn.reads, []
            self._jobs.put(lambda asking: self._answer(asking, reads))
        if turn.unfinished:
            self._log(turn.unfinished)

    def refuse(self, turn: Turn, error: ActionQueueError) -> None:
        """The turn will not become durable (or nobody knows): tell everyone who waits for it."""
        settle_all([(ticket, error) for ticket, _ in turn.settled])
        settle_all([(post.ticket, error) for post in turn.lookups if post.ticket is not None])
        settle_all([(ticket, error) for _, ticket in turn.awaiting])
        settle_all([(ticket, error) for _, ticket in (*turn.reads, *turn.store_jobs)])
        turn.settled, turn.lookups, turn.awaiting, turn.reads, turn.store_jobs = [], [], [], [], []

    def refuse_all_waiting(self, error: ActionQueueError, others: list[Ticket]) -> None:
        """Nothing more will be decided: tell everyone in the mailbox, whoever waits for a result, and ``others``."""
        writer = self._engine.writer
        tickets: list[Ticket] = [*others, *writer.take_waiters()]
        while writer.mailbox:
            post = writer.mailbox.popleft()
            if isinstance(post, Post) and post.ticket is not None:
                tickets.append(post.ticket)
            elif isinstance(post, Asked):
                tickets.append(CallTicket(post.settle))
        settle_all([(ticket, error) for ticket in tickets])

    def _remember(self, ended: list[tuple[bytes, Ended]]) -> None:
        recent = self.recent
        for task_id, each in ended[-RECENT_ENDED_MAX:]:
            if each.body is None or len(each.body) <= RECENT_BODY_BYTES_MAX:
                recent[task_id] = each
            else:
                recent.pop(task_id, None)
        if len(recent) > 2 * RECENT_ENDED_MAX:
            for task_id in list(islice(recent, len(recent) - RECENT_ENDED_MAX)):
                recent.pop(task_id, None)  # unless the writer did

    def _abandon(self, turn: Turn) -> None:
        """Before anything is started in the slots that this frees. What was granted in the same turn never begins."""
        given_up = {attempt_id for _, attempt_id in turn.abandoned}
        for assignments in turn.starts.values():
            assignments[:] = [each for each in assignments if each.attempt_id not in given_up]
        executors = self._engine.executors
        for name, attempt_id in turn.abandoned:
            if name not in executors:
                continue
            logger.warning("attempt %s was given up: its code did not end; its slot is free again", attempt_id.hex())
            try:
                executors[name].abandon(attempt_id)
            except Exception:
                logger.exception("the %s executor may still be blocked by attempt %s", name, attempt_id.hex())

    def _start(self, turn: Turn) -> None:
        if turn.unread:
            _withhold(turn, self._read_payloads(turn.unread))
        if turn.joining:
            _withhold(turn, self._join_results(turn.joining))
        if turn.unrecorded:
            _withhold(turn, self._read_records(turn.unrecorded))
        for name, assignments in turn.starts.items():
            executor = self._engine.executors[name]
            try:
                executor.start(assignments)
            except Exception:
                logger.exception("the %s executor could not start attempts; they are tried again in a second", name)
                running = set(executor.running())
                self._put_off([each for each in assignments if each.attempt_id not in running])

    def _stop(self, turn: Turn) -> None:
        """Stops; what an executor makes of them is its own affair, and keeps nothing else from going out."""
        executors = self._engine.executors
        for name, attempt_id, reason, force in turn.stops:
            try:
                executors[name].stop(attempt_id, reason, force=force)
            except Exception:
                logger.exception(
                    "the %s executor could not stop attempt %s; it is given up when its grace is over",
                    name,
                    attempt_id.hex(),
                )

    def _put_off(self, assignments: Sequence[Assignment]) -> None:
        """What could not be started has not run: uncounted, and due again soon."""
        self._engine.report([put_off(assignment, PUT_OFF_US) for assignment in assignments])

    def _read_payloads(self, unread: list[Assignment]) -> list[Assignment]:
        """Read what has left memory; an attempt whose arguments are damaged fails for good instead of starting.

        Those that do not start are returned.
        """
        try:
            bodies = self._bodies([each.task_id for each in unread])
        except StoreUnavailable as error:
            logger.warning("arguments cannot be read now (%s); their attempts are tried again in a second", error)
            self._put_off(unread)
            return unread
        return self._give_payloads(unread, bodies)

    def _join_results(self, joining: list[Joining]) -> list[Assignment]:
        """Put the results of other tasks into arguments. Those that do not start are returned."""
        withheld: list[Assignment] = []
        for each in joining:
            assignment = each.assignment
            if not assignment.payload:  # withheld already
                continue
            try:
                results = self._payloads.ask(lambda reader, each=each: outputs.read_results(reader, each))  # type: ignore[misc]
                assignment.payload = outputs.join(assignment.payload, each.depends, results)
            except StoreUnavailable as error:
                logger.warning("results cannot be read now (%s); an attempt is tried again in a second", error)
                self._put_off([assignment])
                withheld.append(assignment)
            except (StoreDamaged, PayloadTooLarge, UnknownTask) as error:
                self._engine.report([failed(assignment, _NOT_JOINED[type(error)], error.message, terminal=True)])
                withheld.append(assignment)
        return withheld

    def _read_records(self, unrecorded: list[Assignment]) -> list[Assignment]:
        """Read what the chains have recorded; an attempt whose records are damaged fails for good.

        Those that do not start are returned.
        """
        withheld: list[Assignment] = []
        try:
            found = self._records([each.token for each in unrecorded])
        except StoreUnavailable as error:
            logger.warning("records cannot be read now (%s); their attempts are tried again in a second", error)
            self._put_off(unrecorded)
            return unrecorded
        for assignment in unrecorded:
            rows = found.get(assignment.token)
            if rows is None:
                withheld.append(assignment)
            else:
                assignment.records = [(name, kind, body) for _, name, kind, _, body in rows]
        message = "what earlier attempts have recorded is unreadable: bytes changed on disk"
        self._engine.report([failed(each, "records_damaged", message, terminal=True) for each in withheld])
        return withheld

    def _records(self, tokens: Sequence[bytes]) -> Mapping[bytes, list[Row]]:
        """Records by chain, without those of chains of which one is damaged; raises when nothing can be read any more."""
        ask = self._payloads.ask
        try:
            return ask(lambda reader: reader.steps_of(tokens))
        except StoreDamaged as error:
            ask(lambda reader: reader.projected_seq())
            logger.error("records are damaged, and are read one by one: %s", error)  # noqa: TRY400
        found: dict[bytes, list[Row]] = {}
        for token in tokens:
            with suppress(StoreDamaged):
                found.update(ask(lambda reader, token=token: reader.steps_of([token])))  # type: ignore[misc]
        return found

    def _bodies(self, task_ids: Sequence[bytes]) -> Mapping[bytes, bytes]:
        """Arguments by task, without those that are on a damaged page; raises when nothing can be read any more."""
        ask = self._payloads.ask
        try:
            return ask(lambda reader: reader.blobs(task_ids))
        except StoreDamaged as error:
            ask(lambda reader: reader.projected_seq())
            logger.error("arguments are damaged, and are read one by one: %s", error)  # noqa: TRY400
        bodies: dict[bytes, bytes] = {}
        for task_id in task_ids:
            with suppress(StoreDamaged):
                bodies.update(ask(lambda reader, task_id=task_id: reader.blobs([task_id])))  # type: ignore[misc]
        return bodies

    def _give_payloads(self, unread: list[Assignment], bodies: Mapping[bytes, bytes]) -> list[Assignment]:
        damaged: list[Assignment] = []
        for assignment in unread:
            body = bodies.get(assignment.task_id)
            if isinstance(body, bytes) and digest(body) == assignment.payload_digest:
                assignment.payload = body
            else:
                damaged.append(assignment)
        message = "the stored arguments are missing, unreadable or do not match their digest: bytes changed on disk"
        self._engine.report([failed(each, "payload_damaged", message, terminal=True) for each in damaged])
        return damaged

    def _log(self, unfinished: list[AttemptFinished]) -> None:
        for event in unfinished:
            run_id = RunId(bytes=event.run_id)
            error = event.error
            said = f"{error.kind}: {error.message}\n{error.traceback}" if error is not None else ""
            if event.to == FAILED:
                logger.error("run %s failed (%s) %s", run_id, event.reason, said)
                if self.on_failure is not None:
                    self.on_failure(event.run_id)
            elif event.to == RETRY_WAIT and event.outcome not in (Outcome.SNOOZED, Outcome.INTERRUPTED):
                logger.warning("an attempt of run %s ended: %s %s", run_id, event.reason, said)

    def end(self) -> None:
        """Nothing more is released; called by the commit thread."""
        self._payloads.close()

    # --- look-ups ----------------------------------------------------------------------------------------------

    def run_lookups(self) -> None:
        """The look-up thread: one job after another."""
        while (job := self._jobs.get()) is not None:
            job(self._lookups)
        self._lookups.close()

    def look_up(self) -> bool:
        """Do one of those jobs, where no thread does; False when there is none."""
        job = None if self._jobs.empty() else self._jobs.get()
        if job is not None:
            job(self._lookups)
        return job is not None

    def stop(self) -> None:
        """End the look-up thread, after what it was asked before."""
        self._jobs.put(None)

    def _look_up(self, asking: Asking, posts: list[Post]) -> None:
        for post in posts:
            post.as_of, post.failure = 0, None
            found = _answer_of(asking, lambda reader, post=post: _attached(reader, post))  # type: ignore[misc]
            if isinstance(found, ActionQueueError):
                post.failure = found
            self._engine.repost(post)

    def _answer(self, asking: Asking, reads: list[tuple[Callable[[Reader], Any], Ticket]]) -> None:
        for question, ticket in reads:
            ticket.settle(_answer_of(asking, question))

    def _tell_ended(self, asking: Asking, awaiting: list[tuple[bytes, Ticket]]) -> None:
        for task_id, ticket in awaiting:
            ended = _answer_of(asking, lambda reader, task_id=task_id: _ended(reader, task_id))  # type: ignore[misc]
            if ended is None:  # it was retried since
                self._engine.await_task(task_id, ticket)
            else:
                ticket.settle(ended)


def _withhold(turn: Turn, withheld: list[Assignment]) -> None:
    """These attempts do not begin."""
    if withheld:
        ids = {assignment.attempt_id for assignment in withheld}
        turn.unrecorded = [each for each in turn.unrecorded if each.attempt_id not in ids]
        for assignments in turn.starts.values():
            assignments[:] = [each for each in assignments if each.attempt_id not in ids]


def _answer_of(asking: Asking, question: Callable[[Reader], Any]) -> Any:
    """The answer, or the error as a value: nobody who asked is left without either."""
    try:
        return asking.ask(question)
    except ActionQueueError as error:
        return error
    except Exception as error:
        logger.exception("a query failed")
        return ActionQueueError(f"the query failed: {type(error).__name__}: {error}")


def _attached(reader: Reader, post: Post) -> None:
    post.as_of = reader.projected_seq()
    lookups.attach(reader, post.command)


def _ended(reader: Reader, task_id: bytes) -> Ended | None:
    ended = lookups.ended(reader, task_id)
    if ended is None and not reader.runs_of(task_id):
        raise UnknownTask(f"no task {TaskId(bytes=task_id)} in this store", task_id=TaskId(bytes=task_id))
    return ended
