"""Judging the log: its chain, its numbers, and whether replaying it gives the tables.

Knows: commits and events, and the core that applies them. Must not know: what else is in the tables.

Replay goes from the log's start to exactly ``projected_seq``, projecting rows on the way as the engine does, a few
thousand at a time. Of each row only a digest is kept (``Scratch``: on disk beyond memory), the last one of each entity;
the tables are compared with them when they are read. A log whose start was pruned is replayed for the tasks submitted
after it: what concerns others is passed over, and columns that depend on the whole past are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import Any

from msgspec import Struct, field, msgpack
from msgspec.structs import replace

from actionqueue.core import (
    attempts,
    batches,
    control,
    dependencies,
    epochs,
    graph,
    schedules,
    signals,
    submission,
    waits,
)
from actionqueue.core.errors import StoreDamaged
from actionqueue.core.machine import Machine
from actionqueue.core.rows import (
    RUN_COLUMNS,
    TASK_COLUMNS,
    Projection,
    Row,
    check_row,
    latest_attempt_row,
    opened_run,
    opened_task,
    project,
)
from actionqueue.core.state import CODE_OF, FIRST_TERMINAL, State
from actionqueue.store.codec import CHAIN_START, chain, decode_events
from actionqueue.store.port import Commit
from actionqueue.store.scan import Scan, Scratch

EVENTS_PER_FLUSH = 5_000
PROBLEMS_KEPT_MAX = 1_000
EXPECTED_ROWS_KEPT_MAX = 50
"""Of so many rows that differ it is said in which columns."""

_pack = msgpack.Encoder().encode
_READY_ORDER = RUN_COLUMNS.index("ready_order")
_STATE = RUN_COLUMNS.index("state")


class Problem(Struct, frozen=True):
    """Something that is not as it was written, or does not hold.

    ``kind`` is one of ``sequence``, ``chain``, ``checksum``, ``digest``, ``structure``, ``replay``, ``invariant``,
    ``accounting``; ``place`` is a table and a key in it.
    """

    kind: str
    place: str
    message: str


class Problems(Struct):
    """What was found: the first thousand, and how many in all."""

    kept: list[Problem] = field(default_factory=list)
    count: int = 0

    def add(self, kind: str, place: str, message: str) -> None:
        """One more."""
        self.count += 1
        if len(self.kept) < PROBLEMS_KEPT_MAX:
            self.kept.append(Problem(kind, place, message))


class LogFacts(Struct):
    """What reading the log found: where it begins and ends, how much it holds, and what it says was pruned."""

    from_seq: int = 1
    to_seq: int = 0
    commits: int = 0
    events: int = 0
    anchored: bool = False
    broken: bool = False
    """Whether anything is wrong with it; what follows the first such place is not replayed."""
    pruned: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    """Tasks, and runs completed, failed, canceled."""


_TABLE_OF_WIDTH = {len(TASK_COLUMNS): "tasks", len(RUN_COLUMNS): "runs"}


def is_sealed(row: Row) -> bool:
    """Whether the row matches its checksum."""
    try:
        check_row(row, _TABLE_OF_WIDTH.get(len(row), ""))
    except (StoreDamaged, UnicodeError, TypeError, OverflowError):
        return False
    return True


# --- the chain --------------------------------------------------------------------------------------------------


def read_log(scan: Scan, facts: LogFacts, found: Problems) -> Iterator[tuple[Commit, list[Any]]]:
    """The commits with their events, as far as they are whole. Reads on behind damage, to name all of it.

    Raises ``StoreTooNew`` for an event of a later release.
    """
    seq, hashed = _start(scan, facts, found)
    for row in scan.rows("commits"):
        last_seq, first_seq, at, epoch, version, own_hash, _, body = row
        place = f"commits {last_seq}"
        whole = True
        if not is_sealed(row[:7]):
            whole = False
            found.add("checksum", place, "its row does not match its checksum")
        if first_seq != seq + 1:
            whole = False
            found.add("sequence", place, _gap(first_seq, seq, at_start=facts.commits == 0 and not facts.anchored))
        elif chain(hashed, body) != own_hash:
            whole = False
            found.add("chain", place, "its events do not match its hash")
        events = _events_of(place, version, body, last_seq - first_seq + 1, found) if whole else []
        facts.commits += 1
        facts.events += len(events)
        facts.broken = facts.broken or not whole or not events
        if facts.commits == 1:
            facts.from_seq = first_seq
        seq, hashed = last_seq, own_hash
        facts.to_seq = seq
        if not facts.broken:
            yield Commit(first_seq, last_seq, at, epoch, version, body, own_hash), events


def _start(scan: Scan, facts: LogFacts, found: Problems) -> tuple[int, bytes]:
    anchor = None
    for anchor in scan.rows("anchors"):
        if not is_sealed(anchor):
            facts.broken = True
            found.add("checksum", f"anchors {anchor[0]}", "its row does not match its checksum")
    if anchor is None:
        return 0, CHAIN_START
    facts.anchored = True
    facts.to_seq = anchor[0]
    return anchor[0], anchor[1]


def _gap(first_seq: int, seq: int, *, at_start: bool) -> str:
    if at_start:
        return f"the log begins at sequence {first_seq}, and no anchor says that what was before it was pruned"
    if first_seq > seq + 1:
        return f"sequences {seq + 1} to {first_seq - 1} are missing before it"
    return f"it begins at {first_seq}, and the commit before it ends at {seq}"


def _events_of(place: str, version: int, body: bytes, count: int, found: Problems) -> list[Any]:
    try:
        events = decode_events(body, version)
    except StoreDamaged as error:
        found.add("structure", place, error.message)
        return []
    if len(events) != count:
        found.add("sequence", place, f"it spans {count} sequences and holds {len(events)} events")
        return []
    return events


# --- replay -----------------------------------------------------------------------------------------------------


class Replay:
    """Applies the log's events to an empty machine and keeps the digests of the rows they make.

    ``partial`` says that the log's start was pruned. ``wanted`` are (table, key) of rows to keep whole, in ``rows``.
    """

    def __init__(
        self, *, after_seq: int, until_seq: int, partial: bool, wanted: frozenset[tuple[str, bytes]] = frozenset()
    ) -> None:
        self.machine = Machine()
        self.partial = partial
        self.rows: dict[tuple[str, bytes], Row] = {}
        self.failed = False
        self.scratch = Scratch()
        self.chosen_again: set[bytes] = set()
        """Ids that callers chose for a task after the one that had them was pruned."""
        self.beyond: set[bytes] = set()
        """Tasks that a pruned log does not tell enough of: they depend on some submitted before its beginning."""
        self._until_seq = until_seq
        self._wanted = wanted
        self._since_flush = 0
        self.machine.state.last_seq = after_seq

    @property
    def reached(self) -> int:
        """The sequence replayed to."""
        return self.machine.state.last_seq

    def feed(self, commit: Commit, events: list[Any], found: Problems) -> list[Any]:
        """Apply the events up to the projection's sequence; the others are returned."""
        state = self.machine.state
        if self.failed or state.last_seq + 1 != commit.first_seq:
            return events
        count = max(0, min(len(events), self._until_seq - commit.first_seq + 1))
        for n in range(count):
            event = events[n]
            if self.partial:
                for task_id in beyond(event, state, self._is_known):
                    forget(state, task_id)
                    self.scratch.forget(task_id)
                    self.beyond.add(task_id)
                event = concerning(event, state, self._is_known)
                if event is None and type(events[n]) is submission.TaskSubmitted:
                    self.beyond.add(events[n].task_id)
            try:
                if event is None:
                    state.last_seq += 1
                    state.last_at = events[n].at
                else:
                    if type(event) is submission.TaskSubmitted:
                        self._note_chosen(event)
                    self.machine.apply(event)
            except Exception as error:
                self.failed = True
                what = f"{type(events[n]).__name__} at sequence {commit.first_seq + n}"
                found.add(
                    "replay", f"commits {commit.last_seq}", f"{what} cannot be applied: {type(error).__name__}: {error}"
                )
                return []
        self._since_flush += count
        if self._since_flush >= EVENTS_PER_FLUSH:
            self.flush()
        return events[count:]

    def _note_chosen(self, event: submission.TaskSubmitted) -> None:
        """Only a submission with content to compare may have an id that was another task's before."""
        if event.rare is not None and event.rare.content is not None:
            task_id = event.task_id
            if self._is_known(task_id):
                self.chosen_again.add(task_id)

    def _is_known(self, task_id: bytes) -> bool:
        return task_id in self.machine.state.dirty_tasks or self.scratch.has("tasks", task_id)

    def flush(self) -> None:
        """Project what was touched, and keep its digests."""
        self._since_flush = 0
        state = self.machine.state
        projection = _opened(project(state))
        state.recent.clear()
        state.recent_before.clear()
        put, partial = self.scratch.put, self.partial
        put("tasks", [(row[0], digest_of("tasks", row, partial=partial), b"") for row in projection.tasks])
        put("runs", [(row[0], digest_of("runs", row, partial=partial), note_of(row)) for row in projection.runs])
        put(
            "attempts",
            [(attempt_key(row), digest_of("attempts", row, partial=partial), b"") for row in projection.attempts],
        )
        if self._wanted:
            self._keep(projection)

    def _keep(self, projection: Projection) -> None:
        for table, rows in (("tasks", projection.tasks), ("runs", projection.runs), ("attempts", projection.attempts)):
            for row in rows:
                key = attempt_key(row) if table == "attempts" else row[0]
                if (table, key) in self._wanted:
                    self.rows[table, key] = row

    def close(self) -> State:
        """Let the scratch go; the state is the caller's to dispose of."""
        self.scratch.close()
        return self.machine.state


