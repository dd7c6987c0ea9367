"""Stories as plain data: a list of steps drawn from a seed, and their form as text.

A step is a kind, a number from which everything about it is drawn, and the moves that the engine makes after it. A step
means something in any state of the world, also after others were left out; that is what makes a story shrinkable. Must
not know: what a step does (``actions``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from random import Random
from typing import NamedTuple


class Step(NamedTuple):
    """``moves`` are digits, see ``world.MOVES``."""

    kind: str
    draw: int
    moves: str


STEPS_PER_STORY = 130
CRASHES_MIN, JUMPS_MIN = 3, 1

WEIGHTS = {
    "submit": 26, "submit_invalid": 3, "submit_many": 1, "resubmit": 3, "cancel": 6, "cancel_task": 3, "retry": 8,
    "reschedule": 4, "reprioritize": 5, "pause": 3, "resume": 4, "report": 3, "await": 2, "read": 2, "declare": 1,
    "touch": 1, "confirm_clock": 1, "prune": 1, "prune_log": 1, "prune_asked": 1, "choose_prune": 4, "register": 2,
    "pass": 24, "jump": 1, "fault": 6, "read_fault": 2, "crash": 3, "restart": 3, "take_over": 2, "second": 1,
    "drain": 3, "signal": 14, "schedule": 6, "of_schedule": 5, "depend": 4,
}  # fmt: skip
"""How often each kind is drawn."""

_KINDS = list(WEIGHTS)
_CUMULATED = [sum(list(WEIGHTS.values())[: n + 1]) for n in range(len(WEIGHTS))]
_MOVES = ("", "0", "01", "012", "0101", "3", "4", "40", "9", "9", "9", "9", "9", "49", "949")


def drawn(seed: int, count: int = STEPS_PER_STORY) -> list[Step]:
    """The story of a seed."""
    chance = Random(seed)
    kinds = chance.choices(_KINDS, cum_weights=_CUMULATED, k=count)
    for kind, least in (("crash", CRASHES_MIN), ("jump", JUMPS_MIN)):
        for _ in range(least - kinds.count(kind)):
            kinds.insert(chance.randrange(count // 4, count), kind)
    return [Step(kind, chance.getrandbits(32), _MOVES[int(chance.random() * len(_MOVES))]) for kind in kinds]


def to_text(seed: int, steps: Iterable[Step], notes: Sequence[Sequence[str]] = ()) -> str:
    """A story as text: one step a line, what it did as comments. ``from_text`` reads it."""
    lines = [f"seed {seed}"]
    for n, step in enumerate(steps):
        lines.append(f"{step.kind} {step.draw} {step.moves or '-'}")
        if n < len(notes):
            lines += [f"    # {note}" for note in notes[n]]
    return "\n".join(lines) + "\n"


def from_text(text: str) -> tuple[int, list[Step]]:
    """The seed (which handlers' behaviour is drawn from) and the steps.

    >>> from_text(to_text(7, [Step("crash", 3, "")]))
    (7, [Step(kind='crash', draw=3, moves='')])
    """
    seed, steps = 0, []
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        match words:
            case []:
                continue
            case ["seed", number]:
                seed = int(number)
            case [kind, draw, moves] if kind in WEIGHTS:
                steps.append(Step(kind, int(draw), "" if moves == "-" else moves))
            case _:
                raise ValueError(f"not a step: {line!r}; give a kind, a number and moves (or -)")
    return seed, steps
