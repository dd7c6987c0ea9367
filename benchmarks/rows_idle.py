"""What an engine costs that has nothing to do."""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks.work import ARGUMENT, open_queue


def idle(directory: str, seconds: float) -> dict[str, float]:
    """CPU time of the process, in percent of one core, after it has done something and is idle again."""
    queue = open_queue(Path(directory) / "jobs.db")

    @queue.task
    async def no_op(a: str) -> None: ...

    with queue.running():
        no_op.submit_many([(ARGUMENT,)] * 500)
        queue.run_until_idle()
        time.sleep(1)
        before, began = time.process_time(), time.perf_counter()
        time.sleep(seconds)
        return {"cpu_percent": (time.process_time() - before) / (time.perf_counter() - began) * 100}
