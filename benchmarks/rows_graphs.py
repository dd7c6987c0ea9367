"""Graphs: what a dependency costs a run, wide and deep, and that unrelated live runs cost a graph nothing."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from actionqueue import ActionQueue, TaskId
from benchmarks.harness import fresh, in_parts
from benchmarks.work import ARGUMENT, BATCH, open_queue, timed

LIMIT_S = 120.0


def graphs(directory: str, width: int, depth: int, unrelated: int, pairs: int) -> dict[str, float]:
    """Runs a second of a graph of ``width`` tasks that one waits for, and of a chain of ``depth``; the same beside
    ``unrelated`` runs that wait for an instant, each in a fresh process; medians."""
    found: dict[str, list[float]] = {}
    for n in range(pairs):
        for name, shape, size, live in (
            ("wide", "wide", width, 0),
            ("wide_beside", "wide", width, unrelated),
            ("deep", "deep", depth, 0),
            ("deep_beside", "deep", depth, unrelated),
        ):
            place = Path(directory, f"{name}-{n}")
            place.mkdir()
            given = {"directory": str(place), "shape": shape, "size": size, "unrelated": live}
            found.setdefault(name, []).append(fresh("benchmarks.rows_graphs:run", LIMIT_S, **given))
    wide, deep = median(found["wide"]), median(found["deep"])
    return {
        "wide_per_s": wide,
        "deep_per_s": deep,
        "wide_beside": median(found["wide_beside"]) / wide,
        "deep_beside": median(found["deep_beside"]) / deep,
    }


def run(directory: str, shape: str, size: int, unrelated: int) -> float:
    """Submitted in one go, run to its end, and every end durable; runs a second."""
    queue = open_queue(Path(directory) / "jobs.db")

    async def work(n: int, a: str) -> None: ...

    task = queue.task(work)
    with queue.running():
        later = task.options(delay="1d")
        for part in in_parts(unrelated, BATCH):
            later.submit_many([(n, ARGUMENT) for n in range(part)])

        def go() -> None:
            (_wide if shape == "wide" else _deep)(queue, size)
            queue.run_until_idle(timeout=LIMIT_S)

        seconds = timed(go)
        done = queue.stats().runs.get("completed", 0)
    expected = size + (shape == "wide")
    if done != expected:
        raise RuntimeError(f"{done} runs completed of {expected}")
    return expected / seconds


def _wide(queue: ActionQueue, size: int) -> None:
    task = queue.handlers["run.<locals>.work"]
    jobs = []
    for part in in_parts(size, BATCH):
        jobs += task.submit_many([(n, ARGUMENT) for n in range(part)])
    task.options(depends_on=jobs).submit(size, ARGUMENT)


def _deep(queue: ActionQueue, size: int) -> None:
    task = queue.handlers["run.<locals>.work"]
    ids = [TaskId.new() for _ in range(size)]
    calls = [task.options(task_id=ids[0]).bind(0, ARGUMENT)]
    calls += [task.options(task_id=ids[n], depends_on=[ids[n - 1]]).bind(n, ARGUMENT) for n in range(1, size)]
    queue.submit_many(calls)
