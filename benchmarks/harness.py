"""Rows, the figures they promise, and fresh processes to measure them in.

A ``Row`` is one measurement in a process of its own, with a new directory and a time limit; it yields one or several
figures, each a ``Goal``: what it is called, and what it must reach. A row that fails or runs out of time is reported
and does not stop the others.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct, json

ROOT = Path(__file__).resolve().parent.parent
SAID_CHARACTERS_MAX = 1_500
INSIDE = "ACTIONQUEUE_BENCHMARK_ROW"
"""Set in the environment of a row's processes."""


class Goal(Struct, frozen=True, kw_only=True):
    """One figure of a row: its name in the row's answer, what it is in words, its unit, and its target, if any."""

    name: str
    title: str
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    smaller_is_better: bool = False
    """For figures without a target; a target says it itself."""

    @property
    def wants_less(self) -> bool:
        """Whether a smaller figure is the better one."""
        return self.at_most is not None or self.smaller_is_better

    def is_met(self, value: float) -> bool | None:
        """Whether ``value`` reaches the target; None when there is none."""
        if self.at_least is not None:
            return value >= self.at_least
        return None if self.at_most is None else value <= self.at_most


class Row(Struct, frozen=True, kw_only=True):
    """One measurement. ``measure`` is ``module:function``, called with ``directory`` and ``given(scale)``."""

    name: str
    measure: str
    goals: tuple[Goal, ...]
    given: Callable[[float], dict[str, Any]] = lambda scale: {}
    limit_s: float = 120


class Figure(Struct, frozen=True):
    """A goal as it was measured."""

    row: str
    goal: Goal
    value: float

    @property
    def name(self) -> str:
        """Its name over all rows."""
        return f"{self.row}.{self.goal.name}"


class Failed(Exception):
    """A process did not give its answer; the message says why, with the end of what it printed."""


def fresh(target: str, limit_s: float, **given: Any) -> Any:
    """Call ``module:function`` with these arguments in a fresh process and return its answer (as JSON has it).

    The process and all it started are killed after ``limit_s`` seconds. A row may call this too; its processes are of
    the row's group, and end with it. Raises ``Failed``.
    """
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        answer, said = Path(folder, "answer"), Path(folder, "said")
        command = [sys.executable, "-m", "benchmarks.child", target, json.encode(given).decode(), str(answer)]
        is_row = INSIDE not in os.environ
        with said.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, INSIDE: "1"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=is_row,
            )
            try:
                code = process.wait(limit_s)
            except subprocess.TimeoutExpired:
                raise Failed(f"{_end_of(said)}\n{target} took over {limit_s:g} s") from None
            finally:
                if is_row:
                    end_group(process)
                else:
                    process.kill()
                    process.wait()
        if code != 0 or not answer.exists():
            raise Failed(f"{target} ended with {code}; {_end_of(said)}")
        return json.decode(answer.read_bytes())


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that leads a session, and whatever of that session is left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _end_of(said: Path) -> str:
    text = said.read_text(errors="replace").strip()
    return f"it printed: …{text[-SAID_CHARACTERS_MAX:]}" if text else "it printed nothing"


def measure(row: Row, place: Path, scale: float) -> list[Figure]:
    """Measure a row, in a directory under ``place`` that is removed afterwards. Raises ``Failed``."""
    directory = Path(tempfile.mkdtemp(prefix=f"{row.name}-", dir=place))
    try:
        answer = fresh(row.measure, row.limit_s, directory=str(directory), **row.given(scale))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return [Figure(row.name, goal, answer[goal.name]) for goal in row.goals]


def start_python(module_and_function: str, **given: Any) -> subprocess.Popen[bytes]:
    """Start a function in another process of the calling row's group, its answer left in ``given["answer"]``."""
    answer = given.pop("answer", os.devnull)
    command = [sys.executable, "-m", "benchmarks.child", module_and_function, json.encode(given).decode(), str(answer)]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL)


def wait_for(condition: Callable[[], object], limit_s: float, what: str) -> None:
    """Until ``condition()`` is true. Raises ``TimeoutError``."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {limit_s:g} s")
        time.sleep(0.002)


def in_parts(total: int, size: int) -> Sequence[int]:
    """``total`` as a list of parts of ``size``, the last one smaller."""
    return [min(size, total - first) for first in range(0, total, size)]
