"""The world's own account of dependencies: which runs may not go on yet, and which end because others did.

Found out anew after every event, by looking at every waiting run and at every run of the tasks it depends on, where the
engine keeps indexes and walks along them. Must not know: the engine's state.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from actionqueue.core import dependencies, submission
from actionqueue.core.spec import Depends

if TYPE_CHECKING:
    from actionqueue.testing.ledger import Ledger, Record

_ENDED = ("completed", "failed", "canceled")


class Chart:
    """See the module's head."""

    def __init__(self, ledger: Ledger) -> None:
        self.depends: dict[bytes, Depends] = {}
        self.held: dict[bytes, Record] = {}
        """Runs that wait for the tasks that theirs depends on."""
        self._ledger = ledger

    # --- events -----------------------------------------------------------------------------------------------------

    def submitted(self, event: submission.TaskSubmitted, run: Record) -> None:
        """A task that may depend on others."""
        rare = event.rare
        if rare is not None and rare.depends is not None:
            self.depends[event.task_id] = rare.depends
            self._begin(run, rare.failed, is_new=True)

    def added(self, event: submission.RunAdded, run: Record) -> None:
        """A task that had ended is tried again, after what it depends on."""
        if event.image is not None and event.task_id in self.depends:
            self._begin(run, b"", is_new=True)

    def given_more(self, event: dependencies.DependenciesAdded) -> None:
        """A task that has not started depends on more."""
        before = self.depends.get(event.task_id, Depends(()))
        on = (*before.on, *event.on)
        self.depends[event.task_id] = Depends(on, before.on_failure, before.partial, before.outputs)
        for run_id in self._ledger.tasks[event.task_id].runs:
            run = self._ledger.runs[run_id]
            if run.state not in _ENDED:
                if run.starts:
                    self._ledger.problems.append(f"run {run_id.hex()} is made to wait after it was started")
                self._begin(run, event.failed, is_new=False)

    def _begin(self, run: Record, failed: bytes, *, is_new: bool) -> None:
        on = self.depends[run.task].on
        is_bad = [each for each in on if self._is_over(each) and not self._is_fine(run, each)]
        if bool(is_bad) != bool(failed):
            self._ledger.problems.append(
                f"run {run.id.hex()} depends on {len(is_bad)} tasks that ended badly, or not so"
            )
        if failed:
            self._ledger.move(run, "canceled")
            return
        if any(not self._is_over(each) for each in on):
            self.held[run.id] = run
            run.is_held = True
            if is_new:
                run.state = "scheduled"  # whatever the instant is

    # --- after every event ------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Let go of what has nothing left to wait for, and end what waited in vain, until nothing changes."""
        changed = bool(self.held)
        while changed:
            changed = False
            for run in list(self.held.values()):
                if run.state in _ENDED:
                    self._let_go(run)
                    continue
                on = self.depends[run.task].on
                if any(self._is_over(each) and not self._is_fine(run, each) for each in on):
                    self._let_go(run)
                    self._ledger.move(run, "canceled")
                    changed = True
                elif all(self._is_over(each) for each in on):
                    self._let_go(run)

    def _let_go(self, run: Record) -> None:
        del self.held[run.id]
        run.is_held = False

    def pruned(self, task_ids: Iterable[bytes]) -> None:
        """Tasks are deleted; none that a live one depends on may be."""
        gone = set(task_ids)
        for run in self._ledger.live.values():
            for upstream in gone.intersection(self.depends[run.task].on if run.task in self.depends else ()):
                self._ledger.problems.append(f"task {upstream.hex()} was pruned while run {run.id.hex()} depends on it")
        for task_id in gone:
            self.depends.pop(task_id, None)

    def _is_over(self, task_id: bytes) -> bool:
        ledger = self._ledger
        facts = ledger.tasks.get(task_id)
        if facts is None:
            return True
        return ledger.calendar.is_over(task_id) and all(ledger.runs[each].state in _ENDED for each in facts.runs)

    def _is_fine(self, run: Record, task_id: bytes) -> bool:
        """Whether the newest of each chain of retries completed, or what ``run`` makes do with."""
        depends = self.depends[run.task]
        facts = self._ledger.tasks.get(task_id)
        if facts is None or depends.on_failure == "run":
            return True
        newest = {self._ledger.runs[each].token: self._ledger.runs[each].state for each in facts.runs}
        ended = list(newest.values())
        if depends.partial:
            return "completed" in ended
        was_cut_short = self._ledger.calendar.was_canceled(task_id)
        return not was_cut_short and all(state == "completed" for state in ended)
