"""An account of the occurrences of schedules, apart from the engine's: kept by the ledger as it reads events.

Rules in the simulated world are so plain (every so many seconds) that when they occur needs no timetable: the account
finds it by steps of seconds, and holds every event against it. Must not know: the core's state and how it decides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import Struct

from actionqueue.core import schedules
from actionqueue.core.rules import RepeatRule, Rule
from actionqueue.core.submission import TaskSubmitted
from actionqueue.testing.behaviour import SECOND_US

if TYPE_CHECKING:
    from actionqueue.testing.ledger import Ledger, Record


class Account(Struct, eq=False):
    """One schedule: its rule, and the occurrences that have been accounted for."""

    rule: Rule
    base: int
    name: str
    pending: bytes | None
    cursor: int
    count: int = 1
    left_to_fill: int = 0
    retired_at: int | None = None
    is_canceled: bool = False

    @property
    def every_us(self) -> int:
        """How far apart its occurrences are."""
        rule = self.rule
        if isinstance(rule, RepeatRule):
            return rule.every_us
        every_s = int(rule.expression.partition(" ")[0].removeprefix("*/"))
        assert 60 % every_s == 0, "else a minute would not begin with an occurrence"
        return every_s * SECOND_US

    def after(self, nominal: int, until: int | None = None) -> int | None:
        """The occurrence after that one; None where none is, or none up to ``until``."""
        rule, every_us = self.rule, self.every_us
        if isinstance(rule, RepeatRule):
            following = nominal + every_us
            if following > self.base + (rule.count - 1) * every_us:
                return None
        else:
            following = (nominal // every_us + 1) * every_us
        return None if until is not None and following > until else following


class Calendar:
    """The accounts of all schedules, kept by the ledger as it reads events."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._accounts: dict[bytes, Account] = {}
        self.derived: set[bytes] = set()
        """Runs that nobody asked for by name: of occurrences, and to fill ranges."""
        self._wall_shift = 0

    def _shift(self, account: Account) -> int:
        """How far what it follows is ahead of the instants of events: cron follows the wall clock."""
        return 0 if isinstance(account.rule, RepeatRule) else self._wall_shift

    def wall_is(self, wall_shift: int) -> None:
        """The wall clock is so far ahead: what is ahead falls due otherwise."""
        change, self._wall_shift = wall_shift - self._wall_shift, wall_shift
        for account in self._accounts.values():
            if account.pending is not None and not isinstance(account.rule, RepeatRule):
                self._ledger.runs[account.pending].due_at -= change

    def live(self) -> list[bytes]:
        """The tasks of schedules that may still occur, or have runs."""
        runs = self._ledger.live
        tasks = {run.task for run in runs.values()}
        return [task_id for task_id, each in self._accounts.items() if each.retired_at is None and task_id in tasks]

    def _problem(self, event: Any, text: str) -> None:
        self._ledger.problems.append(f"schedule {event.task_id.hex()}: {text} ({event})")

    def submitted(self, event: TaskSubmitted, run: Record) -> None:
        """A schedule with its first run."""
        assert event.rare is not None
        rule = event.rare.rule
        if rule is None:
            return
        account = Account(rule, event.at, event.rare.schedule_name, event.run_id, event.due_at)
        first = event.at if isinstance(rule, RepeatRule) else account.after(event.at + self._wall_shift)
        if event.due_at != first:
            self._problem(event, f"it first occurs at {first}")
        for other in self._accounts.values():
            if account.name and other.name == account.name and other.retired_at is None:
                self._problem(event, "its name is another's")
        self._accounts[event.task_id] = account
        self._is_of(run, account, event.due_at)

    def was_canceled(self, task_id: bytes) -> bool:
        """Whether it is a schedule that someone canceled."""
        account = self._accounts.get(task_id)
        return account is not None and account.is_canceled

    def is_over(self, task_id: bytes) -> bool:
        """Whether nothing of it is to come."""
        account = self._accounts.get(task_id)
        if account is None or account.is_canceled:
            return True
        rule = account.rule
        most = rule.count if isinstance(rule, RepeatRule) else rule.max_occurrences
        has_more = (most is None or account.count < most) and account.after(
            account.cursor, account.retired_at
        ) is not None
        return not (account.left_to_fill or has_more)

    def left(self, run_id: bytes, task_id: bytes) -> None:
        """A run is not the pending one any more."""
        account = self._accounts.get(task_id)
        if account is not None and account.pending == run_id:
            account.pending = None

    def derived_run(self, event: schedules.RunDerived) -> None:
        """The next occurrence has its run."""
        account = self._accounts[event.task_id]
        if account.pending is not None:
            self._problem(event, "a second run ahead")
        if event.nominal != account.after(account.cursor, account.retired_at):
            self._problem(event, f"the occurrence after {account.cursor} is {account.after(account.cursor)}")
        account.count += 1
        account.cursor, account.pending = event.nominal, event.run_id
        self._check_count(event, account)
        run = self._ledger.add_occurrence(event.run_id, event.task_id, event.nominal)
        self._is_of(run, account, event.nominal)
        self.derived.add(event.run_id)

    def _is_of(self, run: Record, account: Account, nominal: int) -> None:
        run.occurrence, run.due_at = nominal, nominal - self._shift(account)
        run.jitter_us = 0 if isinstance(account.rule, RepeatRule) else account.rule.jitter_us

    def _check_count(self, event: Any, account: Account) -> None:
        rule = account.rule
        most = rule.count if isinstance(rule, RepeatRule) else rule.max_occurrences
        if most is not None and account.count > most:
            self._problem(event, f"{account.count} occurrences of at most {most}")

    def skipped(self, event: schedules.OccurrencesSkipped) -> None:
        """A range does not happen: as many as there are in it, from the pending one on."""
        account, run = self._accounts[event.task_id], self._ledger.runs[event.run_id]
        if account.pending != event.run_id or (event.count and event.first != account.cursor):
            self._problem(event, f"the next occurrence is {account.cursor}, of run {account.pending!r}")
        nominal = account.cursor + event.count * account.every_us
        if event.count and event.until != nominal - account.every_us:
            self._problem(event, f"the last of those is {nominal - account.every_us}")
        if event.nominal != nominal or event.count < 0:
            self._problem(event, f"{nominal} comes after those")
        if event.at + self._shift(account) < event.first:
            self._problem(event, "it was not due yet")
        account.count += event.count
        account.cursor = event.nominal
        self._check_count(event, account)
        self._is_of(run, account, event.nominal)
        if event.ends:
            account.pending = None
            self._ledger.move(run, "canceled")

    def waits(self, event: schedules.OccurrenceWaits) -> None:
        """One that is due waits for those before it."""
        run, account = self._ledger.runs[event.run_id], self._accounts[event.task_id]
        if run.state != "scheduled" or run.due_at > event.at:
            self._problem(event, "it is not due")
        if account.rule.overlap not in ("queue", "cancel_running") or not self._before(run):
            self._problem(event, "there is nothing to wait for")
        run.waits = True
        self.left(event.run_id, event.task_id)

    def _before(self, run: Record) -> list[Record]:
        """Live runs of its schedule that came up before it."""
        mine = (self._ledger.runs[run_id] for run_id in run.facts.runs)
        return [
            each
            for each in mine
            if each is not run
            and each.id in self._ledger.live
            and (each.state != "scheduled" or (each.waits and each.order < run.order))
        ]

    def comes_up(self, run: Record, at: int) -> None:
        """An occurrence is promoted or started from Scheduled: those before it have ended, unless it may overlap."""
        account = self._accounts.get(run.task)
        if account is None or run.occurrence is None:
            return
        self.left(run.id, run.task)
        before = [
            each for each in self._before(run) if not each.is_moved
        ]  # nor does it wait for one that comes up with it
        if account.rule.overlap != "allow" and not run.is_moved and before:
            self._ledger.problems.append(f"run {run.id.hex()} comes up while one before it is live, at {at}")
        run.waits = False

    def requested(self, event: schedules.RunRequested) -> None:
        """Someone asked for it."""
        run = self._ledger.add_occurrence(event.run_id, event.task_id, min(event.nominal, event.at), state="ready")
        run.is_requested = True
        if event.backfill:
            self.derived.add(event.run_id)
            account = self._accounts[event.task_id]
            account.left_to_fill -= 1
            if account.left_to_fill < 0:
                self._problem(event, "more than were asked for")

    def asked(self, event: schedules.BackfillAsked) -> None:
        """A range is to be filled."""
        self._accounts[event.task_id].left_to_fill += event.count

    def retired(self, event: schedules.ScheduleRetired) -> None:
        """It occurs no more after now; the run ahead, if it is of later, ends."""
        account = self._accounts[event.task_id]
        account.retired_at, account.left_to_fill = event.at + self._shift(account), 0
        run = None if account.pending is None else self._ledger.runs[account.pending]
        if run is not None and run.occurrence is not None and run.occurrence > account.retired_at:
            account.pending = None
            self._ledger.move(run, "canceled")

    def task_canceled(self, task_id: bytes, at: int) -> None:
        """All of it is over."""
        account = self._accounts.get(task_id)
        if account is not None:
            account.retired_at, account.left_to_fill, account.pending = at, 0, None
            account.is_canceled = True
