"""Ready runs in the order in which they start: the largest priority first, then the first one that became ready.

Runs of one priority are a *level*. Nearly all of them come in order, and are linked through the runs themselves
(``Run.before``, ``Run.behind``): entering and leaving, from anywhere, cost the same however many wait, and a million of
them are nothing that the garbage collector has to look at, since it does not look into runs. The few that come out of
turn (a priority that was changed, a misfit released) are in a heap beside the links. Entries of that heap are outdated
once their run has left or moved, and are dropped when they surface, or when there are too many of them.

Under *aging* the levels stay as they are, each first come, first served: within one priority whoever has waited longer
is ahead. Only the firsts of the levels are compared otherwise: by when they became ready, brought forward by priority.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

from msgspec import Struct

from actionqueue.core.reasons import Where

if TYPE_CHECKING:
    from actionqueue.core.state import Run

EARLY_ENTRIES_MAX = 64
"""Entries of a heap of early ones, beside two for each run, before it is looked through for outdated ones."""

Key = tuple[int, int]
"""(rank, order): the smaller one starts first. The rank is the negative priority; under aging see ``aged``."""


class Level(Struct, eq=False, gc=False):
    """Ready runs of one priority."""

    first: Run | None = None
    last: Run | None = None
    early: list[tuple[int, Run]] | None = None
    """(order, run) of those that came after a later one."""


class ReadyRuns(Struct, eq=False, gc=False):
    """Ready runs in order. ``__len__`` is how many."""

    count: int = 0
    aging_us: int = 0
    """How long a run waits until that counts as one priority more; 0: it never does."""
    _rank: int = 0
    _level: Level | None = None
    """The level of the largest priority, and its key: the negative of that. Nearly always the only one."""
    _others: dict[int, Level] | None = None
    """By negative priority; empty ones are dropped when they surface."""
    _ranks: list[int] | None = None
    """A heap of the keys of the others."""

    def __len__(self) -> int:
        return self.count

    def add(self, run: Run) -> Key:
        """``run`` waits for its turn. Returns its key."""
        rank, order = -run._effective_priority, run.order  # noqa: SLF001 - the hot path; Run is a RunInstance
        level = self._level
        if level is None or rank != self._rank:
            level = self._enter_level(rank)
        last = level.last
        if last is None:
            level.first = level.last = run
        elif last.order < order:
            last.behind, run.before = run, last
            level.last = run
        elif level.early is None:
            level.early = [(order, run)]
        else:
            heappush(level.early, (order, run))
        self.count += 1
        if self.aging_us:
            rank = aged(run, self.aging_us)
        run.rank = rank
        return rank, order

    def _enter_level(self, rank: int) -> Level:
        """The level of that key, made where there is none."""
        level, others, ranks = self._level, self._others, self._ranks
        if level is None or (level.first is None and not level.early and not others):
            self._rank = rank
            self._level = level = level or Level()
            return level
        if others is None or ranks is None:
            others, ranks = self._others, self._ranks = {}, []
        if rank < self._rank:
            others[self._rank] = level
            heappush(ranks, self._rank)
            self._rank, self._level = rank, Level()
            return self._level
        found = others.get(rank)
        if found is None:
            found = others[rank] = Level()
            heappush(ranks, rank)
        return found

    def remove(self, run: Run) -> None:
        """``run``, which waits here, does so no more."""
        self.count -= 1
        rank = -run._effective_priority  # noqa: SLF001
        level = self._level
        if rank != self._rank or level is None:
            assert self._others is not None, "a run that waits has a level"
            level = self._others[rank]
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
        assert early, "a run that is not linked came early"
        if early[0][1] is run:
            heappop(early)
        elif len(early) > EARLY_ENTRIES_MAX + 2 * self.count:
            rank = -run.effective_priority
            early[:] = [entry for entry in early if entry[1] is not run and _is_early(entry, level, rank)]
            heapify(early)

    def purge(self, run: Run) -> None:
        """``run`` has left for another line, where it keeps its order: no entry may stand for it here."""
        level = self.levels().get(-run.effective_priority)
        if level is not None and level.early:
            level.early = [entry for entry in level.early if entry[1] is not run]
            heapify(level.early)

    def head(self) -> Run | None:
        """The run that starts first."""
        if self.aging_us:
            return self._oldest()
        while (level := self._level) is not None:
            first = level.first
            if level.early:
                first = _first_of(level, self._rank)
            if first is not None or not self._others:
                return first
            self._drop_level()
        return None

    def _drop_level(self) -> None:
        """The first level is empty: the next one is the first now."""
        assert self._ranks, "there is another level"
        assert self._others, "there is another level"
        self._rank = heappop(self._ranks)
        self._level = self._others.pop(self._rank)

    def _oldest(self) -> Run | None:
        """The run that starts first under aging: the best of those that each level has first.

        Costs in proportion to the number of priorities among those that wait.
        """
        best: Run | None = None
        for rank, level in self.levels().items():
            first = _first_of(level, rank)
            if first is None:
                if level is not self._level:
                    self._forget_level(rank)
            elif best is None or (first.rank, first.order) < (best.rank, best.order):
                best = first
        return best

    def _forget_level(self, rank: int) -> None:
        assert self._ranks, "there is another level"
        assert self._others, "there is another level"
        del self._others[rank]
        self._ranks.remove(rank)
        heapify(self._ranks)

    def bound_after(self, head: Run) -> Key | None:
        """A key not worse than that of the run which starts after ``head``; None where there is no other."""
        if self.count < 2:
            return None
        if self.aging_us:
            return head.rank, head.order
        rank, level = self._rank, self._level
        assert level is not None, "the head is in the first level"
        following = head.behind if level.first is head else level.first
        if not level.early:
            if following is not None:
                return rank, following.order
            assert self._ranks, "the others are in another level"
            return self._ranks[0], 0
        early = level.early[0][0]
        return rank, early if following is None or early < following.order else following.order

    def age_by(self, aging_us: int) -> None:
        """Let waiting count as priority from now on, or no more (0)."""
        self.aging_us = aging_us
        for run in self:
            run.rank = aged(run, aging_us) if aging_us else -run.effective_priority

    def levels(self) -> dict[int, Level]:
        """Every level by its key."""
        first = {} if self._level is None else {self._rank: self._level}
        return first | (self._others or {})

    def clear(self) -> None:
        """Forget all of them, and cut the links, which no garbage collector would."""
        for level in self.levels().values():
            run = level.first
            while run is not None:
                behind = run.behind
                run.before = run.behind = None
                run = behind
            level.first = level.last = level.early = None
        self._level = self._others = self._ranks = None
        self.count = 0

    def __iter__(self) -> Iterator[Run]:
        """All of them, in order of priority; each once."""
        for rank, level in sorted(self.levels().items(), key=_rank_of):
            run = level.first
            while run is not None:
                yield run
                run = run.behind
            early = {entry[1].id_bytes: entry[1] for entry in level.early or () if _is_early(entry, level, rank)}
            yield from early.values()

    def problems(self) -> Iterator[str]:
        """What is wrong with the links, the heaps and the count, for ``check``."""
        ranks = self._ranks or []
        if sorted(ranks) != sorted(self._others or {}) or any(
            ranks[n] <= self._rank or ranks[n] < ranks[(n - 1) // 2 if n else 0] for n in range(len(ranks))
        ):
            yield "its ranks are not those of its levels, or out of order"
        for level in self.levels().values():
            run, before = level.first, None
            while run is not None and run.before is before and (before is None or before.order < run.order):
                run, before = run.behind, run
            if run is not None or level.last is not before:
                yield "its runs are not linked in order"
                return
            early = level.early or []
            if any(early[n] < early[(n - 1) // 2] for n in range(1, len(early))):
                yield "its early runs are out of order"
        found = sum(1 for _ in self)
        if found != self.count:
            yield f"{found} runs are in it, {self.count} are counted"


def aged(run: Run, aging_us: int) -> int:
    """The first part of the key of a run under aging: each ``aging_us`` that it has been ready is a priority more.

    All runs gain alike, so that how two of them compare never changes: what counts is when it became ready, brought
    forward by its priority.
    """
    return run.last_state_change_at - run.effective_priority * aging_us


def _first_of(level: Level, rank: int) -> Run | None:
    early, first = level.early, level.first
    while early and not _is_early(early[0], level, rank):
        heappop(early)
    if early and (first is None or early[0][0] < first.order):
        return early[0][1]
    return first


def _rank_of(item: tuple[int, Level]) -> int:
    return item[0]


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
