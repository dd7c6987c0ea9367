"""After kill -9: how soon lost work runs again, how long a large store takes to open, and how fast a log replays."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from statistics import median

from actionqueue import Retry, fixed
from actionqueue.core.machine import Machine
from actionqueue.store.codec import decode_events
from actionqueue.store.sqlite_reader import SQLiteReader
from benchmarks.harness import Failed, fresh, start_python, wait_for
from benchmarks.rows_backlog import submit
from benchmarks.work import ARGUMENT, open_queue, timed

EVENTS_REPLAYED = 1_000_000


# --- kill -9 to retry ---------------------------------------------------------------------------------------------


def retry_after_kill(directory: str, repeats: int) -> dict[str, float]:
    """From SIGKILL to the second attempt's first line, a new process being started at once; the median."""
    return {"seconds": median(_kill_once(Path(directory, str(n))) for n in range(repeats))}


def _kill_once(place: Path) -> float:
    place.mkdir()
    first = start_python("benchmarks.rows_recovery:engine", directory=str(place))
    wait_for((place / "attempt-1").exists, 20, "the first attempt")
    time.sleep(0.3)
    killed = time.monotonic()
    first.send_signal(signal.SIGKILL)
    second = start_python("benchmarks.rows_recovery:engine", directory=str(place))
    wait_for((place / "attempt-2").exists, 20, "the second attempt")
    time.sleep(0.05)
    second.kill()
    first.wait()
    second.wait()
    return float((place / "attempt-2").read_text()) - killed


def engine(directory: str) -> None:
    """An engine whose one handler notes when each attempt began, and never returns."""
    place = Path(directory)
    queue = open_queue(place / "jobs.db")

    @queue.task(retry=Retry(backoff=fixed(0)))
    def hang(n: int) -> None:
        now = time.monotonic()
        attempt = 2 if (place / "attempt-1").exists() else 1
        note = place / f"note-{attempt}"
        note.write_text(str(now))
        note.rename(place / f"attempt-{attempt}")
        time.sleep(600)

    with queue.running():
        if not (place / "attempt-1").exists():
            hang.submit(1)
        time.sleep(600)


# --- opening a large store ----------------------------------------------------------------------------------------


def opening(directory: str, live: int, within_s: float) -> dict[str, float]:
    """A process makes ``live`` runs and is killed in the middle of more; another opens the store."""
    try:
        fresh("benchmarks.rows_recovery:make_live", within_s, directory=directory, live=live)
    except Failed:
        if not Path(directory, "killed").exists():
            raise
    seconds: dict[str, float] = fresh("benchmarks.rows_recovery:open_live", within_s, directory=directory, live=live)
    return seconds


def make_live(directory: str, live: int) -> None:
    """The process that is killed: by itself, while another thread submits."""
    queue = open_queue(Path(directory) / "jobs.db")

    @queue.task(name="no_op")
    async def no_op(a: str) -> None: ...

    with queue.running():
        queue.pause()
        submit(no_op.submit_many, live)
        threading.Thread(target=submit, args=(no_op.submit_many, live), daemon=True).start()
        time.sleep(0.5)
        Path(directory, "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)


def open_live(directory: str, live: int) -> dict[str, float]:
    """The process that opens it: seconds until the engine takes commands and has committed its first turn."""
    queue = open_queue(Path(directory) / "jobs.db")

    @queue.task(name="no_op")
    async def no_op(a: str) -> None: ...

    def enter() -> None:
        queue.open_session(must_be_engine=True)
        no_op.submit(ARGUMENT)

    seconds = timed(enter)
    found = queue.stats().runs["ready"]
    queue.close()
    if found < live:
        raise RuntimeError(f"{found} runs live after the crash; {live} were acknowledged")
    return {"seconds": seconds, "live": found}


# --- replay -------------------------------------------------------------------------------------------------------


def replay(directory: str, runs: int) -> dict[str, float]:
    """Read, check, decode and apply the log of finished runs, as opening does with what the tables do not have yet."""
    path = Path(directory) / "jobs.db"
    fresh("benchmarks.rows_throughput:drain_async", 300, directory=directory, runs=runs)
    reader = SQLiteReader(path)
    machine = Machine()

    def work() -> None:
        for commit in reader.commits(0):
            machine.replay(decode_events(commit.events, commit.version))
            if machine.state.last_seq >= EVENTS_REPLAYED:
                break

    seconds = timed(work)
    reader.close()
    return {"events_per_s": machine.state.last_seq / seconds, "events": machine.state.last_seq}