def concerning(event: Any, state: State, is_known: Callable[[bytes], bool]) -> Any:
    """The event, as far as it concerns tasks submitted since a pruned log's beginning; None when it does not.

    ``is_known`` says whether a task that has ended is one of those.
    """
    match event:
        case submission.TaskSubmitted():
            depends = None if event.rare is None else event.rare.depends
            on = () if depends is None else depends.on
            return event if all(each in state.tasks or is_known(each) for each in on) else None
        case submission.RunAdded():
            return event if event.task_id in state.tasks or is_known(event.task_id) else None
        case attempts.RunsPromoted() | waits.WaitsEnded():
            ids = [run_id for run_id in event.run_ids if run_id in state.runs]
            return replace(event, run_ids=ids) if ids else None
        case schedules.ScheduleRetired():
            return event if event.task_id in state.schedules else None
        case control.TaskCanceled() | schedules.RunDerived() | schedules.BackfillAsked() | schedules.RunRequested():
            return event if event.task_id in state.tasks else None
        case dependencies.DependenciesAdded():
            return event if event.task_id in state.tasks else None
        case control.Paused() | control.Resumed():
            return None
        case epochs.EngineOpened():
            changed = event.wall_change
            return epochs.WallMoved(event.at, event.wall_shift, changed) if changed else None
        case epochs.WallMoved() | signals.SignalKept() | signals.SignalsExpired():
            return event
        case epochs.EngineClosed() | epochs.HandlersDeclared() | epochs.TasksPruned() | batches.BatchOpened():
            return None
        case _:
            return event if event.run_id in state.runs else None


