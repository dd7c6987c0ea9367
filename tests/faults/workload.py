"""A lifetime of an engine on a real store, driven by hand: ``workload.py STORE SEED RUNS CACHE_BYTES END``.

The engine's parts are the real ones and take their turns one after the other (``WriterRig``), so that one seed gives one
story: submissions of every size, starts, every outcome, cancels, pauses, commands through the inbox, projections,
checkpoints, pruning of tasks and of the log. END is "close", or "kill": then the process ends without a word.

What was promised to whom is told in the file STORE.marks, one write each, between the writes that it is about:

    opened EPOCH            the store is this engine's
    begin SEQ HASH STATE    a commit is about to be written; what the log and the state are when it is there
    done SEQ                it was acknowledged
    kept COMMAND            a command was acknowledged to a client: it is in the inbox
"""

from __future__ import annotations

import gc
import os
import random
import sys
from pathlib import Path
from typing import Any

from actionqueue.core.attempts import Finish
from actionqueue.core.check import fingerprint
from actionqueue.core.control import CancelRun, Pause, Resume
from actionqueue.core.ids import IdSource
from actionqueue.core.spec import Submission
from actionqueue.core.state import ErrorInfo, Outcome
from actionqueue.core.submission import Submit
from actionqueue.engine.work import Turn
from actionqueue.store.codec import chain, decode_command, digest, encode_command, encode_events
from actionqueue.store.inbox import Inbox
from actionqueue.store.port import Reader
from actionqueue.store.sqlite import SQLiteStore
from tests.engine.rig import DAY, HANDLER, WriterRig, finished
from tests.scenarios.world import SECOND

BODY_BYTES = (20, 20, 20, 60, 60, 60, 300, 300, 300, 1_500, 6_000)
OUTCOMES = (Outcome.COMPLETED,) * 8 + (Outcome.FAILED, Outcome.SNOOZED)
LIVE_RUNS_MAX = 60
"""So that a picture of the state, one at each commit, costs little."""
STEP_US = (0, 1_000, 30_000, 120_000, 5 * SECOND)


