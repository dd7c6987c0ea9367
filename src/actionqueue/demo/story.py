"""The demo from beginning to end: start, submit, kill half way, start again, finish, account for everything."""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from actionqueue import ActionQueueError, Stats
from actionqueue.demo import STORE_VARIABLE
from actionqueue.demo.host import EngineDied, EngineHost
from actionqueue.demo.screen import GREEN, RED, Screen, Status
from actionqueue.demo.tree import NothingToIndex, Tree, read_tree, write_broken_files

if TYPE_CHECKING:
    from actionqueue import ActionQueue, Call, RunId, TaskHandle
    from actionqueue.demo.ledger import Job

FILES_MAX = 2_500
"""By default: the standard library fits, and another tree takes no longer."""
CALLS_PER_COMMIT = 5_000
LOOK_S = 0.05
STALLED_S = 90.0
"""Longer than an attempt may take, and than its retries wait."""
LIVE = ("scheduled", "ready", "leased", "running", "retry_wait")


class Stalled(Exception):
    """Nothing has happened for too long."""


def main(argv: Sequence[str]) -> int:
    """See ``actionqueue.demo.main``."""
    options = make_parser().parse_args(argv)
    screen = Screen(sys.stdout)
    try:
        tree = read_tree(options.files, limit=options.limit)
    except NothingToIndex as nothing:
        print(f"actionqueue demo: {nothing}", file=sys.stderr)
        return 2
    folder = Path(tempfile.mkdtemp(prefix="actionqueue-demo-"))
    store = folder / "demo.db" if options.store is None else options.store.absolute()
    os.environ[STORE_VARIABLE] = os.fspath(store)
    story = Story(screen, tree, store=store, folder=folder, kill=options.kill)
    try:
        return story.tell()
    except KeyboardInterrupt:
        screen.say("", f"Stopped. What was submitted is in {store}, and goes on when an engine runs on it.")
        return 130
    except (EngineDied, Stalled, ActionQueueError) as error:
        screen.say("")
        print(f"actionqueue demo: {error}", file=sys.stderr)
        return 1
    finally:
        story.end()


def make_parser() -> argparse.ArgumentParser:
    """The parser of the demo's command line."""
    parser = argparse.ArgumentParser(
        prog="actionqueue demo",
        description="Index the Python standard library of this machine, kill the engine half way, and prove that "
        "nothing was lost or done twice.",
    )
    parser.add_argument("--files", type=Path, metavar="PATH", help="index the Python files under PATH instead")
    parser.add_argument("--store", type=Path, metavar="PATH", help="where the store is (default: a new temporary one)")
    parser.add_argument(
        "--limit",
        type=_count,
        default=FILES_MAX,
        metavar="N",
        help="index the first N files (default: %(default)s; 0: all)",
    )
    parser.add_argument(
        "--no-kill", "--keep", dest="kill", action="store_false", help="keep the engine alive: no SIGKILL half way"
    )
    return parser


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a count; give a whole number, or 0 for all")
    return int(text)


