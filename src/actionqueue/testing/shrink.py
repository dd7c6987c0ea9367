"""From a story that fails to a short one that fails in the same way.

Delta debugging ("Simplifying and Isolating Failure-Inducing Input", A. Zeller and R. Hildebrandt, 2002): chunks of steps
are left out, large ones first, for as long as the failure stays. A step means something without those before it, so any
part of a story is a story.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from actionqueue.testing.steps import Step
from actionqueue.testing.stories import Told, tell

TRIES_MAX = 2_000


def kind_of(problem: str) -> str:
    """What a problem is, without the ids and numbers that change from story to story."""
    last = problem.strip().splitlines()[-1] if problem.startswith("Traceback") else problem
    return re.sub(r"[0-9a-f]{12,}|\d+", "#", last)


def shrunk(told: Told, retell: Callable[[int, Sequence[Step]], Told] = tell) -> Told:
    """The shortest story found whose first problem is of the same kind."""
    wanted = kind_of(told.problems[0])
    best, size, tries = told, 2, 0
    while len(best.steps) > 1 and tries < TRIES_MAX:
        chunk = max(1, len(best.steps) // size)
        smaller = None
        for start in range(0, len(best.steps), chunk):
            tries += 1
            candidate = retell(told.seed, [*best.steps[:start], *best.steps[start + chunk :]])
            if candidate.problems and kind_of(candidate.problems[0]) == wanted:
                smaller = candidate
                break
        if smaller is not None:
            best, size = smaller, max(2, size - 1)
        elif chunk == 1:
            return best
        else:
            size = min(len(best.steps), size * 2)
    return best