class Marks:
    """The file in which the promises are told."""

    def __init__(self, store: Path) -> None:
        self._file = os.open(f"{store}.marks", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def tell(self, line: str) -> None:
        os.write(self._file, f"{line}\n".encode())


class Recorded(WriterRig):
    """A rig whose commits are told of."""

    def __init__(self, store: SQLiteStore, marks: Marks, seed: int) -> None:
        self._marks = marks
        self._reader: Reader | None = None
        super().__init__(slots=20, store=store, seed=seed)
        marks.tell(f"opened {self.opened.epoch}")

    @property
    def reader(self) -> Reader:
        """One is enough, and is closed at the end."""
        if self._reader is None:
            self._reader = self.store.reader()
        return self._reader

    def commit(self, turn: Turn) -> None:
        if not turn.events:
            super().commit(turn)
            return
        seq = self._seq + len(turn.events)
        hashed = chain(self._hash, encode_events(turn.events))
        self._marks.tell(f"begin {seq} {hashed.hex()} {fingerprint(self.state).hex()}")
        super().commit(turn)
        self._marks.tell(f"done {seq}")


class Workload:
    """One lifetime; see the module's head."""

    def __init__(self, path: Path, seed: int, cache_bytes: int) -> None:
        self._draw = random.Random(seed)
        self._marks = Marks(path)
        self._next_id = IdSource(self._draw.randbytes).next
        self.store = SQLiteStore(path, cache_bytes=cache_bytes)
        self.rig = Recorded(self.store, self._marks, seed)
        self._client, self._inbox = Inbox(path), Inbox(path)
        self._sent: set[bytes] = set()
        self._paused = False

    def live(self, runs: int) -> None:
        """Until so many have been submitted."""
        ways = [self._submit, self._send, self._finish, self._finish, self._finish, self._pass_time]
        submitted = steps = 0
        while submitted < runs:
            crowded = len(self.rig.state.runs) > LIVE_RUNS_MAX
            submitted += self._draw.choice(ways[2:] if crowded else ways)() or 0
            steps += 1
            if steps % 7 == 0:
                self._receive()
            if steps % 40 == 0:
                self._operate()
            if steps % 60 == 0:
                self._keep_house()

    def end(self, how: str) -> None:
        """In order, or at once."""
        if how == "kill":
            os._exit(0)
        self._receive()
        self._client.close()
        self._inbox.close()
        self.rig.reader.close()
        self.store.close()

    def _item(self) -> Submission:
        body = self._draw.randbytes(self._draw.choice(BODY_BYTES))
        key = self._draw.choice((None, None, self._draw.randbytes(8).hex()))
        now = self.rig.now
        return Submission(
            self._next_id(now), self._next_id(now), HANDLER, body, digest(body), key=key,
            content=None if key is None else digest(body), delay_us=self._draw.choice((None, None, None, 20 * SECOND)),
            max_attempts=self._draw.choice((1, 3)),
        )  # fmt: skip

    def _submit(self) -> int:
        items = [self._item() for _ in range(self._draw.choice((1, 1, 1, 2, 5)))]
        self.rig.post(Submit(items))
        self.rig.run()
        return len(items)

    def _send(self) -> int:
        """A client's command: in the inbox when it is acknowledged, decided when the engine looks."""
        command_id = self._next_id(self.rig.now)
        self._client.put(command_id, encode_command(Submit([self._item()], at=self.rig.now)), self.rig.now)
        self._marks.tell(f"kept {command_id.hex()}")
        return 1

    def _receive(self) -> None:
        rows = self._inbox.rows(1_000)
        fresh = [row for row in rows if self.rig.reader.reply(row[1]) is None]
        for row in fresh:
            self.rig.post(decode_command(row[4]), command_id=row[1])
        self.rig.run()
        self._inbox.delete([row[:2] for row in rows])

    def _finish(self) -> None:
        running = [run for run in self.rig.state.runs.values() if run.attempt is not None]
        for run in self._draw.sample(running, min(len(running), self._draw.choice((1, 1, 3)))):
            outcome, facts = self._draw.choice(OUTCOMES), dict[str, Any]()
            if outcome is Outcome.COMPLETED:
                facts["body"] = self._draw.randbytes(self._draw.choice(BODY_BYTES))
            elif outcome is Outcome.FAILED:
                facts["error"] = ErrorInfo("E", "as drawn")
            assert run.attempt is not None
            report = Finish(run.id_bytes, run.attempt.id, run.attempt.fence, outcome)
            self.rig.writer.mailbox.append(finished(report, outcome, **facts))  # type: ignore[arg-type]
        self.rig.run()

    def _pass_time(self) -> None:
        self.rig.now += self._draw.choice(STEP_US)
        self.rig.run()

    def _operate(self) -> None:
        """A cancel; a pause, or the end of one."""
        runs = list(self.rig.state.runs)
        if runs:
            self.rig.post(CancelRun(self._draw.choice(runs), self._draw.choice(("cancel", "abandon")), "op"))
        self.rig.post(Resume("handler", HANDLER) if self._paused else Pause("handler", HANDLER))
        self._paused = not self._paused
        self.rig.run()

    def _keep_house(self) -> None:
        """What the engine's thread does in quiet moments: checkpoints, free pages, pruning."""
        self.rig.writer.ask_projection()
        self.rig.run()
        what = self._draw.choice(("checkpoint", "checkpoint", "tasks", "log"))
        if what == "checkpoint":
            for _ in range(2):  # one is made when nothing was committed since the last look
                self.store.maintain()
        elif what == "tasks":
            self.rig.post_prune(self.rig.choose())
            self.rig.run()
        elif what == "log":
            self.store.prune_log(self.rig.state.last_seq - 200, self.rig.now + DAY, 50)


if __name__ == "__main__":
    path, seed, runs, cache_bytes, end = sys.argv[1:6]
    gc.disable()
    workload = Workload(Path(path), int(seed), int(cache_bytes))
    workload.live(int(runs))
    workload.end(end)
