"""The power fails at every sync of a recorded workload: recovered whole, or refused; never silent loss (S5-12, S5-15).

Two thousand runs are worked through on a real store by a program on the shim (see ``workload.py``, ``disk_shim.c``), in
three lifetimes: killed, closed, killed. For the instant before each sync (of the log, the database, the inbox, in a
commit, a checkpoint, an opening), when the most is at stake, disks are rebuilt with nothing, all, some and part of what
was written since the syncs before it, and opened by the real store and the real recovery.

One disk is refused: that whose log begins with half of a new header, torn within its 32 bytes, with the frames of the
generation before behind it. It looks as rot in the header of a log that still counts does, and so it is not guessed at
(`wal_scan`). Disks write sectors whole; torn at a sector's end, everything is recovered.
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

from actionqueue.store.sqlite import SQLiteStore
from actionqueue.verify import verify
from tests.engine.rig import WriterRig, submission
from tests.faults.disk import MARKS, Disk, Image, Step, images, read_steps
from tests.faults.judge import Outcome, Promises, judge
from tests.faults.shim import build_shim, needs_shim, shim_environment
from tests.process.support import PATIENCE_S, ROOT, environment

pytestmark = [needs_shim, pytest.mark.slow]

LIVES = (("1", "700", str(16 << 20), "kill"), ("2", "650", str(64 << 10), "close"), ("3", "650", str(16 << 20), "kill"))
"""Seed, runs, bytes of page cache (few: transactions reach the log before their end), end."""
RUNS = sum(int(runs) for _, runs, _, _ in LIVES)
NAME = "jobs.db"
IN_MEMORY = Path("/dev/shm")


@pytest.fixture(scope="module")
def quick_folder() -> Iterator[Path]:
    """Where syncs cost nothing, if the system has such a place: they are recorded, not relied on."""
    with TemporaryDirectory(dir=IN_MEMORY if IN_MEMORY.is_dir() else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def recording(quick_folder: Path) -> list[Step]:
    """Everything that was done to the store's files."""
    store, record = quick_folder / NAME, quick_folder / "record"
    shim = build_shim(quick_folder)
    env = environment() | {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"}
    for seed, runs, cache_bytes, end in LIVES:
        subprocess.run(
            [sys.executable, "-m", "tests.faults.workload", str(store), seed, runs, cache_bytes, end],
            env=env | shim_environment(shim, store, record=record),
            check=True, timeout=PATIENCE_S * 4, cwd=ROOT,
        )  # fmt: skip
    assert verify(store).ok
    return read_steps(record)


@dataclass
class Tally:
    """What the test counts, and prints."""

    syncs: int = 0
    commits: int = 0
    opened: int = 0
    verified: int = 0
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)

    def note(self, image: Image, outcome: Outcome) -> None:
        self.opened += 1
        self.outcomes[image.kind, outcome.kind] += 1
        if outcome.kind != "whole":
            self.refusals[f"{outcome.place}: {outcome.message[:200]}"] += 1

    @property
    def kinds(self) -> Counter[str]:
        counted: Counter[str] = Counter()
        for (_, kind), count in self.outcomes.items():
            counted[kind] += count
        return counted

    def __str__(self) -> str:
        counts = f"{self.commits} commits acknowledged, {self.syncs} syncs, {self.opened} disks opened"
        lines = [
            f"{counts}, {self.verified} of them verified: {dict(self.kinds)}",
            *(f"  {image:24}{kind:10}{count}" for (image, kind), count in sorted(self.outcomes.items())),
            *(f"  refused {count} times: {said}" for said, count in self.refusals.most_common(5)),
        ]
        return "\n".join(lines)