def beyond(event: Any, state: State, is_known: Callable[[bytes], bool]) -> list[bytes]:
    """Tasks that cannot be followed any further: made to wait for one submitted before a pruned log's beginning, of which
    nothing is known; and those that depend on them."""
    if type(event) is not dependencies.DependenciesAdded or event.task_id not in state.tasks:
        return []
    if all(each in state.tasks or is_known(each) for each in event.on):
        return []
    found = [event.task_id]
    for task_id in found:  # grows
        found += [each for each in state.dependents.get(task_id, ()) if each not in found]
    return found


def forget(state: State, task_id: bytes) -> None:
    """As if nothing had been known of that live task."""
    task = state.tasks.pop(task_id)
    for run in task.live_runs():
        state.places.leave(run)
        state.counts[CODE_OF[run.state]] -= 1
        del state.runs[run.id_bytes]
    for run_id, run in list(state.dirty_runs.items()):
        if run.task is task:
            del state.dirty_runs[run_id]
    state.dirty_tasks.pop(task_id, None)
    if task.extra.depends is not None:
        graph.leave(state, task)


def _opened(projection: Projection) -> Projection:
    runs = [opened_run(stored) for stored in projection.runs]
    latest = [row for row in map(latest_attempt_row, runs) if row is not None]
    tasks = [opened_task(stored) for stored in projection.tasks]
    return replace(projection, tasks=tasks, runs=runs, attempts=[*projection.attempts, *latest])


def attempt_key(row: Row) -> bytes:
    """The key of a row of ``attempts``, in the order of (run, number)."""
    run_id, number = row[0], row[1]
    return bytes(run_id) + int(number).to_bytes(4, "big")


def digest_of(table: str, row: Row, *, partial: bool) -> bytes:
    """A digest of all columns but the checksum, and of those that a partial replay cannot know."""
    values = row[:-1]
    if partial and table == "runs":
        values = (*values[:_READY_ORDER], 0, *values[_READY_ORDER + 1 :])
    try:
        return blake2b(_pack(values), digest_size=16).digest()
    except (UnicodeError, TypeError, OverflowError):
        return b"unencodable"


def note_of(run_row: Row) -> bytes:
    """What is remembered of a run beside its digest: its task and its state."""
    return bytes(run_row[1]) + bytes([run_row[_STATE]])


def has_ended(note: bytes) -> bool:
    """Whether the note is of a run in a terminal state."""
    return note[16] >= FIRST_TERMINAL


def note_pruned(events: list[Any], facts: LogFacts) -> None:
    """Add what these events say was pruned."""
    for event in events:
        if type(event) is epochs.TasksPruned:
            for n, count in enumerate((event.tasks, event.completed, event.failed, event.canceled)):
                facts.pruned[n] += count
