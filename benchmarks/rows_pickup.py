"""How soon a handler begins after the call of submit, when nothing else is going on."""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks.harness import start_python, wait_for
from benchmarks.work import open_queue, percentile

PAUSE_S = 0.005


def in_process(directory: str, submissions: int) -> dict[str, float]:
    """Submitted by a thread of the engine's process."""
    queue = open_queue(Path(directory) / "jobs.db")
    delays: list[int] = []

    @queue.task
    async def note(sent_ns: int) -> None:
        delays.append(time.perf_counter_ns() - sent_ns)

    with queue.running():
        for _ in range(submissions):
            note.submit(time.perf_counter_ns())
            time.sleep(PAUSE_S)
        queue.run_until_idle()
    return _figures(delays)


def from_another_process(directory: str, submissions: int) -> dict[str, float]:
    """Submitted by another process, through the inbox. Both read the machine's monotonic clock."""
    path = Path(directory) / "jobs.db"
    queue = open_queue(path)
    delays: list[int] = []

    @queue.task(name="note")
    async def note(sent_ns: int) -> None:
        delays.append(time.monotonic_ns() - sent_ns)

    with queue.running():
        client = start_python("benchmarks.rows_pickup:submit_as_client", path=str(path), submissions=submissions)
        if client.wait() != 0:
            raise RuntimeError("the submitting process failed")
        wait_for(lambda: len(delays) == submissions, 10, "the last handlers")
    return _figures(delays)


def submit_as_client(path: str, submissions: int) -> None:
    """The other process's part."""
    queue = open_queue(Path(path), role="client")

    @queue.task(name="note")
    async def note(sent_ns: int) -> None: ...

    for _ in range(submissions):
        note.submit(time.monotonic_ns())
        time.sleep(PAUSE_S)
    queue.close()


def _figures(delays_ns: list[int]) -> dict[str, float]:
    settled = delays_ns[len(delays_ns) // 10 :]  # the first ones also pay for opening
    return {"p50_ms": percentile(settled, 50) / 1e6, "p99_ms": percentile(settled, 99) / 1e6}
