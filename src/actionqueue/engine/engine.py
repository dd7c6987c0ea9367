"""The engine: the writer on its thread, the committer on another, and what happens once a turn is durable.

::

    post ──► mailbox ──► writer thread: decide, apply ──► turn ──► commit thread: one transaction, one sync
                                                                        │ durable
                             replies, starts, stops, results, look-ups ◄┘

While one turn is being committed the next one fills. Nothing of a turn leaves before its commit returned. Failures of the
store: *unavailable* holds the same turn and tries it again while new commands are refused; *unknown* or *epoch lost*
fences the engine: every caller is told, handlers are stopped, nothing is written any more.

The threads are loops around steps: ``tick`` decides and hands over, ``committer.commit`` makes a turn durable,
``committer.release`` lets out what it implies, ``effects.look_up`` makes one look-up. After ``take_store`` the steps can
be taken one by one on a single thread, in any order that the threads could take them in; the simulator does that.
"""

from __future__ import annotations

import logging
import os
import random
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from actionqueue.core.epochs import SERVED
from actionqueue.core.errors import (
    ActionQueueError,
    EpochLost,
    NotRunning,
    Overloaded,
    StoreDamaged,
    StoreUnavailable,
)
from actionqueue.core.loading import load
from actionqueue.core.machine import Command, Event, Machine
from actionqueue.core.retry import AttemptTerms
from actionqueue.core.rules import rule_problems
from actionqueue.core.state import PauseMark
from actionqueue.core.submission import TaskSubmitted
from actionqueue.core.version import __version__
from actionqueue.engine.clock import Clock, Doubt, SystemClock
from actionqueue.engine.committer import Committer
from actionqueue.engine.effects import Effects
from actionqueue.engine.tickets import ThreadTicket, Ticket
from actionqueue.engine.wake import Wake
from actionqueue.engine.work import Post, Turn
from actionqueue.engine.writer import Writer
from actionqueue.executors.port import Executor, Report, Runnable
from actionqueue.store.codec import decode_events
from actionqueue.store.port import Opened, Reader, Store

logger = logging.getLogger("actionqueue")

MAILBOX_POSTS_MAX = 100_000
"""Commands that wait for the writer; beyond it they are refused with ``Overloaded``."""
TURN_EVENTS_MAX = 20_000
"""Events that gather for the next commit while one is under way; then the writer waits for it."""
WAIT_S_MAX = 1.0
"""The writer looks around at least this often, whatever it was told to wait for."""
JOIN_S = 10.0