class Story:
    """One run of the demo."""

    def __init__(self, screen: Screen, tree: Tree, *, store: Path, folder: Path, kill: bool) -> None:
        from actionqueue.demo.jobs import queue

        if queue.store != store:
            raise RuntimeError(f"this process has run the demo on {queue.store} already; run it in a new one")
        self._queue: ActionQueue = queue
        self._screen = screen
        self._tree = tree
        store.parent.mkdir(parents=True, exist_ok=True)
        self._store = store
        self._folder = folder
        self._log = folder / "engine.log"
        self._host = EngineHost(store, self._log)
        self._kill = kill
        self._tag = f"demo-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
        self._jobs: dict[RunId, Job] = {}
        self._began = time.monotonic()
        self._ended_before = 0
        """Runs that had ended in the store before the demo began."""
        self._failed_before = 0

    def tell(self) -> int:
        """All of it; the exit code."""
        self._introduce()
        self._submit_all()
        if self._kill:
            self._watch(len(self._jobs) // 2)
            self._kill_and_start_again()
        self._finish()
        self._add_broken_files()
        self._host.stop()
        return self._account()

    def end(self) -> None:
        """Leave no process behind."""
        self._host.stop()
        self._queue.close()

    # --- the beginning -----------------------------------------------------------------------------------------

    def _introduce(self) -> None:
        before = self._stats() if self._store.exists() else None
        if before is not None:
            self._ended_before, self._failed_before = _ended(before), before.runs["failed"]
        pid = self._host.start()
        tree = self._tree
        count, found, folders = len(tree.files), tree.found, len(tree.directories())
        files = f"{count:,} files" if count == found else f"the first {count:,} of {found:,} files (--limit 0: all)"
        self._screen.say(
            f"ActionQueue demo: indexing {tree.title}",
            "",
            f"  {files}, {folders:,} directories",
            f"  under {tree.root}",
            "",
            f"  store   {self._store}",
            f"  engine  process {pid}, with up to {self._queue.settings.processes} worker processes",
        )
        self._wait(lambda stats: True)  # the store is there: whatever is wrong with it has been said

    def _submit_all(self) -> None:
        from actionqueue.demo.jobs import index, publish

        tree = self._tree
        directories = tree.directories()
        tagged_index, tagged_publish = index.options(tags=[self._tag]), publish.options(tags=[self._tag])
        work: list[tuple[Call[object], str, str]] = [
            (tagged_index.bind(tree.path(file)), file, tree.path(file)) for file in tree.files
        ]
        work += [
            (tagged_publish.bind(directory, count), directory, directory) for directory, count in directories.items()
        ]
        began = time.perf_counter()
        commits = self._submit(work)
        milliseconds = (time.perf_counter() - began) * 1e3
        how = "one commit" if commits == 1 else f"{commits} commits"
        self._screen.say(
            "",
            f"  {len(work):,} tasks submitted in {how}, durable after {milliseconds:.0f} ms:",
            f"  {len(tree.files):>7,} x index    hash and parse a file, in a worker process",
            f"  {len(directories):>7,} x publish  announce a directory to a service that is often away",
            "",
        )

    def _submit(self, work: Sequence[tuple[Call[object], str, str]]) -> int:
        """Submit calls, each with what it is about and its path; in how many commits."""
        from actionqueue.demo.ledger import Job

        starts = range(0, len(work), CALLS_PER_COMMIT)
        for start in starts:
            part = work[start : start + CALLS_PER_COMMIT]
            handles: list[TaskHandle[object]] = self._queue.submit_many([call for call, _, _ in part])
            for handle, (_, subject, path) in zip(handles, part, strict=True):
                self._jobs[handle.run_id] = Job(subject=subject, path=path, handle=handle)
        return len(starts)

    # --- the middle --------------------------------------------------------------------------------------------

    def _kill_and_start_again(self) -> None:
        before = self._stats()
        killed_at = time.monotonic()
        killed = self._host.kill()
        self._screen.say("", f"  kill -9 {killed}: the engine is dead in mid-work. Starting another at once.")
        pid = self._host.start()
        sequence = 0 if before is None else before.sequence
        self._wait(lambda stats: stats.sequence > sequence)
        after_s = time.monotonic() - killed_at
        self._screen.say(f"  Process {pid} is the engine now, and was at work {after_s:.2f} s after the kill.", "")

    def _watch(self, ended: int) -> None:
        """Show how far it is, until that many of this demo's tasks have ended."""
        self._wait(lambda stats: self._show(stats) >= ended)

    def _show(self, stats: Stats) -> int:
        status = Status(
            done=max(0, _ended(stats) - self._ended_before),
            total=len(self._jobs),
            failed=max(0, stats.runs["failed"] - self._failed_before),
            running=stats.runs["running"],
            retrying=stats.runs["retry_wait"],
            seconds=time.monotonic() - self._began,
        )
        self._screen.status(status)
        return status.done

    def _finish(self) -> None:
        self._watch(len(self._jobs))
        # What an earlier demo left undone in this store was counted too: now look for one's own.
        while self._queue.runs(tag=self._tag, state=LIVE, limit=1):
            self._host.check()
            time.sleep(LOOK_S)
        self._screen.settle()

    def _wait(self, is_reached: Callable[[Stats], bool]) -> None:
        """Until then; raises ``EngineDied``, or ``Stalled`` when nothing happens any more."""
        sequence, moved_at = -1, time.monotonic()
        while True:
            self._host.check()
            stats = self._stats()
            if stats is not None:
                if is_reached(stats):
                    return
                if stats.sequence != sequence:
                    sequence, moved_at = stats.sequence, time.monotonic()
            if time.monotonic() - moved_at > STALLED_S:
                raise Stalled(f"nothing has happened for {STALLED_S:.0f} s; the engine's log is {self._log}")
            time.sleep(LOOK_S)

    def _stats(self) -> Stats | None:
        try:
            return self._queue.stats()
        except ActionQueueError:  # there is no store until the engine has made it
            return None

    def _add_broken_files(self) -> None:
        """Where nothing failed, something must: a demo without failures shows half."""
        from actionqueue.demo.jobs import index

        if self._queue.runs(tag=self._tag, handler=index.name, state="failed", limit=1):
            return
        paths = write_broken_files(self._folder / "broken")
        self._screen.say("", "  Every file of this tree parses. To show failures too, the demo adds two that do not:")
        self._screen.say(*(f"    {path}" for path in paths))
        tagged = index.options(tags=[self._tag])
        self._submit([(tagged.bind(path), path, path) for path in paths])
        self._finish()

    # --- the end -----------------------------------------------------------------------------------------------

    def _account(self) -> int:
        from actionqueue.demo.ledger import Ledger, verified
        from actionqueue.demo.report import Report
        from actionqueue.verify import verify

        screen = self._screen
        ledger = Ledger.read(self._queue, self._jobs, self._tag)
        report = Report(ledger, screen.width)
        screen.heading(f"Report, after {time.monotonic() - self._began:.1f} s")
        screen.say(*report.found())
        screen.heading("Failures")
        screen.say(*report.failures())
        screen.heading("Proof")
        claims = [*ledger.claims(), verified(verify(self._store))]
        for claim in claims:
            mark = screen.colored("ok  ", GREEN) if claim.holds else screen.colored("FAIL", RED)
            screen.say(f"  {mark}  {claim.text}")
        lost = [*report.lost()]
        if lost:
            screen.say("", "  What the kill -9 cost, attempt by attempt:", *lost)
        holds = all(claim.holds for claim in claims)
        screen.heading("Next")
        screen.say(*report.next_commands(self._store, self._folder))
        return 0 if holds else 1


def _ended(stats: Stats) -> int:
    return stats.runs["completed"] + stats.runs["failed"] + stats.runs["canceled"]