class Failure:
    """Cuts the power where it is told to, on copies of the disk."""

    def __init__(self, folder: Path, seed: int, subsets: int = 2, verify_every: int = 50) -> None:
        self._folder = folder / "after"
        self._draw = random.Random(seed)
        self._subsets, self._verify_every = subsets, verify_every
        self.tally = Tally()

    def strike(self, disk: Disk, promised: Promises, at: int) -> None:
        """Look at what may be left, in each way."""
        for image in images(disk.pending, self._draw, self._subsets):
            self._folder.mkdir(parents=True)
            path = disk.write(image, self._folder, NAME)
            try:
                outcome = judge(path, promised)
                if outcome.kind == "whole" and self.tally.opened % self._verify_every == 0:
                    live_on(path)
                    self.tally.verified += 1
            except BaseException as error:
                error.add_note(f"power lost before step {at} of the recording; left of the disk: {image}")
                raise
            self.tally.note(image, outcome)
            assert outcome.kind == "whole" or disk.has_half_a_header(image), (at, image, outcome)
            shutil.rmtree(self._folder)


def live_on(path: Path) -> None:
    """The store is as good as ever: verified, written to, and verified again."""
    report = verify(path)
    assert report.ok, str(report)
    store = SQLiteStore(path)
    rig = WriterRig(store=store, seed=99)
    rig.submit(submission())
    store.close()
    report = verify(path)
    assert report.ok, str(report)


def cut_power(recording: list[Step], failure: Failure, *, every: int, first: int = 0) -> Tally:
    """Walk the recording and strike before each ``every``-th sync, and once more at its end."""
    disk, promised, tally = Disk(), Promises(), failure.tally
    for at, step in enumerate(recording):
        if step.name == MARKS:
            for mark in step.body.decode().splitlines():
                promised.take(mark)
                tally.commits += mark.startswith("done")
            continue
        if step.op == "s" or step.op == "d":
            tally.syncs += 1
            if tally.syncs % every == first:
                failure.strike(disk, promised, at)
        disk.take(step)
    failure.strike(disk, promised, len(recording))
    return tally


def test_power_lost_before_a_sample_of_the_syncs_loses_nothing_that_was_acknowledged(
    recording: list[Step], quick_folder: Path
) -> None:
    """S5-12, S5-15: one sync in 307, in every way; the soak does them all."""
    tally = cut_power(recording, Failure(quick_folder, seed=1), every=307, first=5)
    print(f"\n{RUNS} runs; {tally}")
    assert tally.commits > RUNS
    assert tally.opened > 90


def test_power_lost_in_the_first_syncs_of_a_new_store_loses_nothing(recording: list[Step], quick_folder: Path) -> None:
    """S5-15: the file, its log and their names in the folder appear one after the other."""
    began = next(at for at, step in enumerate(recording) if step.body.startswith(b"done"))
    tally = cut_power(recording[:began], Failure(quick_folder, seed=2, subsets=6), every=1)
    print(f"\n{tally}")
    assert tally.opened > 100


def test_a_disk_that_only_says_that_it_has_synced_is_found_out(recording: list[Step], quick_folder: Path) -> None:
    """The test can fail: without the syncs of the log, what was acknowledged is gone."""
    lying = [step for step in recording if (step.op, step.name) != ("s", "-wal")]
    acknowledged = next(at for at, step in enumerate(lying) if step.body.startswith(b"done"))
    with pytest.raises(AssertionError, match="was acknowledged"):
        cut_power(lying[: acknowledged + 1], Failure(quick_folder / "lying", seed=4), every=1_000_000)


@pytest.mark.soak
def test_power_lost_before_any_sync_of_two_thousand_runs_loses_nothing_that_was_acknowledged(
    recording: list[Step], quick_folder: Path
) -> None:
    """S5-12, S5-15: every commit, every checkpoint, every opening; eight disks each."""
    tally = cut_power(recording, Failure(quick_folder, seed=3), every=1)
    print(f"\n{RUNS} runs; {tally}")
    assert tally.syncs > tally.commits > RUNS
    assert tally.kinds["refused"] < tally.opened / 1_000
