"""A small engine without threads: a real machine that makes the batches which the store tests write.

Its ids and instants are made from a seed, so two stores can be given the very same batches.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from actionqueue.core import loading, rows
from actionqueue.core.attempts import Finish, Progress
from actionqueue.core.control import CancelRun, Pause
from actionqueue.core.epochs import Prune
from actionqueue.core.errors import ActionQueueError
from actionqueue.core.ids import IdSource
from actionqueue.core.machine import Command, Machine
from actionqueue.core.retry import DEFAULT_TERMS, exponential
from actionqueue.core.spec import Submission, TaskOptions
from actionqueue.core.state import ErrorInfo, Outcome, Output, State
from actionqueue.core.submission import KnownRun, RetryRun, Submit, TaskImage, TaskSubmitted
from actionqueue.store import codec
from actionqueue.store.port import Batch, Commit, Opened, Reader, Store

START = 1_750_000_000_000_000
SECOND = 1_000_000

HANDLERS = ("mail", "resize", "report.daily")


class Driver:
    """Commands go in and are applied at once; ``batch`` is what has happened since the last one."""

    def __init__(self, opened: Opened | None = None, *, seed: int = 1, machine: Machine | None = None) -> None:
        self.random = random.Random(seed)
        self.source = IdSource(self.random.randbytes)
        self.machine = machine or Machine()
        self.epoch = 1 if opened is None else opened.epoch
        self.last_seq = 0 if opened is None else opened.last_seq
        self.last_hash = codec.CHAIN_START if opened is None else opened.last_hash
        self.now = max(START, self.machine.state.last_at)
        self.events: list[Any] = []
        self.blobs: list[tuple[bytes, bytes]] = []
        self.pruned: list[bytes] = []
        self.tasks: list[bytes] = []
        self.runs: list[bytes] = []
        self._submitted: dict[bytes, TaskSubmitted] = {}
        places = self.machine.state.places
        places.set_executor("async", 1000)
        for handler in HANDLERS:
            places.register(handler, "async", DEFAULT_TERMS)
        self.events += self.machine.open(self.now, self.epoch, 1, "here", "0", 0.5)

    @property
    def state(self) -> State:
        return self.machine.state

    def tick(self, us: int = 1000) -> None:
        self.now += us

    def do(self, command: Command) -> Any:
        """The reply; a refusal is raised."""
        done = self.machine.perform(command, self.now)
        if isinstance(done, ActionQueueError):
            raise done
        self.events += done[0]
        return done[1]

    def submit(self, handler: str = "mail", count: int = 1, body: bytes = b'{"to": 1}', **fields: Any) -> list[bytes]:
        """Submit tasks of one run each; the ids of the runs."""
        items = []
        for _ in range(count):
            task_id = fields.pop("task_id", None) or self.source.next(self.now)
            run_id = self.source.next(self.now)
            items.append(Submission(task_id, run_id, handler, body, codec.digest(body), **fields))
            self.blobs.append((task_id, body))
            self.tasks.append(task_id)
            self.runs.append(run_id)
        first = len(self.events)
        self.do(Submit(items))
        self._submitted |= {each.task_id: each for each in self.events[first:] if isinstance(each, TaskSubmitted)}
        return [item.run_id for item in items]

    def start(self) -> list[bytes]:
        """Start all that may start; the ids of the runs."""
        started: list[Any] = []
        self.machine.start_ready(self.now, self.source.next, started)
        self.events += started
        return [event.run_id for event in started]

    def finish(self, run_id: bytes, outcome: Outcome = Outcome.COMPLETED, **fields: Any) -> None:
        attempt = self.state.runs[run_id].attempt
        assert attempt is not None
        if (body := fields.get("body")) is not None:
            fields["output"] = Output(codec.digest(body), len(body))
            self.blobs.append((run_id, body))
        self.do(Finish(run_id, attempt.id, attempt.fence, outcome, **fields))

    def fail(self, run_id: bytes, kind: str = "ValueError", message: str = "no", **fields: Any) -> None:
        self.finish(run_id, Outcome.FAILED, error=ErrorInfo(kind, message, "Traceback: secret words"), **fields)

    def run(self, count: int = 1, handler: str = "mail", **fields: Any) -> list[bytes]:
        """Submit, start and complete; the ids of the runs."""
        ids = self.submit(handler, count, **fields)
        self.tick()
        self.start()
        self.tick()
        for run_id in ids:
            self.finish(run_id, body=b'"done"')
        return ids

    def prune(self, reader: Reader, count: int) -> list[bytes]:
        found = reader.finished_before(self.now + 1, count)
        sums = [sum(row[at] for row in found) for at in (9, 10, 11)]
        self.do(Prune(len(found), sums[0], sums[1], sums[2], self.now))
        self.pruned += [row[0] for row in found]
        return [row[0] for row in found]

    def batch(self, *, project: bool = True, replies: Sequence[tuple[bytes, bytes, int]] = ()) -> Batch:
        commit = None
        expected = self.last_seq
        if self.events:
            body = codec.encode_events(self.events)
            hashed = codec.chain(self.last_hash, body)
            last = expected + len(self.events)
            commit = Commit(expected + 1, last, self.now, self.epoch, codec.EVENTS_VERSION, body, hashed)
            self.last_seq, self.last_hash = last, hashed
        projection = rows.project(self.state) if project else None
        made = Batch(commit, expected, self.epoch, self.blobs, projection, list(replies), self.pruned)
        self.events, self.blobs, self.pruned = [], [], []
        return made

    def step(self) -> None:
        """Something random."""
        draw = self.random
        self.tick(draw.randrange(1, 3 * SECOND))
        match draw.randrange(10):
            case 0 | 1 | 2 | 3:
                self._submit_something()
            case 4 | 5 | 6:
                self._end_something()
            case 7 if self.state.runs:
                self.do(CancelRun(draw.choice(list(self.state.runs)), by="someone"))
            case 8:
                self._retry_something()
            case _:
                events: list[Any] = []
                self.machine.fire_due(self.now, self.source.next, events)
                self.events += events
        self.start()

    def _submit_something(self) -> None:
        draw = self.random
        fields: dict[str, Any] = {"queue": draw.choice([None, None, "slow", "tenant-7"])}
        if draw.random() < 0.3:
            fields["options"] = TaskOptions(tags=tuple(draw.sample(["red", "blue", "vip"], draw.randrange(1, 3))))
        if draw.random() < 0.2:
            fields |= {"key": f"key-{draw.randrange(1_000_000)}", "content": b"c" * 16}
        if draw.random() < 0.2:
            fields["delay_us"] = draw.randrange(1, 60 * SECOND)
        if draw.random() < 0.1:
            fields |= {"task_id": draw.randbytes(16), "task_id_given": True, "content": b"c" * 16}
        if draw.random() < 0.2:
            fields |= {"expires_us": 30 * SECOND, "priority": draw.randrange(-3, 3)}
        if draw.random() < 0.2:
            fields |= {"max_attempts": 5, "options": TaskOptions(backoff=exponential("1s"), description="d")}
        self.submit(draw.choice(HANDLERS), 1 if "task_id" in fields or "key" in fields else 3, **fields)

    def _end_something(self) -> None:
        draw = self.random
        running = [run_id for run_id, run in self.state.runs.items() if run.attempt is not None]
        for run_id in draw.sample(running, min(4, len(running))):
            attempt = self.state.runs[run_id].attempt
            assert attempt is not None
            match draw.randrange(6):
                case 0:
                    self.fail(run_id, draw.choice(["ValueError", "OSError", "kaputt-é"]), "went wrong", draw=0.5)
                case 1:
                    self.fail(run_id, "KeyError", "a needle in here", terminal=True)
                case 2:
                    self.do(Progress(run_id, attempt.id, attempt.fence, 1, 3, "a third"))
                case 3:
                    self.finish(run_id)
                case _:
                    self.finish(run_id, body=b"[1, 2]")

    def _retry_something(self) -> None:
        draw = self.random
        gone = [run_id for run_id in self.runs if run_id not in self.state.runs]
        if not gone:
            return
        run_id = draw.choice(gone)
        was = self._submitted.get(self.tasks[self.runs.index(run_id)])
        if was is None:
            return
        image = TaskImage(
            was.task_id, was.handler, was.queue, was.priority, was.max_attempts, was.at, was.payload_digest,
            was.payload_bytes, 1, (0, 1, 0), was.rare,
        )  # fmt: skip
        if image.task_id in self.state.tasks:
            return
        new = self.source.next(self.now)
        self.do(RetryRun(run_id, new, "someone", KnownRun(run_id, 8, run_id, image)))

    def pause(self) -> None:
        self.do(Pause("queue", "slow", "someone"))


def load(store: Store, opened: Opened) -> Machine:
    """What an engine does at opening: the live rows, then the log's tail."""
    machine = Machine(loading.load(*store.live_rows()))
    reader = store.reader()
    for commit in reader.commits(machine.state.last_seq):
        events = codec.decode_events(commit.events, commit.version)
        machine.replay(events[machine.state.last_seq + 1 - commit.first_seq :])
    reader.close()
    assert machine.state.last_seq == opened.last_seq
    return machine


def picture(state: State) -> dict[str, Any]:
    """Everything of a state that replay compares, as rows; what is blocked depends on this process's handlers."""
    return {
        "facts": replace(rows.facts_of(state), blocked=0),
        "standing": rows.standing_of(state),
        "tasks": sorted(rows.task_row(task) for task in state.tasks.values()),
        "runs": sorted(rows.run_row(run) for run in state.runs.values()),
        "attempts": sorted(
            rows.attempt_row(run_id, run.attempt) for run_id, run in state.runs.items() if run.attempt is not None
        ),
    }
