"""What the ledger knows of limits: who holds which key and when runs of a rate started, from the events alone.

It counts holders and looks at every window of starts where the engine keeps slots and one instant; a mistake would have to
be made in both ways to stay unseen.
"""

from __future__ import annotations

from collections.abc import Iterator

from actionqueue.core.needs import RateNeed
from actionqueue.core.spec import NO_OPTIONS, TaskOptions


class LimitBook:
    """Keys and rates of one ledger."""

    def __init__(self) -> None:
        self.holders: dict[str, set[bytes]] = {}
        self._options: dict[bytes, TaskOptions] = {}
        self._starts: dict[str, list[int]] = {}

    def submitted(self, task_id: bytes, options: TaskOptions) -> None:
        """A task, and what it needs."""
        self._options[task_id] = options

    def started(self, run_id: bytes, task_id: bytes, at: int) -> Iterator[str]:
        """A run starts: what should have kept it from that. It holds its keys now."""
        yield from self.in_the_way(run_id, task_id, at)
        options = self._options.get(task_id, NO_OPTIONS)
        for need in options.limits:
            self.holders.setdefault(need.key, set()).add(run_id)
        for rate in options.rates:
            self._starts.setdefault(rate.key, []).append(at)

    def in_the_way(self, run_id: bytes, task_id: bytes, at: int) -> Iterator[str]:
        """Why the limits of a run do not let it start."""
        options = self._options.get(task_id, NO_OPTIONS)
        for need in options.limits:
            others = self.holders.get(need.key, set())
            if run_id not in others and len(others) >= need.capacity:
                yield f"while {len(others)} others hold {need.key} of {need.capacity}"
        for rate in options.rates:
            if self._is_too_fast(rate, at):
                yield f"faster than the rate {rate.key} allows"

    def _is_too_fast(self, rate: RateNeed, at: int) -> bool:
        starts = self._starts.get(rate.key, [])
        return any(
            count > rate.burst + (at - first) // rate.interval_us
            for count, first in zip(range(2, len(starts) + 2), reversed(starts), strict=True)
        )

    def moved(self, run_id: bytes, task_id: bytes, before: str, to: str, *, ended: bool) -> None:
        """A run goes from one state to another: at the end of an attempt it lets its keys go, unless it holds them over."""
        options = self._options.get(task_id, NO_OPTIONS)
        if options.limits and (ended or (before == "running" and to not in options.hold)):
            for need in options.limits:
                self.holders.get(need.key, set()).discard(run_id)

    def is_in_use(self) -> bool:
        """Whether a key is held or a rate was used."""
        return bool(self._starts) or any(self.holders.values())
