"""What simulated handlers do, drawn from the seed: how long they take, and how they end.

The draw depends on the seed, the task's number in the story and the attempt's number, and on nothing else: leaving other
steps out of a story does not change what a handler does. Must not know: the engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random
from typing import Any

from msgspec import Struct, json

from actionqueue.core.retry import AttemptTerms, Delays, Fixed
from actionqueue.executors.endings import RetryAfter, Snooze, TerminalFailure
from actionqueue.executors.port import Assignment, AttemptControl, Misfit

SECOND_US = 1_000_000
RESULT_BYTES_MAX = 200


class NotAgain(Exception):
    """What the simulated handlers list in ``no_retry_on``."""


Durable = tuple[str, str, str | None, int | None]
"""(``step``, ``sleep`` or ``receive``; the name; for ``receive`` ``signal:key``; how long at most, in microseconds)"""


class Plan(Struct):
    """What one attempt does. ``duration_us`` None: it does not end by itself."""

    kind: str
    duration_us: int | None
    progress: int = 0
    """How many times it says how far it is."""
    is_doubled: bool = False
    """Whether its end is reported twice."""
    on_stop: str = "obey"
    """``obey`` ends when asked to stop, ``return`` too but with a value, ``clean_up`` by an error, ``ignore`` does not."""
    stop_us: int = 0
    script: tuple[Durable, ...] = ()
    """Steps and waits that it passes before it ends."""


SIGNALS = ("go", "stop")
SIGNAL_KEYS = (None, None, "k")
_LIMITS_US = (None, None, 0, SECOND_US, 20 * SECOND_US)


def script_of(seed: int, task: int) -> tuple[Durable, ...]:
    """The steps and waits of a run: the same in all its attempts, and in its retries."""
    chance = Random((seed * 1_000_003 + task) ^ 0x5C12)
    if chance.random() < 0.7:
        return ()
    return tuple(_durable(chance, n) for n in range(1 + chance.randrange(4)))


def _durable(chance: Random, n: int) -> Durable:
    kind = chance.choice(("step", "step", "sleep", "receive", "receive"))
    if kind == "sleep":
        return kind, f"nap {n}", None, chance.choice((0, 1_000, SECOND_US, 20 * SECOND_US))
    if kind == "step":
        return kind, f"step {n}", None, None
    key = chance.choice(SIGNAL_KEYS)
    return kind, f"wait {n}", chance.choice(SIGNALS) + (f":{key}" if key else ""), chance.choice(_LIMITS_US)


ENDINGS = (
    "value", "value", "value", "value", "value", "nothing", "raises", "raises", "raises", "retry_after", "snooze",
    "terminal", "not_again", "exits", "interrupts", "cancels_itself", "unencodable", "too_large", "swallows", "misfit",
    "worker_died",
)  # fmt: skip
"""How attempts end, each as often as it stands here."""
_DURATIONS_US = (0, 0, 1_000, 50_000, 700_000, 3 * SECOND_US, 20 * SECOND_US, 90 * SECOND_US)
_ON_STOP = ("obey", "obey", "obey", "return", "clean_up", "ignore")


def plan_of(seed: int, task: int, attempt: int) -> Plan:
    """What that attempt of that task does."""
    chance = Random(((seed * 1_000_003 + task) << 12) + attempt)
    pick = chance.random
    kind = ENDINGS[int(pick() * len(ENDINGS))]
    never_ends = pick() < 0.06
    return Plan(
        kind,
        None if never_ends else _DURATIONS_US[int(pick() * len(_DURATIONS_US))],
        int(pick() * 3) if pick() < 0.3 else 0,
        pick() < 0.1,
        _ON_STOP[int(pick() * len(_ON_STOP))],
        int(pick() * SECOND_US) if pick() < 0.5 else 0,
    )


def outcome_of(plan: Plan, chance: float) -> Any:
    """The value the handler returns, or the exception that ends it."""
    match plan.kind:
        case "value" | "misfit" | "worker_died" | "swallows":
            return {"drawn": int(chance * 1000)}
        case "nothing":
            return None
        case "too_large":
            return "x" * (RESULT_BYTES_MAX + 1)
        case "unencodable":
            return object()
        case "retry_after":
            return RetryAfter(int(chance * 30) * SECOND_US)
        case "snooze":
            return Snooze(int(chance * 60) * SECOND_US)
        case "terminal":
            return TerminalFailure("it makes no sense")
        case "not_again":
            return NotAgain("listed in no_retry_on")
        case "exits":
            return SystemExit(3)
        case "interrupts":
            return KeyboardInterrupt()
        case "cancels_itself":
            return asyncio.CancelledError()
        case _:
            return ValueError(f"a failure like any other ({int(chance * 3)})")


class DrawnHandler(Struct, eq=False):
    """A registered handler without code. Implements ``executors.port.Runnable``."""

    name: str
    executor: str
    terms: AttemptTerms
    is_async: bool = False
    concurrency: int | None = None
    result_bytes_max: int = RESULT_BYTES_MAX
    no_retry_on: tuple[type[BaseException], ...] = (NotAgain,)
    locator: str = "simulated:handler"

    def bind(self, assignment: Assignment, control: AttemptControl) -> Callable[[], Any]:
        """There is nothing to call: the world ends its attempts."""
        raise Misfit(f"{self.name} has no code")

    def encode(self, value: Any) -> bytes | None:
        """As JSON; raises what the encoder raises."""
        return None if value is None else json.encode(value)


HANDLERS = (
    DrawnHandler("fetch", "async", AttemptTerms(), is_async=True),
    DrawnHandler("render", "thread", AttemptTerms(timeout_us=5 * SECOND_US, backoff=Fixed(2 * SECOND_US))),
    DrawnHandler("crunch", "process", AttemptTerms(timeout_us=60 * SECOND_US, on_lost="fail")),
    DrawnHandler("poison", "async", AttemptTerms(backoff=Delays((0, SECOND_US)), max_lost=2), is_async=True),
    DrawnHandler("late", "thread", AttemptTerms(on_lost="retry", max_lost=0), concurrency=1),
)
"""Registered by every engine, but for ``late``, which comes in the middle of a story."""
ALWAYS_THERE = tuple(handler.name for handler in HANDLERS if handler.name != "late")
SLOTS = {"async": 4, "thread": 2, "process": 2}
QUEUES = {"narrow": 1, "wide": 3}
"""The bounded queues; ``default`` and ``open`` are not."""
