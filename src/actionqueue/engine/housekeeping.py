"""What the engine does now and then: watch the clock and the handlers' loop, warn, prune, keep the files small.

On a thread of its own, once a second, and when someone asks (``serve``); it asks the writer for what touches the state
and never holds it up.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from msgspec import msgpack

from actionqueue.core.epochs import ConfirmClock, FollowWall, Prune, PruneHistory
from actionqueue.core.errors import ActionQueueError, CommitUnknown, Conflict, NotRunning
from actionqueue.core.rows import Row
from actionqueue.core.submission import RareFields
from actionqueue.engine.tickets import ThreadTicket
from actionqueue.engine.work import Post, Turn

if TYPE_CHECKING:
    from actionqueue.engine.engine import Engine

logger = logging.getLogger("actionqueue")

PERIOD_S = 1.0
STALL_S = 1.0
WALL_DRIFT_US_MAX = 1_000_000
"""How far the wall clock may be from where cron schedules believe it to be."""
MISSING_HANDLER_S = 10.0
PRUNE_TASKS_PER_STEP = 500
PRUNE_COMMITS_PER_STEP = 200
PRUNE_ROUND_S_MAX = 1.0
"""How long one round of pruning may take; rounds are five seconds apart."""
FINISHED_TASKS_MAX = 20_000_000
"""Finished tasks that are kept, whatever their age; the oldest go first."""
LOG_EVENTS_MAX = 50_000_000
"""Events that the log keeps, whatever their age: about 2 GB."""
PRUNE_S_MAX = 2.0
"""How long pruning that someone asked for goes on before it answers that there is more."""


class Housekeeping:
    """Once a second, until stopped."""

    def __init__(
        self,
        engine: Engine,
        retention_us: int,
        log_retention_us: int,
        *,
        finished_tasks_max: int = FINISHED_TASKS_MAX,
        log_events_max: int = LOG_EVENTS_MAX,
    ) -> None:
        self._engine = engine
        self._finished_tasks_max = finished_tasks_max
        self._log_events_max = log_events_max
        self._retention_us = retention_us
        self._log_retention_us = log_retention_us
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="actionqueue-housekeeping", daemon=True)
        self._warned: set[str] = set()
        self._missing_since: dict[str, int] = {}
        self._doubted = False
        self._followed = engine.writer.machine.state.wall_shift
        self._stalled = False
        self._asked: SimpleQueue[Post | None] = SimpleQueue()
        self._passed_over = 0
        """Old tasks that must stay, at the head of what could be pruned."""

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, waiting for a step under way."""
        self._stopped.set()
        self._asked.put(None)
        self._thread.join(5.0)
        self._refuse_asked()

    def _refuse_asked(self) -> None:
        with suppress(Empty):
            while True:
                post = self._asked.get_nowait()
                if post is not None and post.ticket is not None:
                    post.ticket.settle(NotRunning("the engine is closing; it takes no more commands"))

    def serve(self, post: Post) -> None:
        """Do what is asked of the engine itself, on this thread, and answer; from any thread."""
        self._asked.put(post)
        if self._stopped.is_set():
            self._refuse_asked()

    def serve_asked(self) -> None:
        """Do what was asked by now, where no thread does."""
        with suppress(Empty):
            while (post := self._asked.get_nowait()) is not None:
                self._serve(post)

    def _wait(self) -> bool:
        """Serve what is asked until the next round is due; False when it is time to end."""
        due_s = time.monotonic() + PERIOD_S
        while not self._stopped.is_set():
            left_s = due_s - time.monotonic()
            if left_s <= 0:
                return True
            try:
                post = self._asked.get(timeout=left_s)
            except Empty:
                return True
            if post is not None:
                self._serve(post)
        return False

    def _serve(self, post: Post) -> None:
        reply: Any = None
        try:
            match post.command:
                case ConfirmClock():
                    self.confirm_clock(post.command.by)
                case PruneHistory():
                    reply = self.prune_asked(post.command)
                case _:
                    raise AssertionError(f"{type(post.command).__name__} is decided by the writer")
        except ActionQueueError as error:
            reply = error
        except Exception as error:
            logger.exception("housekeeping failed")
            reply = ActionQueueError(f"{type(error).__name__}: {error}")
        self._engine.answer(post, reply)

    def _run(self) -> None:
        steps = 0
        while self._wait():
            steps += 1
            for duty in (self.watch_clock, self.watch_loop, self.warn_of_missing_handlers):
                self._do(duty)
            if steps % 5 == 0 and self._engine.trouble is None and self._engine.fenced is None:
                for duty in (self.maintain, self.prune):
                    self._do(duty)

    def _do(self, duty: object) -> None:
        try:
            duty()  # type: ignore[operator]
        except ActionQueueError as error:
            logger.warning("housekeeping: %s", error)
        except Exception:
            logger.exception("housekeeping failed")

    def watch_clock(self) -> None:
        """While wall clock and engine clock disagree, nothing is deleted or expired by age."""
        engine = self._engine
        now, wall = engine.clock.now_us(), engine.clock.wall_us()
        doubted = engine.doubt.look(now_us=now, wall_us=wall)
        if doubted and not self._doubted:
            logger.warning(
                "the wall clock was set (it differs by %.0f s from elapsed time): pruning and expiry wait until it has "
                "been stable for 10 minutes; `actionqueue resume --clock` confirms it",
                (wall - now) / 1e6,
            )
        elif self._doubted and not doubted:
            logger.warning("the wall clock is trusted again")
        self._doubted = doubted
        engine.set_expiry_suspended(doubted)
        self._follow_wall(wall - now)

    def _follow_wall(self, wall_shift: int) -> None:
        """Cron schedules are told when the wall clock was set, or has drifted by more than a second."""
        engine = self._engine
        if abs(wall_shift - self._followed) > WALL_DRIFT_US_MAX and engine.refusal() is None:
            engine.post(FollowWall(wall_shift))
            self._followed = wall_shift

    def confirm_clock(self, by: str) -> None:
        """Someone vouches for the clock: deleting and expiring go on."""
        engine = self._engine
        engine.doubt.confirm(now_us=engine.clock.now_us(), wall_us=engine.clock.wall_us())
        if self._doubted:
            logger.warning("the wall clock was confirmed (by %s)", by)
        self._doubted = False
        engine.set_expiry_suspended(False)

    def watch_loop(self) -> None:
        """Name the handler that blocks the handlers' event loop."""
        executor = self._engine.executors.get("async")
        heartbeat = getattr(executor, "heartbeat", None)
        if executor is None or heartbeat is None:
            return
        stalled_s = heartbeat()
        if stalled_s > STALL_S and not self._stalled:
            control = executor.current()  # type: ignore[attr-defined]
            named = "a handler" if control is None else f"handler {control.assignment.runnable.name!r}"
            logger.warning(
                "%s has blocked the event loop for %.1f s; other async handlers wait. Send work that does not await to "
                "a plain function or executor='process'.",
                named,
                stalled_s,
            )
        self._stalled = stalled_s > STALL_S

    def warn_of_missing_handlers(self) -> None:
        """Runs that wait for a handler nobody registered are named after 10 s."""
        engine = self._engine
        ticket = ThreadTicket()
        missing: list[str] = []

        def look(turn: Turn) -> None:
            lanes = engine.writer.machine.state.places.all_lanes()
            missing.extend({lane.handler for lane in lanes if lane.ready and lane.executor is None})
            turn.settled.append((ticket, None))

        if all(each in self._warned for each in missing) and not engine.has_unequipped_lanes():
            return
        engine.ask(look)
        if not ticket.wait(5.0):
            return
        now = engine.clock.now_us()
        for handler in missing:
            since = self._missing_since.setdefault(handler, now)
            if handler not in self._warned and now - since >= MISSING_HANDLER_S * 1e6:
                self._warned.add(handler)
                logger.warning(
                    "runs wait for a handler named %r, which this engine does not have; registered are: %s",
                    handler,
                    ", ".join(sorted(engine.runnables)) or "none",
                )

    def maintain(self) -> None:
        """Checkpoint, give pages back."""
        try:
            self._engine.store.maintain()
        except CommitUnknown as error:
            self._engine.fence(error)

    def prune(self) -> None:
        """Delete what is older than its retention, or too much, a little at a time and for a bounded time."""
        engine = self._engine
        if self._doubted:
            return
        now = engine.clock.now_us()
        ends_s = time.monotonic() + PRUNE_ROUND_S_MAX
        more = True
        while more and time.monotonic() < ends_s and not self._stopped.is_set():
            _, more_tasks = self.prune_tasks(now if self._has_too_many() else now - self._retention_us)
            _, more_log = self.prune_log(now if self._has_too_long_a_log() else now - self._log_retention_us)
            more = more_tasks or more_log
        engine.between_commits(lambda: engine.store.prune_replies(now))

    def _has_too_many(self) -> bool:
        state = self._engine.writer.machine.state
        return state.tasks_total - len(state.tasks) > self._finished_tasks_max

    def _has_too_long_a_log(self) -> bool:
        reader = self._engine.store.reader()
        try:
            anchor = reader.anchor()
        finally:
            reader.close()
        return self._engine.projected_seq - (0 if anchor is None else anchor.seq) > self._log_events_max

    def prune_asked(self, command: PruneHistory) -> tuple[int, int, bool]:
        """What someone asked for, for a few seconds: how many tasks and commits, and whether there is more."""
        if self._doubted:
            raise Conflict(
                "the wall clock was set, so nothing is deleted by age; `actionqueue resume --clock` confirms the clock"
            )
        deadline_s = time.monotonic() + PRUNE_S_MAX
        tasks, more_tasks = self._repeat(self.prune_tasks, command.finished_before, deadline_s)
        commits, more_commits = self._repeat(self.prune_log, command.log_before, deadline_s)
        return tasks, commits, more_tasks or more_commits

    def _repeat(
        self, prune: Callable[[int], tuple[int, bool]], before: int | None, deadline_s: float
    ) -> tuple[int, bool]:
        total, more = 0, before is not None
        while before is not None and more and time.monotonic() < deadline_s and not self._stopped.is_set():
            count, more = prune(before)
            total += count
        return total, more

    def prune_log(self, before: int) -> tuple[int, bool]:
        """Drop some commits made before an instant from the log's start; how many, and whether there may be more."""
        engine = self._engine
        counts: list[int] = []
        engine.between_commits(
            lambda: counts.append(engine.store.prune_log(engine.projected_seq, before, PRUNE_COMMITS_PER_STEP))
        )
        dropped = sum(counts)
        return dropped, dropped == PRUNE_COMMITS_PER_STEP

    def _finished(self, before: int) -> tuple[int, list[Row]]:
        """Old tasks, and the sequence their rows are at least as new as."""
        reader = self._engine.store.reader()
        try:
            return reader.projected_seq(), reader.finished_before(before, PRUNE_TASKS_PER_STEP, self._passed_over)
        finally:
            reader.close()

    def prune_tasks(self, finished_before: int) -> tuple[int, bool]:
        """Delete some tasks that finished before an instant; how many, and whether there may be more.

        Tasks whose idempotency key lives on, or that live ones depend on, are passed over, and looked at again when the
        end was reached.
        """
        engine = self._engine
        engine.begin_lookup()
        try:
            command, more = self._choose(finished_before)
        except BaseException:
            engine.end_lookup()
            raise
        if not command.tasks:
            engine.end_lookup()
            return 0, more
        ticket = ThreadTicket()
        engine.repost(Post(command, ticket, command.as_of))
        if not ticket.wait(30.0):
            return 0, False
        try:
            ticket.result()
        except Conflict:  # one of them was retried meanwhile: the next choice is without it
            written = ThreadTicket()
            engine.flush(written)
            written.wait(30.0)
            return 0, True
        return command.tasks, more

    def _choose(self, finished_before: int) -> tuple[Prune, bool]:
        as_of, rows = self._finished(finished_before)
        more = len(rows) == PRUNE_TASKS_PER_STEP
        now = self._engine.clock.now_us()
        needed = self._engine.writer.machine.state.dependents  # only asked for single keys, from this thread
        doomed = [row for row in rows if not _key_lives(row, now) and row[0] not in needed]
        self._passed_over = self._passed_over + len(rows) - len(doomed) if more else 0
        ended = (sum(row[9] for row in doomed), sum(row[10] for row in doomed), sum(row[11] for row in doomed))
        return Prune(len(doomed), *ended, finished_before, [row[0] for row in doomed], as_of), more


def _key_lives(row: tuple[Any, ...], now: int) -> bool:
    """Whether an idempotency key was given a lifetime that has not run out."""
    if row[15] is None:
        return False
    until = msgpack.decode(row[15], type=RareFields).key_until
    return until is not None and until > now
