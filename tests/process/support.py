"""Programs that are started, watched and killed, and waits that end.

A program is a file of ``programs/`` (or any command) in a process group of its own. What it prints is read by a thread,
line by line; a test waits for a line, never for a time. Every wait has a deadline, after which the program's output is
in the failure.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import pytest

from actionqueue import ActionQueue, ActionQueueError
from actionqueue.core.check import check
from actionqueue.core.run import RunState
from actionqueue.core.state import CODE_OF, RUNNING, State
from actionqueue.engine.tickets import ThreadTicket
from actionqueue.engine.work import Turn

T = TypeVar("T")

PROGRAMS = Path(__file__).parent / "programs"
ROOT = Path(__file__).parents[2]
PATIENCE_S = 30.0
"""How long a step may take on a machine that is busy with other things."""


def eventually(look: Callable[[], T], what: str, patience_s: float = PATIENCE_S, *, of: Program | None = None) -> T:
    """What ``look`` returns as soon as that is true. For what no line announces; looks 100 times a second.

    Gives up at once when the program ``of`` which it is awaited has ended.
    """
    deadline = time.monotonic() + patience_s
    pause = threading.Event()
    while True:
        found = look()
        if found:
            return found
        if of is not None and of.has_ended:
            raise AssertionError(of.told(f"ended, and it is not so that {what}"))
        if time.monotonic() >= deadline:
            raise AssertionError(of.told(f"runs {patience_s:g} s, and it is not so that {what}") if of else what)
        pause.wait(0.01)


def is_alive(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in ("Z", "X")


def children_of(pid: int) -> list[int]:
    """The processes that this one started and that still run, as far as the system tells."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):
            found += [int(each) for each in task.read_text().split()]
    return [each for each in found if is_alive(each)]


def descendants_of(pid: int) -> list[int]:
    """Its children, theirs, and so on."""
    found: list[int] = []
    for child in children_of(pid):
        found += [child, *descendants_of(child)]
    return found


class Program:
    """A running program. Made by ``programs.start``, ended at the latest when the test is over."""

    def __init__(self, command: Sequence[str], *, env: Mapping[str, str], cwd: Path) -> None:
        self.command = list(command)
        self.said: list[str] = []
        self._lines: SimpleQueue[str | None] = SimpleQueue()
        self._kept: list[str] = []
        self._errors: list[str] = []
        self._process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=dict(env),
            cwd=cwd,
            start_new_session=True,
        )
        self._readers = [
            threading.Thread(target=self._read_lines, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def _read_lines(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._errors.append(line)

    @property
    def errors(self) -> str:
        """What it has written to standard error so far."""
        return "".join(self._errors)

    def line(self, start: str = "", patience_s: float = PATIENCE_S) -> str:
        """The rest of the first line that starts so and was not asked for before; others are kept."""
        deadline = time.monotonic() + patience_s
        for at, line in enumerate(self._kept):
            if line.startswith(start):
                return self._kept.pop(at)[len(start) :].strip()
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                raise AssertionError(self.told(f"no line {start!r} within {patience_s:g} s")) from None
            if line is None:
                self._lines.put(None)
                raise AssertionError(self.told(f"ended without a line {start!r}"))
            self.said.append(line)
            if line.startswith(start):
                return line[len(start) :].strip()
            self._kept.append(line)

    def json(self, start: str, patience_s: float = PATIENCE_S) -> Any:
        """That line, decoded."""
        return json.loads(self.line(start, patience_s))

    def tell(self, text: str) -> None:
        """Give it a line to read."""
        assert self._process.stdin is not None
        self._process.stdin.write(text + "\n")
        self._process.stdin.flush()

    def send(self, number: signal.Signals) -> None:
        """A signal, to it alone."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, to it alone, and wait until it is gone."""
        self._process.kill()
        self._process.wait(PATIENCE_S)

    def wait(self, patience_s: float = PATIENCE_S) -> int:
        """Its exit status, once it has ended."""
        try:
            return self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(self.told(f"has not ended within {patience_s:g} s")) from None

    def finish(self, patience_s: float = PATIENCE_S) -> None:
        """Wait for its end, which must be a good one."""
        status = self.wait(patience_s)
        assert status == 0, self.told(f"ended with status {status}")

    @property
    def has_ended(self) -> bool:
        """Whether it has."""
        return self._process.poll() is not None

    def dispose(self) -> None:
        """End it and whatever it started, and close the lines to it."""
        pids = [self.pid, *descendants_of(self.pid)]
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        for pid in pids[1:]:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait(PATIENCE_S)
        for reader in self._readers:
            reader.join(1.0)
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            with suppress(OSError):
                if stream is not None:
                    stream.close()

    def told(self, what: str) -> str:
        """A message with what it printed."""
        said = "\n".join(self.said[-20:])
        return f"{' '.join(self.command)} {what}\n--- printed\n{said}\n--- standard error\n{self.errors[-4000:]}"


class Programs:
    """Starts programs, and ends them all when the test is over."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[Program] = []

    def start(self, name: str, *arguments: object, env: Mapping[str, str] | None = None) -> Program:
        """Run ``programs/NAME.py``."""
        return self.run([sys.executable, str(PROGRAMS / f"{name}.py"), *map(str, arguments)], env=env)

    def run(self, command: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Program:
        """Run a command."""
        program = Program(command, env=environment() | dict(env or {}), cwd=cwd or self._folder)
        self._started.append(program)
        return program

    def dispose(self) -> None:
        """End them all."""
        for program in reversed(self._started):
            program.dispose()


def environment() -> dict[str, str]:
    """This process's, with the package found as it is found here, and output that is not held back."""
    return dict(os.environ) | {
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "error",
    }


def error_of(act: Callable[[], object]) -> ActionQueueError:
    with pytest.raises(ActionQueueError) as caught:
        act()
    return caught.value


@contextmanager
def within(seconds: float, what: str) -> Iterator[None]:
    """Fail unless the block ends in time. It is not interrupted: what is inside has deadlines of its own.

    The time is that of a machine with a processor to spare; where more wants to run than can, it stretches as much.
    """
    began = time.monotonic()
    yield
    took = time.monotonic() - began
    stretch = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    assert took <= seconds * stretch, f"{what} took {took:.2f} s; {seconds:g} s are allowed (times {stretch:.2f})"


def inspect(queue: ActionQueue, look: Callable[[State], T]) -> T:
    """What ``look`` finds in the state of this process's engine, on the thread that owns it."""
    session = queue.session
    assert session is not None
    engine = session.engine
    assert engine is not None
    ticket = ThreadTicket()
    found: list[T] = []

    def question(turn: Turn) -> None:
        found.append(look(engine.writer.machine.state))
        turn.settled.append((ticket, None))

    engine.ask(question)
    assert ticket.wait(PATIENCE_S), "the writer does not answer"
    return found[0]


def leftovers(state: State) -> list[str]:
    """What should not be there when nothing is live: runs, slots that are taken, violated invariants."""
    found = [f"run {run_id.hex()} is {run.state.value}" for run_id, run in state.runs.items()]
    places = state.places
    for slots in [*places.executors.values(), *places.queues.values(), places.open]:
        found += [f"{slots.kind} {slots.name} is held by {run_id.hex()}" for run_id in slots.running]
    counted = {RunState.LEASED: state.counts[CODE_OF[RunState.LEASED]], RunState.RUNNING: state.counts[RUNNING]}
    found += [f"{count} runs are counted as {each.value}" for each, count in counted.items() if count]
    return found + check(state)
