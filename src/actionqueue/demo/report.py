"""The demo's report, as lines of text: what was found, what failed, what the kill cost, what to type next."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

from actionqueue import RunRecord
from actionqueue.demo import STORE_VARIABLE
from actionqueue.demo.jobs import FileFacts, index, publish
from actionqueue.demo.ledger import Ledger

ROWS = 4
"""In each table."""
SUBJECT_CHARACTERS = 38
FIGURE_CHARACTERS = 9
ROWS_OF_LOST = 12
MESSAGES = 6


class Report:
    """Lines about a ledger, none wider than ``width``."""

    def __init__(self, ledger: Ledger, width: int) -> None:
        self._ledger = ledger
        self._width = width

    # --- what was found ----------------------------------------------------------------------------------------

    def found(self) -> Iterator[str]:
        """Totals, and what stands out."""
        facts = list(self._ledger.facts.values())
        megabytes = sum(each.size for each in facts) / 1e6
        lines, functions = sum(each.lines for each in facts), sum(each.functions for each in facts)
        yield f"  {len(facts):,} files parsed: {megabytes:.1f} MB, {lines:,} lines, {functions:,} functions"
        away = sum(run.failure_count for run in self._ledger.of(publish))
        announced = len(self._ledger.of(publish, "completed"))
        yield f"  {announced:,} directories published; {away:,} calls met no service and were repeated"
        yield from self._table("slowest files", "ms", lambda each: each.seconds * 1e3, "{:,.1f}")
        yield from self._table("largest files", "lines", lambda each: each.lines, "{:,}")
        yield from self._table("largest functions", "lines", lambda each: each.largest_function_lines, "{:,}")

    def _table(self, title: str, unit: str, figure: Callable[[FileFacts], float], form: str) -> Iterator[str]:
        subjects = {id: self._ledger.jobs[id].subject for id in self._ledger.facts}
        top = sorted(self._ledger.facts.items(), key=lambda item: (-figure(item[1]), subjects[item[0]]))[:ROWS]
        room = self._width - FIGURE_CHARACTERS
        yield ""
        yield f"{f'  {title}':<{room}}{unit:>{FIGURE_CHARACTERS}}"
        for id, facts in top:
            text = subjects[id]
            if title == "largest functions":
                text = f"{facts.largest_function or 'none'} in {text}"
            yield f"    {shortened(text, room - 5):<{room - 4}}{form.format(figure(facts)):>{FIGURE_CHARACTERS}}"

    # --- what failed -------------------------------------------------------------------------------------------

    def failures(self) -> Iterator[str]:
        """The runs that failed for good, by handler, kind and fingerprint."""
        groups: dict[tuple[str, str, str], list[RunRecord]] = defaultdict(list)
        for task in (index, publish):
            for run in self._ledger.of(task, "failed"):
                error = run.attempts[-1].error
                groups[run.handler, run.error_kind or "?", "" if error is None else error.fingerprint].append(run)
        for (handler, kind, fingerprint), runs in sorted(groups.items(), key=lambda group: -len(group[1])):
            tried = "not tried again" if all(run.failure_count == 1 for run in runs) else "tried again in vain"
            yield f"  {len(runs)} x {kind} in {handler}, {tried} (fingerprint {fingerprint})"
            yield from self._by_message(runs)
        if not groups:
            yield "  none"

    def _by_message(self, runs: Sequence[RunRecord]) -> Iterator[str]:
        groups: dict[str, list[RunRecord]] = defaultdict(list)
        for run in runs:
            groups[_message(run)].append(run)
        largest = sorted(groups.items(), key=lambda group: -len(group[1]))
        for message, group in largest[:MESSAGES]:
            more = f" and {len(group) - 1} more" if len(group) > 1 else ""
            yield f"    {len(group):>3} x  {cut(message, self._width - 10)}"
            yield f"           {shortened(self._ledger.subject(group[0]), self._width - 11 - len(more))}{more}"
        if len(groups) > MESSAGES:
            yield f"    and {len(groups) - MESSAGES} more messages"

    # --- what the kill cost ------------------------------------------------------------------------------------

    def lost(self) -> Iterator[str]:
        """The runs that lost an attempt, each with how its attempts ended, in order."""
        lost = self._ledger.lost()
        shown = [(run, shortened(self._ledger.subject(run), SUBJECT_CHARACTERS)) for run in lost[:ROWS_OF_LOST]]
        column = max((len(subject) for _, subject in shown), default=0)
        for run, subject in shown:
            yield f"    {run.handler:<7}  {subject:<{column}}  {cut(_outcomes(run), self._width - column - 15)}"
        if len(lost) > ROWS_OF_LOST:
            yield f"    and {len(lost) - ROWS_OF_LOST} more"

    # --- what next ---------------------------------------------------------------------------------------------

    def next_commands(self, store: Path, folder: Path) -> Iterator[str]:
        """What to type, with an id of this run of the demo. ``folder`` has the engines' log."""
        program = _program()
        yield f"  export {STORE_VARIABLE}={shlex.quote(os.fspath(store))}"
        commands = [("runs --state failed", "what failed")]
        noted = self._ledger.lost() or self._ledger.of(index, "failed") or self._ledger.of(index)
        if noted:
            commands.append((f"show {noted[0].id.hex[-8:]}", "one run, in full"))
        commands += [
            ("stats", "all counts"),
            ("verify", "recheck every hash"),
            ("run actionqueue.demo.jobs:queue", "an engine, again"),
            ("top", "watch it work"),
        ]
        room = max(len(f"{program} {command}") for command, _ in commands)
        for command, what in commands:
            yield f"  {f'{program} {command}':<{room}}  # {what}"
        yield f"  less {shlex.quote(os.fspath(folder / 'engine.log'))}"
        if folder in store.parents:
            yield f"  rm -r {shlex.quote(os.fspath(folder))}"


def _program() -> str:
    """What to type for ``actionqueue`` here."""
    called = sys.argv[0] if sys.argv else ""
    if Path(called).name != "actionqueue":
        return "python -m actionqueue"
    on_path = any(Path(folder, "actionqueue").exists() for folder in os.get_exec_path())
    return "actionqueue" if on_path else shlex.quote(os.path.relpath(called))


def _outcomes(run: RunRecord) -> str:
    """How its attempts ended, in order."""
    in_a_row = [(outcome, len(list(same))) for outcome, same in groupby(attempt.outcome for attempt in run.attempts)]
    return ", ".join(f"{outcome} x {count}" if count > 1 else str(outcome) for outcome, count in in_a_row)


def _message(run: RunRecord) -> str:
    """Why its last attempt failed, without the file's name, which is shown beside it."""
    error = run.attempts[-1].error
    return "" if error is None else _PLACE.sub("", " ".join(error.message.split()))


_PLACE = re.compile(r" \([^()]*, line \d+\)$")


def cut(text: str, characters: int) -> str:
    """The text, with its end left out where it is too long."""
    return text if len(text) <= characters else text[: characters - 3] + "..."


def shortened(path: str, characters: int) -> str:
    """The path, with its beginning left out where it is too long."""
    return path if len(path) <= characters else "..." + path[-(characters - 3) :]


__all__ = ["Report", "cut", "shortened"]
