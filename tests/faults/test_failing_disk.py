"""A sync fails, a write is short, the disk is full: under a real engine, at one call after another (S5-12, S5-14).

A program on the shim submits while one of its system calls on the store's files fails (see ``failing.py``). What it was
told is compared with what is there afterwards: with the program's files as they are, and with disks on which nothing is
certain that only a sync covered which came after a failed one ("fsync lies, then the page is dropped").
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from actionqueue import ActionQueue
from actionqueue.core.errors import StoreDamaged
from actionqueue.core.submission import Submit, TaskSubmitted
from actionqueue.store.codec import decode_command, decode_events
from actionqueue.store.inbox import Inbox, inbox_path
from actionqueue.store.sqlite import SQLiteStore
from actionqueue.verify import verify
from tests.engine.rig import recovered
from tests.faults.disk import MARKS, Disk, Step, images, read_steps
from tests.faults.failing import work
from tests.faults.shim import build_shim, needs_shim, shim_environment
from tests.process.support import ROOT, environment

pytestmark = [needs_shim, pytest.mark.slow]

COUNT = 60
NAME = "jobs.db"
IN_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Fault:
    """Which calls fail, and how: see ``disk_shim.c``. ``at_once``: those of the opening count too."""

    call: str
    file: str
    at: int
    kind: str
    count: int = 1
    role: str = "engine"
    at_once: bool = False

    @property
    def plan(self) -> str:
        return f"{self.call} {self.file} {self.at} {self.count} {self.kind}"

    def __str__(self) -> str:
        when = " from the start" if self.at_once else ""
        return f"{self.kind} of {self.call} {self.at} of {self.file}{when}"


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_shim(tmp_path_factory.mktemp("shim"))


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where real syncs cost nothing."""
    with TemporaryDirectory(dir=IN_MEMORY if IN_MEMORY.is_dir() else None) as made:
        yield Path(made)


@dataclass
class Suffered:
    """What became of a program on a failing disk."""

    store: Path
    steps: list[Step]
    errors: str
    acknowledged: list[bytes] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    marks: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for step in self.steps:
            if step.name == MARKS:
                self.marks += step.body.decode().splitlines()
        self.acknowledged = [bytes.fromhex(mark[5:]) for mark in self.marks if mark.startswith("task")]
        self.refused = Counter(mark.split()[1] for mark in self.marks if mark.startswith("refused"))

    @property
    def failed_at(self) -> int:
        """The step of the first failure; -1 when the fault was never met."""
        return next((at for at, step in enumerate(self.steps) if step.op in "fx"), -1)


