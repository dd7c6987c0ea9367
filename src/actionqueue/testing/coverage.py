"""What stories have reached: everything that an existing command or fault can lead to, and what nothing reaches yet.

One literal table. ``REACHABLE`` must each be reached a hundred times in a thousand stories; ``WAITING`` names what the
documentation promises and no command leads to yet, with the capability it waits for. An item that is reached and stands
in neither list is a mistake of this table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import get_args

from actionqueue.core.machine import Command, Event
from actionqueue.core.reasons import Where
from actionqueue.core.run import RunState
from actionqueue.core.state import Outcome
from actionqueue.testing.faults import COMMIT_FAULTS

REACHED_MIN_PER_THOUSAND = 100

_REMOTE, _CHILDREN, _BUDGETS = "remote workers", "children", "suspend, budgets"

_WAITING_EDGES = {
    "leased -> ready": _REMOTE, "leased -> canceled": _REMOTE, "running -> suspended": _BUDGETS,
    "retry_wait -> failed": "a deadline for retries", "suspended -> ready": _BUDGETS,
    "suspended -> canceled": _BUDGETS, "awaiting -> failed": _CHILDREN,
}  # fmt: skip
_WAITING_OUTCOMES = {"SUSPENDED": _BUDGETS}

RECOVERY = (
    "running: lost, tried again", "running: lost, failed past max_lost", "running: lost, failed by on_lost",
    "running, asked to stop: canceled", "drained, code stopped: interrupted", "drained, code not stopped: lost",
    "retry_wait: unchanged", "scheduled: unchanged", "awaiting: unchanged",
    "pauses: as before", "slots of queues: as before",
    "keys, rates: as before", "dependencies: as before",
)  # fmt: skip
"""The rows of the documentation's table of recovery that can be met."""
_WAITING_RECOVERY = {
    "leased, never started": _REMOTE, "suspended: unchanged": _BUDGETS,
    "budgets, subscriptions: as before": "budgets",
    "pending cascades: as before": "none is ever pending: a cascade is part of the event that began it",
}  # fmt: skip

REJECTIONS = (
    "already_terminal", "commit_unknown", "conflict", "dependency_cycle", "epoch_lost", "idempotency_conflict",
    "invalid_submission", "limit_exceeded",
    "not_found", "not_reschedulable", "not_retryable", "not_running", "overloaded", "payload_too_large",
    "signal_conflict",
    "stale_report", "store_held", "store_unavailable", "unknown_run", "unknown_task",
)  # fmt: skip
"""Codes that an engine, or the check before it, answers commands with."""
_WAITING_REJECTIONS = {
    "store_damaged": "damage is done to real files, in the tests of the store",
    "invalid_arguments": "raised by tasks before a command is made", "invalid_duration": "the same",
    "duplicate_handler": "the same",
}  # fmt: skip

FAULTS = (
    *COMMIT_FAULTS, "epoch_lost", "unreadable", "crash", "take_over", "drain", "clock_jump", "inbox_unreadable",
    "late_report", "doubled_report",
)  # fmt: skip


def _edges() -> Iterator[str]:
    for before in RunState:
        for after in RunState.transitions()[before]:
            yield f"{before.value} -> {after.value}"


REACHABLE: tuple[str, ...] = (
    *(f"command {kind.__name__}" for kind in get_args(Command) if kind.__name__ not in ("Close", "FollowWall")),
    *(f"event {kind.__name__}" for kind in get_args(Event)),
    *(f"place {where.name}" for where in Where if where is not Where.NOWHERE),
    *(f"edge {edge}" for edge in _edges() if edge not in _WAITING_EDGES),
    *(f"outcome {outcome.name}" for outcome in Outcome if outcome.name not in _WAITING_OUTCOMES),
    *(f"reject {code}" for code in REJECTIONS),
    *(f"fault {fault}" for fault in FAULTS),
    *(f"recovery {row}" for row in RECOVERY),
)

WAITING: dict[str, str] = {
    **{f"edge {name}": why for name, why in _WAITING_EDGES.items()},
    **{f"outcome {name}": why for name, why in _WAITING_OUTCOMES.items()},
    **{f"reject {name}": why for name, why in _WAITING_REJECTIONS.items()},
    **{f"recovery {name}": why for name, why in _WAITING_RECOVERY.items()},
}


def missing(reached: Counter[str], stories: int) -> list[str]:
    """What was reached too rarely in so many stories, or stands in neither list."""
    least = REACHED_MIN_PER_THOUSAND * stories // 1000
    rare = [f"{name}: reached {reached[name]} times, not {least}" for name in REACHABLE if reached[name] < least]
    known = {*REACHABLE, *WAITING}
    return rare + [f"{name}: reached, and not in the table" for name in sorted(reached) if name not in known]


def table(reached: Counter[str], stories: int) -> str:
    """How often each thing was reached, and what waits for which capability."""
    width = max(len(name) for name in (*REACHABLE, *WAITING))
    lines = [f"reached in {stories} stories (least per thousand: {REACHED_MIN_PER_THOUSAND})", ""]
    lines += [f"  {name:{width}}  {reached[name]:>9}" for name in REACHABLE]
    lines += ["", "not reached by any command yet, and what each waits for", ""]
    lines += [f"  {name:{width}}  {why}" for name, why in WAITING.items()]
    return "\n".join(lines)
