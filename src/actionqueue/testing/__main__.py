"""``python -m actionqueue.testing``: tell many stories, or one again.

::

    python -m actionqueue.testing --seeds 1000 --from 0     tell them, print what they reached
    python -m actionqueue.testing --seed 7                  tell one again, step by step
    python -m actionqueue.testing --seed 7 --shrink         and cut it down to what is needed for it to fail
    python -m actionqueue.testing --story story.txt         tell a story that was written down
    python -m actionqueue.testing --export log.jsonl        replay an exported log, and check it after each commit

Exits with 1 when a story fails, or when something was reached too rarely over a thousand stories or more.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections import Counter
from pathlib import Path
from statistics import median

from actionqueue.testing.coverage import missing, table
from actionqueue.testing.ledger import STATE_NAMES
from actionqueue.testing.replay import replayed
from actionqueue.testing.shrink import shrunk
from actionqueue.testing.steps import from_text, to_text
from actionqueue.testing.stories import Told, tell

STORIES_FOR_COVERAGE = 1_000


def make_parser() -> argparse.ArgumentParser:
    """Its options."""
    parser = argparse.ArgumentParser(
        prog="python -m actionqueue.testing", description="Tell stories of a simulated world, drawn from seeds."
    )
    parser.add_argument("--seeds", type=int, default=100, help="how many stories (default 100)")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first seed (default 0)")
    parser.add_argument("--seed", type=int, help="tell this one, step by step")
    parser.add_argument("--story", type=Path, help="tell the story in this file")
    parser.add_argument("--shrink", action="store_true", help="cut a failing story down")
    parser.add_argument("--quiet", action="store_true", help="no table, only failures and the summary")
    parser.add_argument("--export", type=Path, help="replay the log in this file, and check it after each commit")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit status."""
    given = make_parser().parse_args(arguments)
    if given.export is not None:
        return _replay(given.export)
    gc.freeze()  # stories make much and keep little
    gc.set_threshold(100_000, 50, 50)
    if given.story is not None:
        seed, steps = from_text(given.story.read_text(encoding="utf-8"))
        return _show(tell(seed, steps), shrink=given.shrink)
    if given.seed is not None:
        return _show(tell(given.seed), shrink=given.shrink)
    return _tell_many(given.first, given.seeds, quiet=given.quiet)


def _replay(path: Path) -> int:
    with path.open(encoding="utf-8") as lines:
        try:
            state = replayed(lines).state
        except AssertionError as error:
            sys.stdout.write(f"not sound {error}\n")
            return 1
    counts = ", ".join(f"{count} {name}" for count, name in zip(state.counts, STATE_NAMES, strict=True) if count)
    sys.stdout.write(f"sound to sequence {state.last_seq}: {state.tasks_total} tasks; runs: {counts or 'none'}\n")
    return 0


def _show(told: Told, *, shrink: bool) -> int:
    if told.problems and shrink:
        told = shrunk(told)
    sys.stdout.write(to_text(told.seed, told.steps, told.notes[1:]))
    sys.stdout.writelines(f"\nproblem: {problem}\n" for problem in told.problems)
    return 1 if told.problems else 0


def _tell_many(first: int, count: int, *, quiet: bool) -> int:
    reached: Counter[str] = Counter()
    commands, crashes, jumps, failed = [], [], [], []
    began = time.perf_counter()
    for seed in range(first, first + count):
        told = tell(seed)
        reached.update(told.coverage)
        commands.append(told.commands)
        crashes.append(told.coverage["fault crash"])
        jumps.append(told.coverage["fault clock_jump"])
        if told.problems:
            failed.append(seed)
            sys.stdout.write(
                f"seed {seed} fails: {told.problems[0]}\n"
                f"  again:  python -m actionqueue.testing --seed {seed}\n"
                f"  shrink: python -m actionqueue.testing --seed {seed} --shrink\n"
            )
            sys.stdout.flush()
    seconds = time.perf_counter() - began
    if not quiet:
        sys.stdout.write(table(reached, count) + "\n\n")
    rare = missing(reached, count) if count >= STORIES_FOR_COVERAGE else []
    sys.stdout.writelines(f"coverage: {each}\n" for each in rare)
    sys.stdout.write(
        f"{count} stories from seed {first}: {len(failed)} failed; in the median {median(commands):g} commands, "
        f"{median(crashes):g} crashes, {median(jumps):g} clock jumps (least {min(jumps)}); {count / seconds:.1f} a second\n"
    )
    return 1 if failed or rare else 0


if __name__ == "__main__":
    sys.exit(main())
