"""Many runs that are over: memory they must not hold, disk they may take, and finding some of them."""

from __future__ import annotations

import gc
import logging
from datetime import datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

from actionqueue import ActionQueue, TerminalFailure
from benchmarks.harness import in_parts
from benchmarks.work import ARGUMENT, BATCH, open_queue, resident_bytes, timed

PAGE = 100
RARE_EVERY = 100
"""One batch in so many is of runs that fail, one is tagged, one goes through a queue of its own."""
BATCHES_PER_ROUND = 100
"""Then all of them are waited for: what is weighed is what ends leave behind, not the deepest backlog there was."""
LOOKS = 15


def finished(directory: str, few: int, runs: int) -> dict[str, float]:
    """Resident memory after ``few`` and after ``runs`` finished runs; then pages and bytes."""
    logging.getLogger("actionqueue").setLevel(logging.CRITICAL)  # the failures are meant
    place = Path(directory)
    path = place / "jobs.db"
    queue = open_queue(path)

    @queue.task(name="no_op")
    async def no_op(a: str) -> None: ...

    @queue.task(no_retry_on=(ValueError,))
    async def fail(a: str) -> None:
        raise TerminalFailure(a)

    with queue.running():
        _finish(queue, no_op, fail, few)
        gc.collect()
        after_few = resident_bytes()
        _finish(queue, no_op, fail, runs - few)
        gc.collect()
        after_all = resident_bytes()
        pages = _pages(queue)
    stored = sum(each.stat().st_size for each in place.glob("jobs.db*"))
    client = open_queue(path, role="client")
    client_pages = _pages(client)
    client.close()
    return {
        "growth_mb": (after_all - after_few) / 1e6,
        "resident_mb": after_all / 1e6,
        "page_ms": max(pages.values()) * 1e3,
        "client_page_ms": max(client_pages.values()) * 1e3,
        "disk_bytes": stored / runs,
        **{f"page_{name}_ms": seconds * 1e3 for name, seconds in pages.items()},
    }


def _finish(queue: ActionQueue, no_op: Any, fail: Any, runs: int) -> None:
    variants = {3: fail, 5: no_op.options(tags=["rare"]), 7: no_op.options(queue="rare")}
    for n, size in enumerate(in_parts(runs, BATCH)):
        variants.get(n % RARE_EVERY, no_op).submit_many([(ARGUMENT,)] * size)
        if n % BATCHES_PER_ROUND == BATCHES_PER_ROUND - 1:
            queue.run_until_idle(timeout=600)
    queue.run_until_idle(timeout=600)


def _pages(queue: ActionQueue) -> dict[str, float]:
    """Median seconds of a page of 100 by filter: the newest page, and one in the middle of the store."""
    filters: dict[str, dict[str, Any]] = {
        "state": {"state": "completed"},
        "failed": {"state": "failed"},
        "handler": {"handler": "no_op"},
        "tag": {"tag": "rare"},
        "queue": {"queue": "rare"},
        "error": {"error": queue.runs(state="failed", limit=1)[0].error_kind},
        "all": {},
    }
    middle = _middle_cursor(queue)
    seconds: dict[str, float] = {}
    for name, wanted in filters.items():
        newest = _median_look(queue, wanted)
        deep = _median_look(queue, wanted | {"cursor": middle})
        seconds[name] = max(newest, deep)
    return seconds


def _median_look(queue: ActionQueue, wanted: dict[str, Any]) -> float:
    def look() -> None:
        if len(queue.runs(limit=PAGE, **wanted)) != PAGE:
            raise RuntimeError(f"no full page of {wanted}")

    look()
    return median(timed(look) for _ in range(LOOKS))


def _middle_cursor(queue: ActionQueue) -> str:
    """A run id half-way through the store: ids are ordered by time."""
    newest = queue.runs(limit=1)[0]
    oldest = _oldest(queue, newest.created_at)
    middle = oldest + (newest.created_at - oldest) / 2
    return str(queue.runs(limit=1, until=middle)[0].id)


def _oldest(queue: ActionQueue, newest: datetime) -> datetime:
    """The instant of the first run, found by halving time from an hour before the newest."""
    low, high = newest - timedelta(hours=1), newest
    while high - low > timedelta(milliseconds=50):
        middle = low + (high - low) / 2
        if len(queue.runs(limit=1, until=middle)):
            high = middle
        else:
            low = middle
    return high
