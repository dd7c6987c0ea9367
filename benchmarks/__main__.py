"""``python -m benchmarks``: measure, print one table, record, and say what got slower."""

from __future__ import annotations

import argparse
import fnmatch
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import history
from benchmarks.embedded import FLOOR, ROWS
from benchmarks.harness import ROOT, Failed, Figure, Goal, Row, measure

QUICK = 0.1
TITLE_WIDTH = 50


def main() -> int:
    """Entry point; 1 when a row failed or missed its target."""
    chosen = _arguments()
    rows = _rows(chosen.only)
    if chosen.list:
        for row in ROWS:
            print(f"{row.name:14} {', '.join(goal.name for goal in row.goals)}")
        return 0
    scale = QUICK if chosen.quick else chosen.scale
    before = history.load()
    figures: list[Figure] = []
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=chosen.dir) as place:
        print(f"{'':{TITLE_WIDTH}} {'figure':>12} {'':12} {'target':>12}  met")
        for row in rows:
            began = time.monotonic()
            try:
                measured = measure(row, Path(place), scale)
            except Failed as failure:
                failed[row.name] = str(failure)
                reason = str(failure) if chosen.verbose else str(failure).strip().splitlines()[-1]
                print(f"{row.goals[0].title:{TITLE_WIDTH}} {'failed':>12}  {reason}")
                continue
            figures += measured
            _print(measured)
            if chosen.verbose:
                print(f"    ({row.name}: {time.monotonic() - began:.0f} s)")
            sys.stdout.flush()
    _report_slower(history.slower(figures, before, scale), before, figures, scale)
    if not chosen.no_record:
        history.save(history.new_record(figures, failed, scale))
        print(f"\nwritten: {history.LATEST.relative_to(ROOT)}, {history.HISTORY.relative_to(ROOT)}")
    missed = [figure for figure in figures if figure.goal.is_met(figure.value) is False]
    print(f"\n{len(figures)} figures, {len(missed)} missed, {len(failed)} rows failed (scale {scale:g})")
    return 1 if missed or failed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure the embedded engine.")
    parser.add_argument("--scale", type=float, default=1.0, help="of the rows of a million runs (default 1)")
    parser.add_argument("--quick", action="store_true", help=f"the same as --scale {QUICK}")
    parser.add_argument("--only", action="append", metavar="NAME", help="this row (a pattern; may be repeated)")
    parser.add_argument("--dir", default=str(ROOT), help="where stores are made: the disk to measure (the repository)")
    parser.add_argument("--no-record", action="store_true", help="write neither results nor history")
    parser.add_argument(
        "--verbose", action="store_true", help="say how long each row took, and all that a failed one printed"
    )
    parser.add_argument("--list", action="store_true", help="name the rows and their figures")
    return parser.parse_args()


def _rows(only: Sequence[str] | None) -> list[Row]:
    """The chosen rows; the floor goes with all of them, since no figure means anything without it."""
    if not only:
        return list(ROWS)
    unknown = [pattern for pattern in only if not any(fnmatch.fnmatch(row.name, pattern) for row in ROWS)]
    if unknown:
        names = ", ".join(row.name for row in ROWS)
        raise SystemExit(f"no row is called {', '.join(unknown)}; there are {names}")
    return [row for row in ROWS if row is FLOOR or any(fnmatch.fnmatch(row.name, pattern) for pattern in only)]


def _print(figures: Sequence[Figure]) -> None:
    for figure in figures:
        goal = figure.goal
        met = {None: "", True: "yes", False: "NO"}[goal.is_met(figure.value)]
        line = f"{goal.title:{TITLE_WIDTH}} {_number(figure.value):>12} {goal.unit:12} {_target(goal):>12}  {met}"
        print(line.rstrip())


def _number(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}"


def _target(goal: Goal) -> str:
    if goal.at_least is not None:
        return f"≥ {goal.at_least:,g}"
    return "" if goal.at_most is None else f"≤ {goal.at_most:,g}"


def _report_slower(
    slower: Sequence[history.Slower], before: Sequence[history.Record], figures: Sequence[Figure], scale: float
) -> None:
    if not slower:
        return
    print("\nworse by more than a fifth than the last recorded run:")
    for each in slower:
        then, now = _number(each.before), _number(each.figure.value)
        print(f"  {each.figure.name:28} {then:>12} → {now:>12} {each.figure.goal.unit}   (of {each.date})")
    last = next((each for each in reversed(before) if each.scale == scale), None)
    if last is not None:
        print("  the floor, then → now (where it moved as much, the machine did):")
        for figure in figures:
            if figure.row == FLOOR.name and figure.name in last.figures:
                print(f"  {figure.name:28} {_number(last.figures[figure.name]):>12} → {_number(figure.value):>12}")


if __name__ == "__main__":
    sys.exit(main())