def run(shim: Path, folder: Path, fault: Fault) -> Suffered:
    """The program, until it has ended by itself."""
    store, record = folder / NAME, folder / "record"
    env = environment() | {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"}
    arm = None if fault.at_once else Path(f"{store}.armed")
    ended = subprocess.run(
        [sys.executable, "-m", "tests.faults.failing", str(store), fault.role, str(COUNT)],
        env=env | shim_environment(shim, store, record=record, fail=fault.plan, arm=arm),
        check=False, capture_output=True, text=True, timeout=90, cwd=ROOT,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-4000:]
    return Suffered(store, read_steps(record), ended.stderr)


# --- what must be so --------------------------------------------------------------------------------------------------


def check_told(suffered: Suffered, fault: Fault) -> None:
    """Whoever was not acknowledged was told that nobody knows, or that nothing was written."""
    codes = {"commit_unknown", "store_unavailable"}
    if fault.call == "read" and fault.kind == "eio":  # which SQLite takes for damage
        codes |= {"store_damaged", "not_a_store"}
    assert set(suffered.refused) <= codes, suffered.refused
    assert suffered.marks[-1] == "closed" or (fault.at_once and suffered.refused), suffered.marks[-3:]
    fenced = fault.call != "read" and fault.kind in ("eio", "drop") and fault.role == "engine" and not fault.at_once
    if fenced and suffered.failed_at >= 0:
        assert "the engine has stopped writing" in suffered.errors


def check_syncs(steps: list[Step]) -> None:
    """Each acknowledgement has a sync of the log it is in behind it; and once a sync of the store's log has failed, it
    is not tried again: the next acknowledgement of an engine stands on a sync of the whole database."""
    failed_at = database_at = -1
    since_begin: set[str] = set()
    is_first = False
    for at, step in enumerate(steps):
        match step.op:
            case "f" if step.name == "-wal":
                failed_at = at
            case "s":
                since_begin.add(step.name)
                database_at = at if step.name == "" else database_at
            case "w" if step.name == MARKS and step.body.startswith(b"begin"):
                since_begin, is_first = set(), failed_at >= 0
            case "w" if step.name == MARKS and step.body.startswith(b"task"):
                assert since_begin & {"-wal", ".inbox-wal"}, "acknowledged before it was synced"
                if is_first and ".inbox-wal" not in since_begin:
                    assert database_at > failed_at, "acknowledged on a log whose sync had failed"
            case _:
                pass


def check_there(path: Path, acknowledged: list[bytes]) -> None:
    """A real opening finds every task that was acknowledged: in the log, or in the inbox still."""
    found: set[bytes] = set()
    store = SQLiteStore(path)
    opened = store.open(pid=1, host="judge")
    recovered(store, opened)
    reader = store.reader()
    for commit in reader.commits(0):
        for event in decode_events(commit.events, commit.version):
            if type(event) is TaskSubmitted:
                assert event.task_id not in found, "submitted twice"
                found.add(event.task_id)
    reader.close()
    store.close()
    if inbox_path(path).exists():
        inbox = Inbox(path)
        for row in inbox.rows(100_000):
            command = decode_command(row[4])
            assert isinstance(command, Submit)
            found |= {item.task_id for item in command.items}
        inbox.close()
    missing = [task_id for task_id in acknowledged if task_id not in found]
    assert not missing, f"{len(missing)} of {len(acknowledged)} acknowledged tasks are gone"


def check_later_disks(suffered: Suffered, folder: Path, seed: int, points: int) -> int:
    """The power fails some time after the failure (and at the end); how many disks were looked at."""
    draw, disk = random.Random(seed), Disk()
    acknowledged: list[bytes] = []
    steps = suffered.steps
    syncs = [at for at, step in enumerate(steps) if step.op == "s" and at > suffered.failed_at]
    cuts = {*draw.sample(syncs, min(points, len(syncs))), len(steps)}
    opened = 0
    for at in range(len(steps) + 1):
        if at in cuts:
            for image in images(disk.pending, draw):
                after = folder / "after"
                after.mkdir()
                try:
                    check_there(disk.write(image, after, NAME), acknowledged)
                except StoreDamaged:
                    if not disk.has_half_a_header(image):
                        raise
                except BaseException as error:
                    error.add_note(
                        f"power lost before step {at}, after a failure at {suffered.failed_at}; left: {image}"
                    )
                    raise
                shutil.rmtree(after)
                opened += 1
        if at == len(steps):
            break
        step = steps[at]
        if step.name == MARKS:
            acknowledged += [bytes.fromhex(m[5:]) for m in step.body.decode().splitlines() if m.startswith("task")]
        else:
            disk.take(step)
    return opened


def check_lived_through(path: Path, acknowledged: list[bytes]) -> None:
    """On a good disk again: nothing is missing, everything is verified, and what was acknowledged is done."""
    check_there(path, acknowledged)
    queue = ActionQueue(path)
    queue.task(work)
    queue.run_until_idle(timeout=60)
    assert queue.stats().runs["completed"] >= len(acknowledged)
    queue.close()
    report = verify(path)
    assert report.ok, str(report)


def suffer(shim: Path, folder: Path, fault: Fault, points: int) -> tuple[Suffered, int]:
    """All of it."""
    suffered = run(shim, folder, fault)
    check_told(suffered, fault)
    check_syncs(suffered.steps)
    disks = check_later_disks(suffered, folder, fault.at, points)
    check_lived_through(suffered.store, suffered.acknowledged)
    return suffered, disks


def say(fault: Fault, suffered: Suffered, disks: int) -> None:
    told = ", ".join(f"{count} {code}" for code, count in suffered.refused.items()) or "none"
    print(f"{fault}: {len(suffered.acknowledged)} acknowledged, refused: {told}; {disks} disks looked at")


# --- the tests --------------------------------------------------------------------------------------------------------

SAMPLE = [
    Fault("sync", "-wal", 9, "eio"),
    Fault("sync", "-wal", 40, "drop"),
    Fault("sync", "db", 2, "drop"),
    Fault("sync", "db", 3, "eio"),
    Fault("write", "-wal", 30, "eio"),
    Fault("write", "-wal", 61, "short"),
    Fault("write", "-wal", 62, "torn", count=2),
    Fault("write", "-wal", 100, "enospc", count=5),
    Fault("write", "db", 7, "enospc"),
    Fault("sync", "-wal", 3, "drop", at_once=True),
    Fault("read", "db", 2, "eio", at_once=True),
    Fault("read", "-wal", 2, "eio"),
    Fault("read", "db", 1, "eintr", count=5, at_once=True),
    Fault("read", "-wal", 1, "short", count=5),
    Fault("sync", ".inbox-wal", 8, "drop", role="client"),
    Fault("write", ".inbox-wal", 23, "torn", count=2, role="client"),
]


@pytest.mark.parametrize("fault", SAMPLE, ids=str)
def test_what_was_acknowledged_on_a_failing_disk_is_there(shim: Path, folder: Path, fault: Fault) -> None:
    """S5-12, S5-14: also if the system gave up the pages that it could not write."""
    suffered, disks = suffer(shim, folder, fault, points=2)
    say(fault, suffered, disks)
    assert suffered.failed_at >= 0, "the fault was never met"


def every_fault() -> Iterator[Fault]:
    """Syncs one by one, writes in steps that are no multiple of a page's two."""
    for kind in ("eio", "drop"):
        yield from (Fault("sync", "-wal", at, kind) for at in range(1, 60, 2))
        yield from (Fault("sync", "db", at, kind) for at in range(1, 8))
        yield from (Fault("sync", "-wal", at, kind, at_once=True) for at in range(1, 6))
        yield from (Fault("sync", "db", at, kind, at_once=True) for at in range(1, 5))
        yield from (Fault("sync", ".inbox-wal", at, kind, role="client") for at in range(1, 12, 2))
    for kind, count in (("eio", 1), ("short", 1), ("torn", 2), ("enospc", 1), ("enospc", 20)):
        yield from (Fault("write", "-wal", at, kind, count) for at in range(1, 120, 17))
        yield from (Fault("write", "db", at, kind, count) for at in range(1, 40, 13))
        yield from (Fault("write", "-wal", at, kind, count, at_once=True) for at in range(1, 40, 13))
        yield from (Fault("write", ".inbox-wal", at, kind, count, role="client") for at in range(1, 60, 19))

    for kind, count in (("eio", 1), ("eio", 20), ("eintr", 3), ("short", 3)):
        for role in ("engine", "client"):
            yield from (Fault("read", "db", at, kind, count, role, at_once=True) for at in range(1, 30, 7))
        yield from (Fault("read", "-wal", at, kind, count) for at in range(1, 60, 13))
        yield from (Fault("read", ".inbox", at, kind, count, "client", at_once=True) for at in range(1, 9, 3))


@pytest.mark.soak
def test_what_was_acknowledged_is_there_whichever_call_failed(shim: Path, folder: Path) -> None:
    """S5-12, S5-14: over all of ``every_fault``."""
    total: Counter[str] = Counter()
    for number, fault in enumerate(every_fault()):
        here = folder / str(number)
        here.mkdir()
        try:
            suffered, disks = suffer(shim, here, fault, points=4)
        except BaseException as error:
            error.add_note(str(fault))
            raise
        say(fault, suffered, disks)
        shutil.rmtree(here)
        total += Counter(faults=1, disks=disks, acknowledged=len(suffered.acknowledged), met=suffered.failed_at >= 0)
        total += Counter(suffered.refused)
    print(dict(total))
    assert total["met"] > total["faults"] * 0.8
