"""``top``: the queue live, a frame a second."""

from __future__ import annotations

import time
from argparse import Namespace
from collections import Counter
from datetime import datetime
from typing import Any

from actionqueue.cli.commands_read import slots_of
from actionqueue.cli.live import redraw, repeat
from actionqueue.cli.opening import open_store
from actionqueue.cli.render import Column, ago, columns_of_terminal, counted, cut, print_json, table
from actionqueue.cli.running import DONE
from actionqueue.core.plain import plain
from actionqueue.records import RunRecord, Stats
from actionqueue.store_client import StoreClient

ENDED = ("completed", "failed", "canceled")
RUNNING_LISTED_MAX = 1000
FIRST_SAMPLE_S = 0.5
"""Between the first two looks, so that the first frame has rates too."""


def top(options: Namespace) -> int:
    """Draw frames until interrupted, or one."""
    client = open_store(options)
    look = Look(client)
    time.sleep(FIRST_SAMPLE_S)
    times = 1 if options.once else None
    if options.json:
        repeat(lambda _: print_json(look.facts(look.take())), options.interval, times)
    else:
        redraw(lambda now: look.frame(look.take(), now), options.interval, times)
    return DONE


class Look:
    """Samples of the store's counters; rates come from two of them."""

    def __init__(self, client: StoreClient) -> None:
        self._client = client
        self._at = time.monotonic()
        self._last = client.stats()
        self._rates: dict[str, float] = {}

    def take(self) -> Stats:
        """A new sample; the rates since the one before it, per second."""
        stats, at = self._client.stats(), time.monotonic()
        passed = max(at - self._at, 0.001)
        # pruning makes counters smaller; that is no negative rate
        self._rates = {state: max(0, stats.runs[state] - self._last.runs[state]) / passed for state in ENDED}
        self._last, self._at = stats, at
        return stats

    def _running(self) -> list[RunRecord]:
        return list(self._client.runs(state="running", limit=RUNNING_LISTED_MAX))

    def facts(self, stats: Stats) -> dict[str, Any]:
        """One sample as plain values."""
        return {
            "store": str(self._client.store),
            "engine": plain(self._client.engine_holder()),
            "per_second": {state: round(rate, 1) for state, rate in self._rates.items()},
            "running": dict(Counter(run.handler for run in self._running())),
            **plain(stats),
        }

    def frame(self, stats: Stats, now: datetime) -> str:
        """One sample as lines."""
        holder = self._client.engine_holder()
        width = columns_of_terminal() or 80
        runs = stats.runs
        ready = f"{runs['ready']} ready" + (f" ({stats.blocked} blocked)" if stats.blocked else "")
        waits = f"{runs['retry_wait']} in retry_wait   {runs['scheduled']} scheduled"
        engine = "none" if holder is None else f"pid {holder.pid} on {holder.host}"
        failed = self._rates.get("failed", 0.0)
        rates = f"{sum(self._rates.values()):.1f} ended/s, {failed:.1f} failed/s"
        lines = [
            f"{self._client.store}   engine: {engine}   {now:%H:%M:%S}Z",
            f"live    {runs['running']} running   {ready}   {waits}",
            f"ended   {runs['completed']} completed   {runs['failed']} failed   {runs['canceled']} canceled",
            f"rate    {rates}   oldest ready: {ago(stats.oldest_ready_at, now)}",
            f"slots   {slots_of(stats) or '-'}",
        ]
        if stats.paused:
            lines.append(f"paused  {', '.join(stats.paused)}")
        waiting = self._client.waiting_commands()
        if waiting:
            lines.append(f"inbox   {counted(waiting, 'command')} waiting for an engine")
        return "\n".join([*(cut(line, width) for line in lines), "", self._handlers(now, width)])

    def _handlers(self, now: datetime, width: int) -> str:
        running = self._running()
        if not running:
            return "nothing is running"
        oldest: dict[tuple[str, str], datetime] = {}
        counts: Counter[tuple[str, str]] = Counter()
        for run in running:
            name = (run.handler, run.queue)
            counts[name] += 1
            started = run.started_at or run.created_at
            oldest[name] = min(started, oldest.get(name, started))
        columns = [
            Column("RUNNING", right=True),
            Column("HANDLER", flexible=True),
            Column("QUEUE"),
            Column("LONGEST", right=True),
        ]
        rows = [[str(count), *name, ago(oldest[name], now)] for name, count in counts.most_common()]
        return table(columns, rows, width)
