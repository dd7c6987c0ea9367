"""Concurrency keys: what they cost a run, in the same process as runs without."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from benchmarks.harness import fresh, in_parts
from benchmarks.work import ARGUMENT, BATCH, open_queue, timed

LIMIT_S = 120.0


def keyed(directory: str, runs: int, keys: int, pairs: int) -> dict[str, float]:
    """Runs without keys and runs over so many keys, alternately, each in a fresh process; medians, and of the ratios."""
    plain: list[float] = []
    with_keys: list[float] = []
    for n in range(pairs):
        for name, rates, count in (("plain", plain, 0), ("keyed", with_keys, keys)):
            place = Path(directory, f"{name}-{n}")
            place.mkdir()
            rates.append(fresh("benchmarks.rows_limits:drain", LIMIT_S, directory=str(place), runs=runs, keys=count))
    return {
        "runs_per_s": median(with_keys),
        "ratio": median(keyed / bare for keyed, bare in zip(with_keys, plain, strict=True)),
        "plain_per_s": median(plain),
    }


def drain(directory: str, runs: int, keys: int) -> float:
    """Submitted in batches, run, and every end durable; runs a second."""
    queue = open_queue(Path(directory) / "jobs.db")

    async def work(customer: int, a: str) -> None: ...

    task = queue.task(concurrency_key="customer:{customer}")(work) if keys else queue.task(work)
    with queue.running():

        def go() -> None:
            first = 0
            for size in in_parts(runs, BATCH):
                task.submit_many([(n % (keys or runs), ARGUMENT) for n in range(first, first + size)])
                first += size
            queue.run_until_idle(timeout=LIMIT_S)

        seconds = timed(go)
        done = queue.stats().runs.get("completed", 0)
    if done != runs:
        raise RuntimeError(f"{done} runs completed of {runs}")
    return runs / seconds
