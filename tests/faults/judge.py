"""What may be found in a store after anything at all: everything that was promised, or a refusal that helps.

``Promises`` follows the marks of a workload: what was acknowledged, and what each commit would make of log and state.
``judge`` opens a store as an engine does and compares. It knows two good outcomes and raises on any other:

    whole      the log ends at the last acknowledged commit or at one that was under way, with its hash; the state that
               is recovered is the one the writer had there; nobody can have the epoch twice; every command of a client
               is in the inbox or decided
    refused    a typed error that names the place and a way out
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from actionqueue.core.check import check, fingerprint
from actionqueue.core.errors import ActionQueueError, NotAStore, StoreDamaged, StoreReadOnly, StoreTooNew
from actionqueue.core.state import State
from actionqueue.store.inbox import Inbox, inbox_path
from actionqueue.store.sqlite import SQLiteStore
from actionqueue.store.sqlite_connection import translating
from tests.engine.rig import recovered

WAYS_OUT = (
    "actionqueue restore",
    "truncate -s",
    "Move it and its -wal file away",
    "Upgrade ActionQueue",
    "Give another path",
)


@dataclass(slots=True)
class Promises:
    """What had been promised when the power failed. The log ends at 0 with no hash before the first commit."""

    done: int = 0
    epoch: int = 0
    commits: dict[int, tuple[str, str]] = field(default_factory=dict)
    kept: set[bytes] = field(default_factory=set)

    def take(self, mark: str) -> None:
        """One mark more."""
        kind, *said = mark.split()
        match kind:
            case "opened":
                self.epoch = int(said[0])
            case "begin":
                self.commits[int(said[0])] = (said[1], said[2])
            case "done":
                self.done = int(said[0])
            case "kept":
                self.kept.add(bytes.fromhex(said[0]))
            case _:
                raise AssertionError(f"the workload told {mark!r}")


@dataclass(slots=True, frozen=True)
class Outcome:
    """``whole`` or ``refused``, and what was said."""

    kind: str
    place: str = ""
    message: str = ""


def judge(path: Path, promised: Promises) -> Outcome:
    """Open, compare, close. Raises AssertionError for a loss, and whatever an opening raises that is not of ours."""
    store = SQLiteStore(path)
    try:
        opened = store.open(pid=1, host="judge")
    except ActionQueueError as error:
        return refusal(error)
    try:
        check_log(opened.last_seq, opened.last_hash, promised)
        assert opened.epoch > promised.epoch, "an epoch is given twice"
        try:
            machine = recovered(store, opened)
        except ActionQueueError as error:
            return refusal(error)
        check_state(machine.state, promised)
    finally:
        store.close()
    try:
        missing = promised.kept - decided_in(path) - waiting_in(path)
    except ActionQueueError as error:
        return refusal(error)
    assert not missing, f"{len(missing)} of the commands that clients sent are gone"
    return Outcome("whole")


def check_log(last_seq: int, last_hash: bytes, promised: Promises) -> None:
    """The log ends where it was promised to, or a commit later."""
    assert last_seq >= promised.done, f"the log ends at {last_seq}; {promised.done} was acknowledged"
    if last_seq:
        assert last_seq in promised.commits, f"the log ends at {last_seq}, which nobody wrote"
        assert last_hash.hex() == promised.commits[last_seq][0], "another log"


def check_state(state: State, promised: Promises) -> None:
    """The state is what the writer had."""
    assert check(state) == []
    if state.last_seq:
        assert fingerprint(state).hex() == promised.commits[state.last_seq][1], "another state"


def decided_in(path: Path) -> set[bytes]:
    """The commands whose replies are recorded."""
    with translating(path, "reading"), closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
        return {row[0] for row in connection.execute("SELECT id FROM replies")}


def waiting_in(path: Path) -> set[bytes]:
    """The commands in a store's inbox. Those that are damaged are refused to their senders, so they count."""
    if not inbox_path(path).exists():
        return set()
    inbox = Inbox(path)
    try:
        return {row[1] for row in inbox.rows(1_000_000)}
    finally:
        inbox.close()


def refusal(error: ActionQueueError) -> Outcome:
    """A refusal, which must say where and what to do."""
    assert isinstance(error, StoreDamaged | NotAStore | StoreTooNew | StoreReadOnly), f"{type(error).__name__}: {error}"
    place = str(error.facts.get("place") or error.facts.get("path") or "")
    assert place, f"no place is named: {error}"
    assert any(way in error.message for way in WAYS_OUT), f"no way out is named: {error}"
    return Outcome("refused", place, error.message)
