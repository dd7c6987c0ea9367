"""Other processes that submit one at a time while the engine is busy with work of its own."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from msgspec import json

from benchmarks.harness import start_python, wait_for
from benchmarks.work import ARGUMENT, BATCH, open_queue

BACKLOG = 5_000
"""The engine's own submitter keeps so many of its runs waiting."""


def beside_busy_engine(directory: str, seconds: float) -> dict[str, float]:
    """The engine alone, beside one other process, and beside four: its own rate and theirs, each over ``seconds``."""
    place = Path(directory)
    queue = open_queue(place / "jobs.db")
    done = 0
    stop = threading.Event()

    @queue.task
    async def no_op(a: str) -> None:
        nonlocal done
        done += 1

    @queue.task(name="from_client")
    async def from_client(a: str) -> None: ...

    def feed() -> None:
        sent = 0
        while not stop.is_set():
            if sent - done < BACKLOG:
                no_op.submit_many([(ARGUMENT,)] * BATCH)
                sent += BATCH
            else:
                time.sleep(0.002)

    def own_rate() -> float:
        before, began = done, time.perf_counter()
        time.sleep(seconds)
        return (done - before) / (time.perf_counter() - began)

    figures = {"failed": 0.0}
    with queue.running():
        feeder = threading.Thread(target=feed)
        feeder.start()
        time.sleep(1)
        figures["own_per_s"] = own_rate()
        for count in (1, 4):
            clients = Clients(place, count, seconds)
            figures[f"own_beside_{count}"] = own_rate() / figures["own_per_s"]
            figures[f"clients_{count}_per_s"], failed = clients.finish()
            figures["failed"] += failed
        stop.set()
        feeder.join()
        queue.run_until_idle(timeout=60)
    return figures


class Clients:
    """Processes that submit, from the moment that all of them are ready, which is when the constructor returns."""

    def __init__(self, place: Path, count: int, seconds: float) -> None:
        self._answers = [place / f"answer-{count}-{n}" for n in range(count)]
        ready = [place / f"ready-{count}-{n}" for n in range(count)]
        go = place / f"go-{count}"
        self._processes = [
            start_python(
                "benchmarks.rows_clients:client",
                path=str(place / "jobs.db"),
                ready=str(ready[n]),
                go=str(go),
                seconds=seconds,
                answer=str(self._answers[n]),
            )
            for n in range(count)
        ]
        wait_for(lambda: all(each.exists() for each in ready), 30, "the clients' start")
        go.touch()

    def finish(self) -> tuple[float, float]:
        """Submissions a second of all together, and how many failed (a process that did counts as one)."""
        failed = sum(process.wait(60) != 0 for process in self._processes)
        said = [json.decode(answer.read_bytes()) for answer in self._answers if answer.exists()]
        return sum(each["per_s"] for each in said), failed + sum(each["failed"] for each in said)


def client(path: str, ready: str, go: str, seconds: float) -> dict[str, float]:
    """A client's part: submissions a second, and how many raised."""
    queue = open_queue(Path(path), role="client")

    @queue.task(name="from_client")
    async def from_client(a: str) -> None: ...

    from_client.submit(ARGUMENT)
    Path(ready).touch()
    wait_for(Path(go).exists, 30, "the start")
    count = failed = 0
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        try:
            from_client.submit(ARGUMENT)
            count += 1
        except Exception:
            failed += 1
    rate = count / (time.perf_counter() - began)
    queue.close()
    return {"per_s": rate, "failed": failed}
