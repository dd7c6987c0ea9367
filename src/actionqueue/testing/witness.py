"""What the world outside the engine knows: what callers sent and were told, and what handlers saw.

Each answer is held against the ledger of what was durable at that moment: nothing may be acknowledged before it is
written, nothing refused may leave a trace, no handler may be started but by a grant that is durable and still stands.
Must not know: the engine's state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import Struct

from actionqueue.core import control
from actionqueue.core.errors import ActionQueueError, CommitUnknown, EpochLost, NotRunning
from actionqueue.core.explain import Explain, Explanation
from actionqueue.core.ids import derived_id
from actionqueue.core.plain import parsed
from actionqueue.core.schedules import PutSchedule
from actionqueue.core.signals import SendSignal
from actionqueue.core.spec import Submission
from actionqueue.core.state import FIRST_TERMINAL
from actionqueue.core.submission import RetryRun, Submit
from actionqueue.engine.work import Ended
from actionqueue.executors.port import Assignment
from actionqueue.testing.ledger import ENDED, STATE_NAMES, Ledger, Record


class Sent(Struct, eq=False):
    """One task that someone submitted. ``fate`` is ``sent``, ``created``, ``existing``, ``refused`` or ``unsure``."""

    number: int
    item: Submission
    fate: str = "sent"


class Asked:
    """The ticket of one command: what was asked, and what came of it."""

    __slots__ = ("command", "is_told", "reply", "witness")

    def __init__(self, witness: Witness, command: Any) -> None:
        self.witness = witness
        self.command = command
        self.is_told = False
        self.reply: Any = None

    def settle(self, reply: Any) -> None:
        """The answer."""
        if self.is_told:
            self.witness.problems.append(f"{self.command} was answered twice: {self.reply!r}, then {reply!r}")
        self.is_told, self.reply = True, reply
        self.witness.told(self.command, reply)


class Witness:
    """See the module's head. ``on_refusal`` hears the code of each refusal."""

    def __init__(self, ledger: Ledger, on_refusal: Callable[[str], None]) -> None:
        self.problems: list[str] = []
        self.by_number: list[Sent] = []
        self.by_task: dict[bytes, Sent] = {}
        self.by_run: dict[bytes, Sent] = {}
        self.retries: dict[bytes, bytes] = {}
        """Run ids of retries that someone asked for, with the run each retries."""
        self.requested: set[bytes] = set()
        """Runs of schedules that someone asked for now."""
        self.acknowledged: set[bytes] = set()
        """Runs whose creation was acknowledged."""
        self.undecided: dict[bytes, Any] = {}
        """Commands in the inbox, by id, until their reply is recorded."""
        self.decided: set[bytes] = set()
        self.started: dict[bytes, Assignment] = {}
        """Every attempt that a handler was started for."""
        self._ledger = ledger
        self._on_refusal = on_refusal

    # --- callers ---------------------------------------------------------------------------------------------------

    def send(self, item: Submission) -> Sent:
        """Someone is about to submit this."""
        sent = Sent(len(self.by_number), item)
        self.by_number.append(sent)
        self.by_task[item.task_id] = sent
        self.by_run[item.run_id] = sent
        return sent

    def told(self, command: Any, reply: Any) -> None:
        """The answer to a command."""
        if isinstance(reply, ActionQueueError):
            self._on_refusal(reply.code)
            self._refused(command, reply)
        elif isinstance(command, Submit | PutSchedule):
            self._created(command, reply)
        elif type(command) is RetryRun:
            self._retried(command)
        elif type(command) is control.CancelRun:
            self._canceled(command, is_news=reply)
        elif type(command) is SendSignal:
            if command.signal_id not in self._ledger.waits.ids:
                self.problems.append(f"signal {command.signal_id!r} was acknowledged and is not durable")
        elif type(command) is Explain and reply is not None:
            self._explained(command, parsed(reply, Explanation))

    def _refused(self, command: Any, error: ActionQueueError) -> None:
        if isinstance(error, CommitUnknown | EpochLost | NotRunning):
            return  # what became of it is for the next engine to say
        if isinstance(command, Submit | PutSchedule):
            for item in command.items:
                sent = self.by_run.get(item.run_id)
                if sent is not None and sent.fate == "sent":
                    sent.fate = "refused"
        elif type(command) is RetryRun and command.new_run_id not in self.acknowledged:
            self.retries.pop(command.new_run_id, None)

    def _created(self, command: Submit | PutSchedule, reply: list[tuple[bytes, bytes, bool]]) -> None:
        for item, (task_id, run_id, is_new) in zip(command.items, reply, strict=True):
            sent = self.by_run.get(item.run_id)
            if sent is None:
                continue
            if is_new:
                sent.fate = "created"
                self.acknowledged.add(run_id)
            elif sent.fate == "sent" and task_id != item.task_id:
                sent.fate = "existing"
            if task_id not in self._ledger.tasks and not self._is_pruned(run_id):
                self.problems.append(f"task {task_id.hex()} was acknowledged and is not durable")
            known = self.by_task.get(task_id)
            if known is None:
                self.problems.append(f"task {task_id.hex()} was given for {item.task_id.hex()}; nobody submitted it")
                continue
            holder = known.item
            if not is_new and (holder.handler, holder.content) != (item.handler, item.content):
                self.problems.append(
                    f"task {task_id.hex()} was given for {item.task_id.hex()}, which says something else"
                )

    def _is_pruned(self, run_id: bytes) -> bool:
        run = self._ledger.runs.get(run_id)
        return run is not None and run.is_pruned

    def _retried(self, command: RetryRun) -> None:
        self.acknowledged.add(command.new_run_id)
        run = self._ledger.runs.get(command.new_run_id)
        if run is None or run.retry_of != command.run_id:
            self.problems.append(f"the retry {command.new_run_id.hex()} was acknowledged and is not durable")

    def _canceled(self, command: control.CancelRun, *, is_news: bool) -> None:
        run = self._ledger.runs.get(command.run_id)
        stopped = run is not None and (run.state == "canceled" or run.is_canceled)
        if not stopped and is_news:
            self.problems.append(f"canceling {command.run_id.hex()} was acknowledged and is not durable")

    def _explained(self, command: Explain, explanation: Explanation) -> None:
        """It can be read, and is about a run that is durable."""
        if command.id != explanation.run_id.bytes or not str(explanation):
            self.problems.append(f"{command.id.hex()} was asked about, {explanation.run_id} explained")
        if explanation.run_id.bytes not in self._ledger.runs:
            self.problems.append(f"run {explanation.run_id} was explained, and is not durable")

    # --- the inbox -------------------------------------------------------------------------------------------------

    def put(self, command_id: bytes, command: Any) -> None:
        """Someone put a command into the inbox."""
        self.undecided[command_id] = command

    def recorded(self, command_id: bytes, reply: Any) -> None:
        """The reply to a command from the inbox is durable."""
        if command_id in self.decided:
            self.problems.append(f"the command {command_id.hex()} was decided twice")
        self.decided.add(command_id)
        command = self.undecided.pop(command_id, None)
        if command is not None:
            self.told(command, reply)
        elif isinstance(reply, ActionQueueError):
            self._on_refusal(reply.code)

    # --- handlers --------------------------------------------------------------------------------------------------

    def saw(self, a: Assignment, *, is_current: bool) -> None:
        """A handler is started. An engine that was taken over may start what it was granted before."""
        found, said = self.problems, f"attempt {a.attempt_id.hex()} of run {a.run_id.hex()}"
        run = self._ledger.runs.get(a.run_id)
        if run is None or run.starts < a.attempt_number:
            found.append(f"{said} was started and is not durable")
            return
        if a.attempt_id in self.started:
            found.append(f"{said} was started twice")
        self.started[a.attempt_id] = a
        sent = self.by_task[a.task_id]
        if a.token != run.token or a.payload != sent.item.body:
            found.append(f"{said} was given another run's token or arguments")
        if a.max_attempts != run.facts.max_attempts:
            found.append(f"{said} was told of {a.max_attempts} attempts instead of {run.facts.max_attempts}")
        if not is_current or run.open is None:
            return
        if not self._ledger.waits.was_given(a.token, a.records):
            found.append(f"{said} was not given what its chain had recorded: {a.records}")
        if (run.open, run.fence, run.starts, run.failures) != (
            a.attempt_id,
            a.fence,
            a.attempt_number,
            a.failure_count,
        ):
            found.append(f"{said} was started by a grant that does not stand, or counts otherwise than the log")

    def stepped(self, a: Assignment, name: str) -> None:
        """A handler does a step. One that lost its grant may do what is recorded meanwhile."""
        run = self._ledger.runs.get(a.run_id)
        if run is not None and run.open == a.attempt_id and self._ledger.waits.is_recorded(a.token, name):
            self.problems.append(f"step {name!r} of run {a.run_id.hex()} is done again after its record was durable")

    def heard_end(self, task_id: bytes, ended: Any) -> None:
        """Whoever waited for a task's result was told."""
        if isinstance(ended, ActionQueueError):
            self._on_refusal(ended.code)
            return
        assert isinstance(ended, Ended)
        run = self._ledger.runs.get(ended.run_id)
        if run is None or run.task != task_id or run.state != STATE_NAMES[ended.state] or ended.state < FIRST_TERMINAL:
            self.problems.append(
                f"task {task_id.hex()} was said to have ended {STATE_NAMES[ended.state]}, which is not so"
            )

    # --- at the end ------------------------------------------------------------------------------------------------

    def account(self) -> None:
        """Every run that someone was promised is there, once, and no other."""
        runs, problems = self._ledger.runs, self.problems
        for run_id in sorted(self.acknowledged):
            if run_id not in runs:
                problems.append(f"run {run_id.hex()} was acknowledged and is lost")
        for sent in self.by_number:
            if sent.fate in ("refused", "existing") and sent.item.run_id in runs:
                problems.append(f"task {sent.item.task_id.hex()} was {sent.fate}, and exists")
        for run_id, run in runs.items():
            if not (
                run_id in self.by_run or run_id in self.retries or self._came_along(run) or self._is_of_schedule(run_id)
            ):
                problems.append(f"run {run_id.hex()} is there, and nobody asked for it")
            if run.state not in ENDED:
                problems.append(f"run {run_id.hex()} is {run.state} after everything was let run to its end")
            if run.failures > run.facts.max_attempts or run.losses > run.terms.max_lost + 1:
                problems.append(f"run {run_id.hex()} failed {run.failures} times and was lost {run.losses} times")
        for task_id in self._ledger.calendar.live():
            problems.append(f"schedule {task_id.hex()} is not over")
        for command_id, command in self.undecided.items():
            problems.append(f"the command {command_id.hex()} in the inbox was never decided: {command}")

    def _came_along(self, run: Record) -> bool:
        """Whether it was made because what it depends on was retried."""
        before = run.retry_of
        return before is not None and any(derived_id(each, before) == run.id for each in self.retries)

    def _is_of_schedule(self, run_id: bytes) -> bool:
        return run_id in self.requested or run_id in self._ledger.calendar.derived
