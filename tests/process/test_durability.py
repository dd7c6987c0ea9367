"""What was acknowledged was synced before: as the system calls show (issue line 11; section 5, number 11)."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from actionqueue import ActionQueue
from actionqueue.verify import verify
from tests.process.support import PROGRAMS, Program, Programs

COUNT = 30


def can_trace() -> bool:
    """Whether strace is there and may look into processes."""
    strace = shutil.which("strace")
    return (
        strace is not None and subprocess.run([strace, "-c", "true"], check=False, capture_output=True).returncode == 0
    )


pytestmark = pytest.mark.skipif(not can_trace(), reason="needs strace, and the right to trace")


def traced(programs: Programs, store: Path, options: list[str], role: str, sync: str = "safe") -> Program:
    """The marking program under strace."""
    marks = store.with_name("marks")
    program = [sys.executable, str(PROGRAMS / "marking.py"), str(store), str(marks), role, sync, str(COUNT)]
    return programs.run(["strace", "-f", *options, *program])


# --- what strace saw ---------------------------------------------------------------------------------------------

CALL = re.compile(r"^(?P<pid>\d+) +(?P<name>\w+)\(\d+<(?P<path>[^>]*)>(?P<rest>.*)$")
RESUMED = re.compile(r"^(?P<pid>\d+) +<\.\.\. (?P<name>\w+) resumed>")


@dataclass
class Trace:
    """Writes, syncs and marks in the order in which they were *over*."""

    steps: list[tuple[str, str]] = field(default_factory=list)
    """("write", path), ("sync", path) or ("mark", text)"""

    @classmethod
    def read(cls, path: Path) -> Trace:
        trace = cls()
        pending: dict[str, tuple[str, str]] = {}
        for line in path.read_text(errors="replace").splitlines():
            call, resumed = CALL.match(line), RESUMED.match(line)
            if call is not None:
                step = _step(call["name"], call["path"], call["rest"])
                if "<unfinished" in call["rest"]:
                    pending[call["pid"]] = step
                else:
                    trace.steps.append(step)
            elif resumed is not None and resumed["pid"] in pending:
                trace.steps.append(pending.pop(resumed["pid"]))
        return trace

    def until(self, word: str) -> Iterator[tuple[int, list[tuple[str, str]]]]:
        """Of each submission: what was over between its begin and that mark of it ("end", or "runs": its handler)."""
        begun: dict[str, int] = {}
        for at, (kind, what) in enumerate(self.steps):
            if kind == "mark":
                said, number = what.split()
                if said == "begin":
                    begun[number] = at
                elif said == word and number in begun:
                    yield int(number), self.steps[begun[number] : at]


def _step(name: str, path: str, rest: str) -> tuple[str, str]:
    if path.endswith("/marks"):
        text = re.search(r'"(\w+ -?\d+)', rest)
        assert text is not None
        return "mark", text[1]
    return "sync" if "sync" in name else "write", path


def unsynced(steps: list[tuple[str, str]], log: str) -> str | None:
    """What is wrong where this was all that was done; the log is the file that what was submitted must be in."""
    to_log = [kind for kind, path in steps if path.endswith(log)]
    if "write" not in to_log:
        return "nothing was written"
    if "sync" not in to_log[to_log.index("write") :]:
        return "what was written was not synced"
    return None


@pytest.mark.parametrize(("role", "log"), [("engine", "jobs.db-wal"), ("client", "jobs.db.inbox-wal")])
@pytest.mark.parametrize("sync", ["safe", "unsafe"])
def test_a_submission_returns_after_its_row_was_synced(
    programs: Programs, store: Path, role: str, log: str, sync: str
) -> None:
    """And where ``synchronous=FULL`` is taken away, this very check fails."""
    output = store.with_name("trace")
    calls = "trace=write,pwrite64,fsync,fdatasync"
    program = traced(programs, store, ["-y", "-s", "32", "-e", calls, "-o", str(output)], role, sync)
    program.line("done", patience_s=60)
    program.finish()
    trace = Trace.read(output)
    problems = {number: unsynced(steps, log) for number, steps in trace.until("end")}
    assert set(problems) == set(range(COUNT))
    if sync == "unsafe":
        assert set(problems.values()) == {"what was written was not synced"}
        return
    assert set(problems.values()) == {None}
    if role == "engine":
        before_handlers = {number: unsynced(steps, log) for number, steps in trace.until("runs")}
        assert before_handlers == problems, "a handler ran before its start was synced"


def test_a_failed_sync_of_the_inbox_is_told_and_what_is_sent_again_is_done_once(
    programs: Programs, store: Path
) -> None:
    """S5-11 for a client: the row may be there or not; under its key it counts once either way."""
    fault = "inject=fsync,fdatasync:error=EIO:when=10"
    options = ["-y", "-o", str(store.with_name("trace")), "-P", f"{store}.inbox-wal", "-e", "trace=fsync,fdatasync"]
    program = traced(programs, store, [*options, "-e", fault], "client")
    assert program.json("refused", patience_s=60)["code"] == "commit_unknown"
    program.line("done", patience_s=60)
    program.finish()
    queue = ActionQueue(store)
    calls: list[int] = []

    @queue.task(name="handler")
    async def handler(number: int) -> None:
        calls.append(number)

    queue.run_until_idle(timeout=60)
    assert sorted(calls) == list(range(COUNT))
    queue.close()


def test_a_failed_sync_is_never_tried_again_and_loses_nothing(programs: Programs, store: Path) -> None:
    """S5-11: the caller learns that nobody knows, the engine lets the store go, the next opening finds out.

    The fifteenth sync of the WAL by any thread fails; so the next engine, which this process opens by itself, meets the
    same fate a little later.
    """
    wal = f"{store}-wal"
    fault = "inject=fsync,fdatasync:error=EIO:when=15"
    output = store.with_name("trace")
    program = traced(
        programs, store, ["-y", "-o", str(output), "-P", wal, "-e", "trace=fsync,fdatasync", "-e", fault], "engine"
    )
    refused = program.json("refused", patience_s=60)
    assert refused["code"] == "commit_unknown"
    program.line("done", patience_s=60)
    program.finish()
    assert output.read_text().count("INJECTED") >= 1
    assert verify(store).ok
    queue = ActionQueue(store, role="client")
    stats = queue.stats()
    keys = [task.idempotency_key for task in queue.tasks(limit=200)]
    queue.close()
    assert stats.tasks == COUNT + 1
    assert stats.runs["completed"] == COUNT + 1
    assert sorted(key for key in keys if key) == sorted(f"key-{number}" for number in range(COUNT))