class Engine:
    """One open store and everything that runs on it. Made by the application layer, which supplies the parts."""

    def __init__(
        self,
        store: Store,
        executors: Sequence[Executor],
        next_id: Callable[[int], bytes],
        *,
        queues: Mapping[str, int] | None = None,
        stop_grace_us: int = 60_000_000,
        live_runs_max: int = 5_000_000,
        aging_us: int = 0,
        clock: Callable[[int], Clock] | None = None,
        wake: Wake | None = None,
        draw: Callable[[], float] = random.random,
        process: tuple[int, str] | None = None,
    ) -> None:
        """``clock`` makes the clock, which must not show an instant before the one it is given. ``draw`` is where chance
        comes from, ``process`` the pid and host that are recorded (None: this one's)."""
        self.store = store
        self.executors = {executor.name: executor for executor in executors}
        self.queues = dict(queues or {})
        self.runnables: dict[str, tuple[Runnable, str, AttemptTerms]] = {}
        self.bounds: dict[str, int | None] = {}
        """How many attempts of a handler may run at once, for each that is registered (None: not bounded by itself)."""
        self.aging_us = aging_us
        self.trouble: ActionQueueError | None = None
        """What keeps the store from being written now, if anything."""
        self.fenced: ActionQueueError | None = None
        """Why the engine has stopped writing for good, if it has."""
        self.on_fenced: Callable[[ActionQueueError], None] | None = None
        self.on_served: Callable[[Post], None] | None = None
        """Who takes the commands that are served beside the writer (``epochs.SERVED``)."""
        self.doubt = Doubt()
        self.opened: Opened | None = None
        self._next_id = next_id
        self._stop_grace_us = stop_grace_us
        self._live_runs_max = live_runs_max
        self._make_clock = clock
        self._wake = wake or Wake()
        self._draw = draw
        self._process = process
        self.committer = Committer(self)
        self._committing = False
        self._ending = threading.RLock()
        self._closing = False
        self._closed = False
        self._threads: dict[str, threading.Thread] = {}
        self._begun: list[Executor] = []
        self._idle_tickets: list[Ticket] = []
        self.quiet = threading.Event()
        """What waits between two tries or looks; set when the engine is closed, so that nobody does any more."""

    # --- opening -----------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Take the store and start the threads."""
        self.take_store()
        try:
            self._start_threads()
        except BaseException:
            self._abort_opening()
            raise

    def take_store(self) -> None:
        """Take the store, load its live state, and declare what the last epoch left open lost."""
        pid, host = self._process or (os.getpid(), socket.gethostname())
        opened = self.store.open(pid=pid, host=host)
        try:
            self._begin(opened, self._load(opened), pid, host)
        except BaseException:
            self._abort_opening()
            raise

    def _begin(self, opened: Opened, machine: Machine, pid: int, host: str) -> None:
        self.opened = opened
        self.committer.continue_after(opened)
        self.clock = (self._make_clock or SystemClock)(machine.state.last_at)
        self.writer = Writer(machine, self._next_id, stop_grace_us=self._stop_grace_us)
        self.writer.runnables = self.runnables
        self.writer.tell_calls = frozenset(each.name for each in self.executors.values() if each.tells_calls)
        self.effects = Effects(self)
        self.writer.recent = self.effects.recent
        _tell_of_unknown_rules(machine)
        places = machine.state.places
        for executor in self.executors.values():
            places.set_executor(executor.name, executor.slots)
        for name, capacity in self.queues.items():
            places.set_queue(name, capacity)
        places.set_aging(self.aging_us)
        now = self.clock.now_us()
        turn = self.writer.turn
        turn.events += machine.open(now, opened.epoch, pid, host, __version__, self._draw(), self.clock.wall_us() - now)
        if opened.restored:
            self._pause_restored(machine, now, turn)
        for runnable, executor_name, terms in self.runnables.values():
            places.register(runnable.name, executor_name, terms, self.bounds[runnable.name])
        self.writer.ask_projection()
        for executor in self.executors.values():
            self._begun.append(executor)
            executor.begin(self.report)

    def _abort_opening(self) -> None:
        """Opening failed: nothing was committed, and all that it began ends."""
        self.opened = None
        self._closing = self._closed = True
        self._wake.set()
        if "commit" in self._threads:
            self.committer.stop()
        if "lookups" in self._threads:
            self.effects.stop()
        for thread in self._threads.values():
            self._join(thread)
        self._close_executors()
        self.store.close()

    def _close_executors(self) -> None:
        for executor in self._begun:
            try:
                executor.close(1.0)
            except Exception:  # the store is let go all the same
                logger.exception("the %s executor could not be closed", executor.name)

    def _load(self, opened: Opened) -> Machine:
        machine = Machine(load(*self.store.live_rows()), live_runs_max=self._live_runs_max)
        reader = self.store.reader()
        try:
            for commit in reader.commits(machine.state.last_seq):
                events = decode_events(commit.events, commit.version)
                skip = machine.state.last_seq + 1 - commit.first_seq
                _replay(machine, events[skip:], place=f"commits {commit.last_seq}")
        finally:
            reader.close()
        if machine.state.last_seq != opened.last_seq:
            raise StoreDamaged(
                f"the log ends at {opened.last_seq}, its replay at {machine.state.last_seq}; run `actionqueue verify`",
                place="commits",
            )
        return machine

    def _pause_restored(self, machine: Machine, now: int, turn: Turn) -> None:
        from actionqueue.core.control import Paused

        if ("engine", "") not in machine.state.pauses:
            event = Paused(now, "engine", "", "restored backup")
            machine.apply(event)
            turn.events.append(event)
        logger.warning(
            "this store was restored from a backup: it opens paused, because work done since the backup may be repeated. "
            "`actionqueue resume` starts it."
        )

    def _start_threads(self) -> None:
        """Each after those it hands things to, so that nothing is begun that they could not carry out."""
        for name, target in (
            ("lookups", self.effects.run_lookups),
            ("commit", self.committer.run),
            ("writer", self._run_writer),
        ):
            thread = threading.Thread(target=target, name=f"actionqueue-{name}", daemon=True)
            thread.start()
            self._threads[name] = thread

    @property
    def projected_seq(self) -> int:
        """The sequence the store's tables are exact as of."""
        return self.committer.projected_seq

    def committed(self) -> None:
        """A turn is durable, and the next may be handed over; called by the committer."""
        self._committing = False
        self._wake.set()

    def register(self, runnable: Runnable, executor: str, terms: AttemptTerms, concurrency: int | None = None) -> None:
        """Run ``runnable`` on that executor from now on, at most ``concurrency`` attempts at once."""
        name = runnable.name
        self.runnables[name] = (runnable, executor, terms)
        self.bounds[name] = concurrency
        if self.opened is not None and not self._closed:
            self.writer.ask(lambda turn: self.writer.machine.state.places.register(name, executor, terms, concurrency))
            self._wake.set()

    # --- from any thread ---------------------------------------------------------------------------------------

    def post(self, command: Command, ticket: Ticket | None = None, command_id: bytes | None = None) -> None:
        """Send a command; its ticket is settled once what it did is durable. Raises when it cannot be taken now."""
        refusal = self.refusal()
        if refusal is not None:
            raise refusal
        self.repost(Post(command, ticket, None, command_id))

    def refusal(self) -> ActionQueueError | None:
        """Why a new command is refused now, if it is."""
        if self.fenced is not None:
            return self.fenced
        if self._closing:
            return NotRunning("the engine is closing; it takes no more commands")
        if self.trouble is not None:
            return StoreUnavailable(
                f"the store cannot be written now: {self.trouble.message}. Nothing acknowledged is lost; try again later.",
                cause=self.trouble.message,
            )
        if len(self.writer.mailbox) >= MAILBOX_POSTS_MAX:
            return Overloaded(
                f"{MAILBOX_POSTS_MAX} commands are waiting; try again later",
                limit="mailbox_posts_max",
                maximum=MAILBOX_POSTS_MAX,
            )
        return None

    def report(self, reports: Sequence[Report]) -> None:
        """What executors say of attempts; taken in any condition, it waits while the store is unavailable."""
        self.writer.mailbox.extend(reports)
        self._rang()

    def repost(self, post: Post) -> None:
        """A command comes from the inbox, or comes back with its facts looked up."""
        if self.on_served is not None and isinstance(post.command, SERVED):
            self.on_served(post)
            return
        self.writer.post(post)
        self._rang()

    def answer(self, post: Post, reply: Any) -> None:
        """Give the reply to a command that was served beside the writer; recorded, where it came through the inbox."""
        if self._closed:
            if post.ticket is not None:
                post.ticket.settle(NotRunning("the engine was closed"))
            return

        def question(turn: Turn) -> None:
            if post.command_id is not None:
                turn.replies.append((post.command_id, reply))
            if post.ticket is not None:
                turn.settled.append((post.ticket, reply))

        self.ask(question)

    def ask(self, question: Callable[[Turn], None]) -> None:
        """Call ``question`` on the writer's thread, between two commands."""
        self.writer.ask(question)
        self._rang()

    def _rang(self) -> None:
        """Something was put where the writer finds it; if the writer has ended, it is answered here."""
        self._wake.set()
        writer = self._threads.get("writer")
        if self._closed and writer is not None and not writer.is_alive():
            self.refuse_the_rest()

    def await_task(self, task_id: bytes, ticket: Ticket) -> None:
        """Settle ``ticket`` with how the task's newest run ended, once it has."""
        self.writer.await_task(task_id, ticket)
        self._rang()

    def await_idle(self, ticket: Ticket) -> None:
        """Settle ``ticket`` when nothing is dispatchable, running or backing off and everything is durable."""
        self.ask(lambda turn: self._idle_tickets.append(ticket))

    def read(self, question: Callable[[Reader], Any], ticket: Ticket) -> None:
        """Ask a reader that sees everything decided so far, on the look-up thread."""
        if self.fenced is not None:
            raise self.fenced
        if self._closed:
            raise NotRunning("the engine was closed")

        def ask(turn: Turn) -> None:
            self.writer.ask_projection()
            turn.reads.append((question, ticket))

        self.ask(ask)

    def begin_lookup(self) -> None:
        """What ends from now on is remembered until a post with an ``as_of`` arrives (or ``end_lookup``); waits."""
        ticket = ThreadTicket()

        def question(turn: Turn) -> None:
            self.writer.count_lookup(1)
            turn.settled.append((ticket, None))

        self.ask(question)
        ticket.wait()
        ticket.result()

    def end_lookup(self) -> None:
        """Nothing came of a look-up that was begun."""
        self.ask(lambda turn: self.writer.count_lookup(-1))

    def flush(self, ticket: Ticket) -> None:
        """Settle ``ticket`` when everything decided so far is durable and projected."""

        def question(turn: Turn) -> None:
            self.writer.ask_projection()
            turn.settled.append((ticket, None))

        self.ask(question)

    # --- the writer's thread -----------------------------------------------------------------------------------

    def _run_writer(self) -> None:
        try:
            self._write()
        except BaseException as error:
            logger.exception("the writer failed; the engine stops, what was acknowledged is safe")
            self.fence(StoreDamaged(f"the writer failed: {type(error).__name__}: {error}", place="writer"))
        while not self._closed:  # fenced: whoever still comes is told so, on the thread that owns what they wait in
            self.refuse_the_rest()
            self._wake.wait(WAIT_S_MAX)

    def _write(self) -> None:
        clock, wake = self.clock, self._wake
        while not self._closed and self.fenced is None:
            if self.tick():
                continue
            due = self.next_wake()
            wait_s = WAIT_S_MAX if due is None else max(0.0, (due - clock.now_us()) / 1e6)
            wake.wait(min(wait_s, WAIT_S_MAX))

    def tick(self) -> bool:
        """Decide what there is to decide and hand it over if nothing is being committed. Whether there is more at once."""
        writer, now, is_full = self.writer, self.clock.now_us(), self._is_full()
        if not is_full:
            writer.step(now)
        if not self._committing:
            self._hand_over(now)
        return writer.has_work() and not is_full

    def next_wake(self) -> int | None:
        """The instant at which to tick again although nobody rings."""
        return None if self._is_full() else self.writer.next_wake(committing=self._committing)

    def _is_full(self) -> bool:
        return self._committing and len(self.writer.turn.events) > TURN_EVENTS_MAX

    def _hand_over(self, now: int) -> None:
        if self._idle_tickets and self.writer.is_idle():
            self.writer.ask_projection()
            self.writer.turn.settled += [(ticket, None) for ticket in self._idle_tickets]
            self._idle_tickets.clear()
        turn = self.writer.take_turn(now)
        if turn is not None:
            self._committing = True
            self.committer.take(turn)

    # --- ending ------------------------------------------------------------------------------------------------

    def fence(self, error: ActionQueueError) -> None:
        """Stop writing for good and stop the handlers; from any thread. The writer's thread tells everyone who waits."""
        with self._ending:
            if self.fenced is not None:
                return
            self.fenced = error
        if not isinstance(error, EpochLost):
            logger.critical("the engine has stopped writing: %s", error)
        self._closing = True
        self._wake.set()
        for executor in self.executors.values():
            try:
                for attempt_id in executor.running():
                    executor.stop(attempt_id, "interrupted", force=True)
            except Exception:  # whoever waits for the engine is told all the same
                logger.exception("the %s executor could not stop what runs", executor.name)
        if self.on_fenced is not None:
            self.on_fenced(error)

    def close(self, drain_timeout_s: float = 20.0) -> None:
        """Drain: start nothing more, wait for what runs, stop what does not end in time, and let the store go.

        Threads end in the order in which they feed each other, so that nothing is handed to one that has ended.
        """
        if self.opened is None or self._closed:
            return
        if self.fenced is None:
            from actionqueue.engine.draining import drain

            drain(self, drain_timeout_s)
        self.let_go()

    def let_go(self) -> None:
        """End what runs as it stands, and let the store go: the rest of closing, after the drain."""
        self._closing = True
        self._closed = True
        self.quiet.set()
        self._wake.set()
        self._join(self._threads.get("writer"))
        self.committer.stop()
        self._join(self._threads.get("commit"))
        self.effects.stop()
        self._join(self._threads.get("lookups"))
        self._close_executors()
        self.refuse_the_rest()
        self.store.close()
        self.writer.machine.state.dispose()

    def _join(self, thread: threading.Thread | None) -> None:
        if thread is not None and thread is not threading.current_thread():
            thread.join(JOIN_S)

    def refuse_the_rest(self) -> None:
        """Nobody who waits for the writer is left without an answer, now that it decides nothing any more."""
        error = self.fenced or NotRunning("the engine was closed")
        with self._ending:
            writer, turn = self.writer, self.writer.turn
            while writer.questions:
                try:
                    writer.questions.popleft()[0](turn)
                except Exception:
                    logger.exception("a question to the writer failed")
            tickets, self._idle_tickets = self._idle_tickets, []
            self.effects.refuse(turn, error)
            self.effects.refuse_all_waiting(error, tickets)

    @property
    def is_closed(self) -> bool:
        """Whether the engine has let go, or is about to."""
        return self._closed

    def has_unequipped_lanes(self) -> bool:
        """Whether any lane has no executor: a cheap look, from any thread."""
        return any(lane.executor is None for lane in list(self.writer.machine.state.places.lanes.values()))

    def set_expiry_suspended(self, suspended: bool) -> None:  # noqa: FBT001 - one flag, passed on
        """Whether deadlines to start are left alone because the clock is in doubt."""
        self.writer.machine.state.places.timers.suspended = suspended

    def between_commits(self, job: Callable[[], object]) -> None:
        """Do something with the store's writing side while no commit is under way (from another thread; waits)."""
        ticket = ThreadTicket()
        self.ask(lambda turn: turn.store_jobs.append((job, ticket)))
        if ticket.wait(60.0):
            ticket.result()

    def stop_taking(self) -> None:
        """From now on new commands are refused."""
        self._closing = True

    def pauses(self) -> list[PauseMark]:
        """The pauses in force."""
        return list(self.writer.machine.state.pauses.values())


def _tell_of_unknown_rules(machine: Machine) -> None:
    """Schedules that another machine made, and of which this one cannot tell when they occur: they wait."""
    for schedule in machine.state.schedules.values():
        problems = {} if schedule.over else rule_problems(schedule.rule)
        for name, problem in problems.items():
            logger.warning(
                "schedule %s waits, for this machine cannot tell when it occurs: %s %s",
                schedule.name or schedule.task_id.hex(), name, problem,
            )  # fmt: skip


def _replay(machine: Machine, events: Sequence[Event], *, place: str) -> None:
    """Apply what was logged. Sound bytes that tell what cannot be are damage too."""
    state = machine.state
    try:
        for event in events:
            if type(event) is TaskSubmitted and (event.task_id in state.tasks or event.run_id in state.runs):
                raise ValueError(f"task {event.task_id.hex()} is submitted twice")  # applying it would go unnoticed
            machine.apply(event)
    except Exception as error:
        raise StoreDamaged(
            f"the log tells what cannot be, about sequence {state.last_seq}: {type(error).__name__}: {error}. "
            "Run `actionqueue verify` for the extent; `actionqueue restore` brings a backup back.",
            place=place,
        ) from error
