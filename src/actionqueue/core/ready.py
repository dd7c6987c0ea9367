"""Ready runs in the order in which they start: the largest priority first, then the first one that became ready.

Runs of one priority are a *level*. Nearly all of them come in order, and are linked through the runs themselves
(``Run.before``, ``Run.behind``): entering and leaving, from anywhere, cost the same however many wait, and a million of
them are nothing that the garbage collector has to look at, since it does not look into runs. The few that come out of
turn (a priority that was changed, a misfit released) are in a heap beside the links. Entries of that heap are outdated
once their run has left or moved, and are dropped when they surface, or when there are too many of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

from msgspec import Struct, field

from actionqueue.core.reasons import Where

if TYPE_CHECKING:
    from actionqueue.core.state import Run

EARLY_ENTRIES_MAX = 64
"""Entries of a heap of early ones, beside two for each run, before it is looked through for outdated ones."""

Key = tuple[int, int]
"""(negative priority, order): the smaller one starts first."""


class Level(Struct, eq=False):
    """Ready runs of one priority."""

    first: Run | None = None
    last: Run | None = None
    early: list[tuple[int, Run]] = field(default_factory=list)
    """(order, run) of those that came after a later one."""


class ReadyRuns(Struct, eq=False):
    """Ready runs in order. ``__len__`` is how many."""

    count: int = 0
    _levels: dict[int, Level] = field(default_factory=dict)
    """By negative priority; empty ones are dropped when they surface."""
    _ranks: list[int] = field(default_factory=list)
    """A heap of the levels' keys."""

    def __len__(self) -> int:
        return self.count

    def add(self, run: Run) -> Key:
        """``run`` waits for its turn. Returns its key."""
        rank, order = -run._effective_priority, run.order  # noqa: SLF001 - the hot path; Run is a RunInstance
        level = self._levels.get(rank)
        if level is None:
            level = self._levels[rank] = Level()
            heappush(self._ranks, rank)
        last = level.last
        if last is None:
            level.first = level.last = run
        elif last.order < order:
            last.behind, run.before = run, last
            level.last = run
        else:
            heappush(level.early, (order, run))
        self.count += 1
        return rank, order

    def remove(self, run: Run) -> None:
        """``run``, which waits here, does so no more."""
        self.count -= 1
        level = self._levels[-run._effective_priority]  # noqa: SLF001
        before, behind = run.before, run.behind
        if before is not None:
            before.behind = behind
            run.before = None
        elif level.first is run:
            level.first = behind
        else:
            self._drop_early(level, run)
            return
        if behind is not None:
            behind.before = before
            run.behind = None
        else:
            level.last = before

    def _drop_early(self, level: Level, run: Run) -> None:
        early = level.early
        if early[0][1] is run:
            heappop(early)
        elif len(early) > EARLY_ENTRIES_MAX + 2 * self.count:
            rank = -run.effective_priority
            early[:] = [entry for entry in early if entry[1] is not run and _is_early(entry, level, rank)]
            heapify(early)

    def head(self) -> Run | None:
        """The run that starts first."""
        ranks, levels = self._ranks, self._levels
        while ranks:
            rank = ranks[0]
            level = levels[rank]
            early = level.early
            while early and not _is_early(early[0], level, rank):
                heappop(early)
            first = level.first
            if early and (first is None or early[0][0] < first.order):
                return early[0][1]
            if first is not None:
                return first
            heappop(ranks)
            del levels[rank]
        return None

    def bound_after(self, head: Run) -> Key | None:
        """A key not worse than that of the run which starts after ``head``; None where there is no other."""
        if self.count < 2:
            return None
        rank = self._ranks[0]
        level = self._levels[rank]
        following = head.behind if level.first is head else level.first
        if not level.early:
            if following is not None:
                return rank, following.order
            return min(self._ranks[1:3]), 0
        early = level.early[0][0]
        return rank, early if following is None or early < following.order else following.order

    def clear(self) -> None:
        """Forget all of them, and cut the links, which no garbage collector would."""
        for level in self._levels.values():
            run = level.first
            while run is not None:
                behind = run.behind
                run.before = run.behind = None
                run = behind
            level.first = level.last = None
            level.early.clear()
        self._levels.clear()
        self._ranks.clear()
        self.count = 0

    def __iter__(self) -> Iterator[Run]:
        """All of them, in order of priority; each once."""
        for rank in sorted(self._levels):
            level = self._levels[rank]
            run = level.first
            while run is not None:
                yield run
                run = run.behind
            early = {entry[1].id_bytes: entry[1] for entry in level.early if _is_early(entry, level, rank)}
            yield from early.values()

    def problems(self) -> Iterator[str]:
        """What is wrong with the links, the heaps and the count, for ``check``."""
        if sorted(self._ranks) != sorted(self._levels) or any(
            self._ranks[n] < self._ranks[(n - 1) // 2] for n in range(1, len(self._ranks))
        ):
            yield "its ranks are not those of its levels, or out of order"
        for level in self._levels.values():
            run, before = level.first, None
            while run is not None and run.before is before and (before is None or before.order < run.order):
                run, before = run.behind, run
            if run is not None or level.last is not before:
                yield "its runs are not linked in order"
                return
            early = level.early
            if any(early[n] < early[(n - 1) // 2] for n in range(1, len(early))):
                yield "its early runs are out of order"
        found = sum(1 for _ in self)
        if found != self.count:
            yield f"{found} runs are in it, {self.count} are counted"


def _is_early(entry: tuple[int, Run], level: Level, rank: int) -> bool:
    """Whether an entry of the heap of ``level`` stands for a run that waits there now, and is not linked."""
    order, run = entry
    return (
        run.where is Where.LANE
        and run.order == order
        and -run.effective_priority == rank
        and run.before is None
        and level.first is not run
    )
