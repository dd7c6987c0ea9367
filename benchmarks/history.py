"""What was measured before: one line a run in ``history.jsonl``, and which figures are slower by a fifth since."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from msgspec import Struct, json

from benchmarks.harness import ROOT, Figure

HISTORY = ROOT / "benchmarks" / "history.jsonl"
LATEST = ROOT / "benchmarks" / "results" / "latest.json"
SLOWER = 0.2
NOISE = {"ms": 0.02, "% of a core": 0.1, "MB": 2.0, "s": 0.05}
"""Differences below this are nothing, by unit: a fifth of very little is very little."""


class Record(Struct, kw_only=True, omit_defaults=True):
    """One run of the benchmarks. ``figures`` are by ``row.figure``; the floor's among them."""

    date: str
    commit: str
    machine: str
    python: str
    event_loop: str
    scale: float
    figures: dict[str, float]
    failed: dict[str, str] = {}


class Slower(Struct, frozen=True):
    """A figure that got worse."""

    figure: Figure
    before: float
    date: str


def new_record(figures: Iterable[Figure], failed: dict[str, str], scale: float) -> Record:
    """The record of what was measured now."""
    return Record(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=_commit(),
        machine=f"{platform.machine()}, {_cpus()} cores",
        python=platform.python_version(),
        event_loop=_event_loop(),
        scale=scale,
        figures={figure.name: float(f"{figure.value:.5g}") for figure in figures},
        failed=failed,
    )


def load() -> list[Record]:
    """The recorded runs, oldest first."""
    if not HISTORY.exists():
        return []
    return [json.decode(line, type=Record) for line in HISTORY.read_bytes().splitlines() if line.strip()]


def save(record: Record) -> None:
    """Write it as the latest, and add it to the history."""
    LATEST.parent.mkdir(exist_ok=True)
    LATEST.write_bytes(json.format(json.encode(record)) + b"\n")
    with HISTORY.open("ab") as history:
        history.write(json.encode(record) + b"\n")


def slower(figures: Iterable[Figure], before: Sequence[Record], scale: float) -> list[Slower]:
    """The figures that are worse by a fifth than in the last recorded run of that scale that has them."""
    found = []
    for figure in figures:
        last = next((each for each in reversed(before) if each.scale == scale and figure.name in each.figures), None)
        if last is not None and _is_worse(figure, last.figures[figure.name]):
            found.append(Slower(figure, last.figures[figure.name], last.date))
    return found


def _is_worse(figure: Figure, before: float) -> bool:
    goal, value = figure.goal, figure.value
    if abs(value - before) <= NOISE.get(goal.unit, 0.0):
        return False
    return value > before * (1 + SLOWER) if goal.wants_less else value < before * (1 - SLOWER)


def _commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("+" if git("status", "--porcelain", "src") else "")


def _cpus() -> int:
    import os

    return os.cpu_count() or 1


def _event_loop() -> str:
    from importlib.util import find_spec

    return "uvloop" if find_spec("uvloop") else "asyncio"


__all__ = ["HISTORY", "LATEST", "Path", "Record", "Slower", "load", "new_record", "save", "slower"]
