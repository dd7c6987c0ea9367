"""The judge of a store: is every byte what was written, and does the log lead to what the tables say?

Reads one snapshot on a read connection, beside a live engine or without one, and changes nothing. What it finds it
names and goes on, so that a report gives the extent of a damage; see ``Problem`` for the kinds. Memory stays bounded by
the live work, also for a large store; the snapshot is held to the end, so under a busy engine the WAL grows meanwhile.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec import Struct, msgpack

from actionqueue.core.attempts import AttemptFinished
from actionqueue.core.check import check, fingerprint
from actionqueue.core.errors import ActionQueueError, StoreDamaged, StoreTooNew
from actionqueue.core.loading import load
from actionqueue.core.machine import Machine
from actionqueue.core.rows import Facts, Row, Standing, facts_of, standing_of
from actionqueue.core.state import STATES, State
from actionqueue.core.submission import TaskSubmitted
from actionqueue.store.lock import read_holder
from actionqueue.store.port import Reader
from actionqueue.store.scan import Scan
from actionqueue.store.sqlite_reader import SQLiteReader
from actionqueue.store.wal_scan import check_wal
from actionqueue.verify_log import LogFacts, Problem, Problems, Replay, is_sealed, note_pruned, read_log
from actionqueue.verify_tables import (
    Expected,
    Tally,
    check_blobs,
    check_runs,
    check_tasks,
    explain_differences,
    named,
)

PROBLEMS_SHOWN_MAX = 50

OnProgress = Callable[[str, int, int], object]
"""Called with what is being done, how far it is, and of how much (0: not known)."""


class VerifyReport(Struct, frozen=True, kw_only=True):
    """What ``verify`` found. ``problems`` holds the first thousand of ``problem_count``.

    The log was checked from ``from_seq`` to ``to_seq``. ``replay`` says how much of it was replayed and compared with
    the tables: ``whole``, ``partial`` (its start was pruned: the tasks submitted since) or ``none``; ``replay_note``
    says it in words.
    """

    store: str
    ok: bool
    problems: tuple[Problem, ...]
    problem_count: int
    from_seq: int
    to_seq: int
    projected_seq: int
    replay: str
    replay_note: str
    counts: dict[str, int]
    seconds: float

    def __str__(self) -> str:
        counts = self.counts
        tables = f"{counts['tasks']} tasks, {counts['runs']} runs, {counts['attempts']} attempts"
        log = f"{counts['events']} events in {counts['commits']} commits"
        lines = [
            f"store     {self.store}",
            f"log       sequences {self.from_seq} to {self.to_seq}: {log}",
            f"replay    {self.replay_note}",
            f"tables    {tables}, {counts['blobs']} payloads and results, as of {self.projected_seq}",
            f"took      {self.seconds:.2f} s",
        ]
        shown = self.problems[:PROBLEMS_SHOWN_MAX]
        lines += [f"{problem.kind:<10}{problem.place}: {problem.message}" for problem in shown]
        if self.problem_count > len(shown):
            lines.append(f"… and {self.problem_count - len(shown)} more")
        lines.append("ok        everything is as it was written" if self.ok else _remedy(self.problem_count))
        return "\n".join(lines)


def _remedy(count: int) -> str:
    return (
        f"damaged   {count} problems. Copy the store and its -wal file aside before anything else; "
        "`actionqueue restore` brings a backup back."
    )


def verify(
    store: str | os.PathLike[str] | Reader, *, name: str | None = None, progress: OnProgress | None = None
) -> VerifyReport:
    """Check everything in a store: its structure, every checksum and digest, the log's chain, and that the log replayed
    gives the tables.

    ``store`` is a path or an open reader, ``name`` what the report calls it. Takes time in proportion to the store.
    Raises ``StoreUnavailable`` when there is none, ``NotAStore``, ``StoreTooNew``; damage is no error but what the
    report is about.
    """
    began = time.monotonic()
    if isinstance(store, str | os.PathLike):
        return _verify_path(Path(store), progress or _silent, began)
    return _verify_reader(store, name or "a reader", Problems(), progress or _silent, began)


def _silent(phase: str, done: int, total: int) -> None:
    del phase, done, total


def _verify_path(path: Path, progress: OnProgress, began: float) -> VerifyReport:
    found = Problems()
    try:
        if read_holder(path) is None:  # with an engine on it the WAL is being written
            check_wal(Path(f"{path}-wal"))
        reader = SQLiteReader(path)
    except StoreDamaged as error:
        found.add("structure", str(error.facts.get("place", "file")), error.message)
        return _report(
            str(path), found, LogFacts(), Tally(), 0, "none", "nothing was replayed: the file is damaged", began
        )
    try:
        return _verify_reader(reader, str(path), found, progress, began)
    finally:
        reader.close()


def _verify_reader(reader: Reader, name: str, found: Problems, progress: OnProgress, began: float) -> VerifyReport:
    with reader.scan() as scan:
        return _Judge(scan, name, found, progress).judge(began)


def _report(
    name: str, found: Problems, log: LogFacts, tally: Tally, projected_seq: int, replay: str, note: str, began: float
) -> VerifyReport:
    return VerifyReport(
        store=name,
        ok=found.count == 0,
        problems=tuple(found.kept),
        problem_count=found.count,
        from_seq=log.from_seq,
        to_seq=log.to_seq,
        projected_seq=projected_seq,
        replay=replay,
        replay_note=note,
        counts={
            "commits": log.commits,
            "events": log.events,
            "tasks": tally.tasks,
            "runs": tally.runs,
            "attempts": tally.attempts,
            "blobs": tally.blobs,
            "steps": tally.steps,
        },
        seconds=round(time.monotonic() - began, 3),
    )


class _Judge:
    """One verification; its steps in order. A step that fails leaves a problem, and the next one is taken."""

    def __init__(self, scan: Scan, name: str, found: Problems, progress: OnProgress) -> None:
        self._scan = scan
        self._name = name
        self._found = found
        self._progress = progress
        self._log = LogFacts()
        self._tally = Tally()
        self._singles: dict[str, dict[str, Any]] = {"meta": {}, "facts": {}}
        self._tail: list[Any] = []
        self._tail_pruned = LogFacts()
        self._replay: Replay | None = None
        self._since: int | None = None

    def judge(self, began: float) -> VerifyReport:
        """All steps."""
        self._step("meta", self._read_singles)
        projected_seq = self._singles["meta"].get("projected_seq", 0)
        try:
            self._step("commits", lambda: self._read_log(projected_seq))
            self._progress("tables", 0, 0)
            tasks, runs, attempts = (self._expected(table) for table in ("tasks", "runs", "attempts"))
            self._step("tasks", lambda: self._check_tasks(tasks))
            self._step("runs", lambda: check_runs(self._scan, runs, attempts, self._tally, self._found))
            self._step("blobs", lambda: check_blobs(self._scan, self._tail_bodies(), self._tally, self._found))
            self._step("log", lambda: self._explain(tasks.differing | runs.differing | attempts.differing))
            self._step("replies", self._check_replies)
            self._step("entries", self._check_entries)
            self._step("steps", self._check_steps)
            self._step("facts", lambda: self._check_facts(projected_seq))
            self._step("live rows", self._check_live)
            self._step("structure", self._check_structure)
            kind, note = self._replay_note(projected_seq)
        finally:
            if self._replay is not None:
                self._replay.close().dispose()
        return _report(self._name, self._found, self._log, self._tally, projected_seq, kind, note, began)

    def _step(self, place: str, work: Callable[[], object]) -> None:
        try:
            work()
        except StoreTooNew:
            raise
        except StoreDamaged as error:
            self._found.add("structure", place, error.message)
        except ActionQueueError:
            raise
        except Exception as error:  # what the code of a reader never met: rows of other shapes than were ever written
            self._found.add("structure", place, f"cannot be made out: {type(error).__name__}: {error}")

    # --- steps -------------------------------------------------------------------------------------------------

    def _read_singles(self) -> None:
        for table, values in self._singles.items():
            for row in self._scan.rows(table):
                if not is_sealed(row):
                    self._found.add("checksum", f"{table} {row[0]}", "its row does not match its checksum")
                values[row[0]] = row[1]
        if not isinstance(self._singles["meta"].get("projected_seq"), int):
            self._found.add("structure", "meta", "the sequence of the tables (projected_seq) is missing")
            self._singles["meta"]["projected_seq"] = 0

    def _read_log(self, projected_seq: int) -> None:
        log = self._log
        replay: Replay | None = None
        try:
            for commit, events in read_log(self._scan, log, self._found):
                if replay is None:
                    partial = log.anchored
                    replay = self._replay = Replay(
                        after_seq=commit.first_seq - 1 if partial else 0, until_seq=projected_seq, partial=partial
                    )
                    self._since = self._anchor_at()
                note_pruned(events, log)
                rest = replay.feed(commit, events, self._found)
                if commit.last_seq > projected_seq:
                    note_pruned(rest, self._tail_pruned)
                    self._tail += rest
                self._progress("log", commit.last_seq, projected_seq)
        finally:
            if replay is not None and not self._is_replayed(projected_seq):
                replay.close().dispose()
                self._replay = None
        if replay is not None and self._replay is not None:
            replay.flush()
        if log.to_seq < projected_seq:
            self._found.add(
                "sequence",
                "commits",
                f"the log ends at {log.to_seq}, and the tables are as of sequence {projected_seq}",
            )

    def _is_replayed(self, projected_seq: int) -> bool:
        replay = self._replay
        return replay is not None and not replay.failed and replay.reached == projected_seq

    def _anchor_at(self) -> int | None:
        at = None
        for anchor in self._scan.rows("anchors"):
            at = anchor[2]
        return at

    def _expected(self, table: str) -> Expected:
        return Expected(table, self._scan, self._replay, self._log, self._found)

    def _check_tasks(self, tasks: Expected) -> None:
        tags = check_tasks(self._scan, tasks, self._since, self._tally, self._found)
        there = sum(1 for _ in self._scan.rows("run_tags"))
        if there != tags:
            self._found.add("accounting", "run_tags", f"there are {there} tags of runs, and should be {tags}")

    def _explain(self, differing: dict[tuple[str, bytes], Row]) -> None:
        """Replay once more, to say in which columns rows differ."""
        replay = self._replay
        if replay is None or not differing:
            return
        again = Replay(
            after_seq=self._log.from_seq - 1,
            until_seq=replay.reached,
            partial=replay.partial,
            wanted=frozenset(differing),
        )
        for commit, events in read_log(self._scan, LogFacts(), Problems()):
            again.feed(commit, events, Problems())
        again.flush()
        explain_differences(differing, again, self._found)
        again.close().dispose()

    def _tail_bodies(self) -> dict[bytes, tuple[bytes, int]]:
        """Digest and size of the payloads and results that are stored, and are not yet in the row they belong to."""
        bodies: dict[bytes, tuple[bytes, int]] = {}
        for event in self._tail:
            if type(event) is TaskSubmitted:
                bodies[event.task_id] = (event.payload_digest, event.payload_bytes)
            elif type(event) is AttemptFinished and event.output is not None:
                bodies[event.run_id] = (event.output.digest, event.output.bytes_count)
        return bodies

    def _check_replies(self) -> None:
        for row in self._scan.rows("replies"):
            if not is_sealed(row):
                self._found.add("checksum", f"replies {row[0].hex()}", "its row does not match its checksum")

    def _check_entries(self) -> None:
        for row in self._scan.rows("entries"):
            if not is_sealed(row):
                self._found.add("checksum", f"entries {row[0]} {row[1]}", "its row does not match its checksum")

    def _check_steps(self) -> None:
        """Each record's row, and that its chain is there: in the tables, or in the log's tail."""
        begun = {getattr(event, "run_id", None) for event in self._tail}
        for row in self._scan.rows("steps"):
            self._tally.steps += 1
            if not is_sealed(row):
                self._found.add("checksum", f"steps {named(row[0])} {row[1]}", "its row does not match its checksum")
            elif row[0] not in begun and not self._scan.has("runs", row[0]):
                self._found.add("accounting", f"steps {named(row[0])} {row[1]}", "it belongs to no run")

    def _check_facts(self, projected_seq: int) -> None:
        """The engine's counters against the rows, and against what replay counts."""
        stored = self._singles["facts"]
        if "facts" not in stored:
            if self._tally.tasks or projected_seq:
                self._found.add("structure", "facts", "the counters are missing")
            return
        facts = msgpack.decode(stored["facts"], type=Facts)
        pruned = self._tail_pruned.pruned
        counts = [self._tally.by_state[code] for code in range(len(STATES))]
        for n in range(3):
            counts[len(STATES) - 3 + n] += pruned[n + 1]
        for code, state in enumerate(STATES):
            if facts.counts[code] != counts[code]:
                self._found.add(
                    "accounting",
                    "facts",
                    f"{facts.counts[code]} runs are counted as {state.value}, {counts[code]} are there",
                )
        if facts.tasks_total != self._tally.tasks + pruned[0]:
            self._found.add(
                "accounting",
                "facts",
                f"{facts.tasks_total} tasks are counted, {self._tally.tasks + pruned[0]} are there",
            )
        if facts.last_seq != projected_seq:
            self._found.add(
                "accounting", "facts", f"it is as of sequence {facts.last_seq}, the tables of {projected_seq}"
            )
        if self._replay is not None and not self._replay.partial:
            self._compare_facts(facts, self._replay.machine.state)

    def _compare_facts(self, facts: Facts, state: State) -> None:
        theirs = facts_of(state)
        facts.blocked = theirs.blocked = 0  # depends on the handlers and slots of the engine's process
        if facts != theirs:
            self._found.add("replay", "facts", f"it is {facts}, the log leads to {theirs}")
        body = self._singles["facts"].get("standing")
        standing = Standing([], [], None) if body is None else msgpack.decode(body, type=Standing)
        replayed = standing_of(state)
        for name in ("pauses", "declarations", "epoch"):
            mine, others = getattr(standing, name), getattr(replayed, name)
            if mine != others:
                self._found.add("replay", "facts standing", f"{name}: {mine}, the log leads to {others}")

    def _check_live(self) -> None:
        """The state that an engine would open with: its invariants, now and after the log's tail."""
        scan, facts = self._scan, self._singles["facts"]
        entries = (row[:-1] for row in scan.rows("entries"))
        state = load(facts, scan.live("tasks"), scan.live("runs"), entries)
        try:
            self._check_state(state, "as of the tables")
            replay = self._replay
            if replay is not None and not replay.partial and fingerprint(state) != fingerprint(replay.machine.state):
                self._found.add("replay", "live rows", "the live rows load as another state than the log leads to")
            if not self._log.broken and self._apply_tail(state):
                self._check_state(state, "at the end of the log")
        finally:
            state.dispose()

    def _apply_tail(self, state: State) -> bool:
        """What the tables have not reached, as an engine would at its opening; whether there was any, and it fits."""
        machine = Machine(state)
        for event in self._tail:
            try:
                machine.apply(event)
            except Exception as error:
                what = f"{type(event).__name__} at sequence {state.last_seq}"
                self._found.add("replay", "commits", f"{what} cannot be applied: {type(error).__name__}: {error}")
                return False
        return bool(self._tail)

    def _check_state(self, state: State, when: str) -> None:
        for problem in check(state):
            self._found.add("invariant", when, problem)

    def _check_structure(self) -> None:
        self._progress("structure", 0, 0)
        for problem in self._scan.structure_problems():
            self._found.add("structure", "file", problem)

    def _replay_note(self, projected_seq: int) -> tuple[str, str]:
        replay, log = self._replay, self._log
        if replay is None:
            if log.commits == 0 and not projected_seq:
                return "whole", "nothing was ever written"
            why = "the log is damaged" if log.broken else "the log could not be replayed"
            return "none", f"not compared with the tables: {why}"
        if replay.partial:
            begins = f"from sequence {log.from_seq}, where the log begins after pruning"
            return "partial", f"{begins}: compared with the tables for the tasks submitted since"
        return "whole", f"from the beginning; compared with the tables as of {projected_seq}"


__all__ = ["OnProgress", "Problem", "VerifyReport", "verify"]
