"""The FastAPI example under the servers that people use (issue line 10).

A thousand requests submit and every run completes once; the engine's process is killed and another takes over; SIGTERM
ends everything in time, with a thread stuck for ever and a worker process in a loop of C code.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from actionqueue import ActionQueue, RunRecord
from actionqueue.store.lock import read_holder
from tests.process.support import PATIENCE_S, ROOT, Program, Programs, descendants_of, eventually, is_alive, within

httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("gunicorn")

REQUESTS = 1_000
AT_ONCE = 16
TAKE_OVER_S = 2.0
DRAIN_S = 1.0
APP = "tests.process.programs.web_app:app"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """A server with the example on it."""

    def __init__(self, programs: Programs, store: Path, command: Callable[[int], list[str]]) -> None:
        self.store = store
        self.port = free_port()
        env = {
            "JOBS_DB": str(store),
            "DRAIN_TIMEOUT": f"{DRAIN_S}s",
            "PYTHONWARNINGS": "default",
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
        }
        self.program: Program = programs.run([sys.executable, "-m", *command(self.port)], env=env)
        eventually(self.answers, "it answers", of=self.program)
        eventually(self.engine_pid, "one of its processes is the engine", of=self.program)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def answers(self) -> bool:
        with suppress(httpx.TransportError):
            return bool(httpx.get(f"{self.url}/pid").status_code == 200)
        return False

    def engine_pid(self) -> int:
        """Who is the engine now; 0 for nobody."""
        holder = read_holder(self.store)
        return 0 if holder is None else holder.pid

    def submit(self, first: int, count: int) -> list[str]:
        """So many requests, several at a time; a request without an answer is repeated under its key."""
        return asyncio.run(self._submit_all(first, count))

    async def _submit_all(self, first: int, count: int) -> list[str]:
        numbers = iter(range(first, first + count))
        runs: list[str] = []
        async with httpx.AsyncClient(base_url=self.url, timeout=PATIENCE_S) as client:

            async def submit_some() -> None:
                for number in numbers:
                    run = await repeatedly(client, number)
                    runs.append(run)

            await asyncio.gather(*(submit_some() for _ in range(AT_ONCE)))
        return runs


async def _post(client: Any, number: int) -> str:
    answer = await client.post(f"/reports/{number}", headers={"Idempotency-Key": f"request-{number}"})
    assert answer.status_code == 202, answer.text
    run: str = answer.json()["run"]
    return run


async def repeatedly(client: Any, number: int) -> str:
    """The answer, however often it has to be asked for."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return await _post(client, number)
        except httpx.TransportError:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)


def check_all_completed_once(store: Path, count: int) -> None:
    """As many tasks as requests, each with one run, completed at its first attempt unless an engine died under it."""
    queue = ActionQueue(store, role="client")
    eventually(lambda: queue.stats().runs["completed"] == count, f"{count} runs are completed")
    assert queue.stats().tasks == count
    for run in queue.iter_runs(limit=500):
        assert run.state == "completed"
        assert run.failure_count == 0
        assert run.attempt_count == run.lost_count + 1
    queue.close()


def check_ends_in_time(server: Server) -> None:
    """SIGTERM to the server's first process, while the worst handlers run."""
    misbehaving = httpx.post(f"{server.url}/misbehave", timeout=PATIENCE_S).json()["runs"]
    queue = ActionQueue(server.store, role="client")

    def running() -> list[RunRecord]:
        return [run for run in queue.runs(state="running") if str(run.id) in misbehaving and run.progress is not None]

    runs = eventually(lambda: found if len(found := running()) == 2 else [], "both are running")
    pids = {run.progress.done for run in runs if run.progress is not None}
    processes = {*descendants_of(server.program.pid), *pids, server.program.pid}
    assert server.engine_pid() in processes
    server.program.send(signal.SIGTERM)
    with within(DRAIN_S + 2.0, "the end"):
        server.program.wait()
        eventually(lambda: not any(map(is_alive, processes - {server.program.pid})), "every process has ended")
    outcomes = {run.handler: run.attempts[0].outcome for run in (queue.get_run(each) for each in misbehaving)}
    assert outcomes == {"stick": "lost", "spin": "interrupted"}
    queue.close()


def uvicorn(*options: str) -> Callable[[int], list[str]]:
    return lambda port: ["uvicorn", APP, "--port", str(port), "--log-level", "warning", *options]


def gunicorn(port: int) -> list[str]:
    options = "--preload --workers 4 --worker-class asgi --graceful-timeout 10 --no-control-socket"
    return ["gunicorn", APP, "--bind", f"127.0.0.1:{port}", "--log-level", "warning", *options.split()]


@pytest.mark.parametrize("name", ["uvicorn", "gunicorn"])
def test_four_workers_share_one_queue(programs: Programs, store: Path, name: str) -> None:
    """The whole story: requests, the engine's death, requests, SIGTERM."""
    server = Server(programs, store, uvicorn("--workers", "4") if name == "uvicorn" else gunicorn)
    half = REQUESTS // 2
    assert len(set(server.submit(0, half))) == half
    check_all_completed_once(store, half)
    first = server.engine_pid()
    os.kill(first, signal.SIGKILL)
    with within(TAKE_OVER_S, "taking over"):
        eventually(lambda: server.engine_pid() not in (0, first), "another worker is the engine")
    assert len(set(server.submit(half, half))) == half
    check_all_completed_once(store, REQUESTS)
    check_ends_in_time(server)


def test_reloading_hands_the_queue_from_process_to_process(programs: Programs, store: Path, tmp_path: Path) -> None:
    """A change of the code restarts the only worker in the middle of the requests."""
    watched = tmp_path / "watched"
    watched.mkdir()
    module = watched / "module.py"
    module.write_text("first = 1\n")
    server = Server(programs, store, uvicorn("--reload", "--reload-dir", str(watched)))
    half = REQUESTS // 2
    server.submit(0, half)
    first = server.engine_pid()
    module.write_text("second = 2\n")
    os.utime(module, (time.time() + 5, time.time() + 5))
    server.submit(half, half)
    eventually(lambda: server.engine_pid() not in (0, first), "the reloaded process is the engine", of=server.program)
    check_all_completed_once(store, REQUESTS)
    check_ends_in_time(server)
