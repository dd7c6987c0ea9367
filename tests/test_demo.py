"""The demo: run as users run it, in a process of its own, on small trees; and its proof, which must be able to fail."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace as with_fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from actionqueue import ActionQueue, AttemptId, AttemptRecord, RunId, RunRecord, TaskHandle, TaskId
from actionqueue.demo.jobs import FileFacts, index, publish
from actionqueue.demo.ledger import Job, Ledger

SECONDS_MAX = 20
"""For one demo."""
FOLDERS, FILES_PER_FOLDER = 24, 2
FILES = FOLDERS * FILES_PER_FOLDER
AT = datetime(2026, 11, 24, tzinfo=UTC)


def make_tree(root: Path) -> Path:
    """Many directories: publishing them takes longer than parsing the files, so that the kill finds work open."""
    for folder in range(FOLDERS):
        for file in range(FILES_PER_FOLDER):
            path = root / f"package{folder:02}" / f"module{file}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"class C:\n    def method{file}(self):\n        return {folder}\n")
    return root


def run_demo(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    scratch = folder / "scratch"
    scratch.mkdir()
    return subprocess.run(
        [sys.executable, "-m", "actionqueue.demo", *arguments],
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(scratch), "COLUMNS": "80", "PYTHONIOENCODING": "utf-8"},
    )


def proof_of(output: str) -> list[str]:
    """The proof's lines."""
    proof = output.partition("\nProof\n")[2].partition("\n\n")[0]
    return [" ".join(line.split()) for line in proof.splitlines()]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_a_killed_demo_accounts_for_every_file_and_leaves_no_process(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    (tree / "package05" / "broken.py").write_text("def (:\n")
    store = tmp_path / "store" / "demo.db"

    demo = run_demo(tmp_path, "--files", str(tree), "--store", str(store))

    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert demo.stderr == ""
    total = FILES + 1 + FOLDERS
    proof = proof_of(demo.stdout)
    assert f"ok {total} submitted = {total - 1} completed + 1 failed, none open" in proof
    assert f"ok {FILES + 1} files = {FILES} parsed + 1 failed, none twice in the result" in proof
    assert all(line.startswith("ok ") for line in proof)
    assert len(proof) == 7
    lost = re.search(r"ok ([1-9]\d*) attempts were lost, each was followed by another", "\n".join(proof))
    assert lost is not None
    assert "1 x SyntaxError in index, not tried again" in demo.stdout
    pids = [int(pid) for pid in re.findall(r"[Pp]rocess (\d+)", demo.stdout)]
    assert f"kill -9 {pids[0]}:" in demo.stdout
    assert len(pids) == 2
    assert not any(is_alive(pid) for pid in pids)
    assert store.exists()
    assert max(len(line) for line in demo.stdout.splitlines() if str(tmp_path) not in line) < 80


@pytest.mark.slow
def test_where_every_file_parses_the_demo_adds_two_that_do_not(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")

    demo = run_demo(tmp_path, "--files", str(tree), "--no-kill", "--limit", "10")

    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert f"the first 10 of {FILES} files" in demo.stdout
    assert "the demo adds two that do not" in demo.stdout
    assert "kill -9" not in demo.stdout
    proof = proof_of(demo.stdout)
    assert "ok 12 files = 10 parsed + 2 failed, none twice in the result" in proof
    assert "ok no attempt was lost" in proof


@pytest.mark.slow
def test_a_store_that_has_seen_a_demo_takes_another(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    arguments = ("--files", str(tree), "--store", str(tmp_path / "demo.db"), "--no-kill", "--limit", "4")
    run_demo(tmp_path, *arguments)
    (tmp_path / "scratch").rename(tmp_path / "scratch of the first")

    demo = run_demo(tmp_path, *arguments)

    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert "ok 8 submitted = 6 completed + 2 failed, none open" in proof_of(demo.stdout)


def test_a_tree_without_python_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()

    demo = run_demo(tmp_path, "--files", str(tmp_path / "tree"))

    assert demo.returncode == 2
    assert "there is no Python file under" in demo.stderr


# --- the proof can fail ---------------------------------------------------------------------------------------------


def attempt(number: int, outcome: str) -> AttemptRecord:
    return AttemptRecord(
        id=AttemptId.new(), number=number, ready_at=AT, started_at=AT, finished_at=AT, outcome=outcome, reason="",
        error=None, retry_at=None, abandoned=False,
    )  # fmt: skip


def run_with(handler: str, *outcomes: str) -> RunRecord:
    return RunRecord(
        id=RunId.new(), task_id=TaskId.new(), handler=handler, queue="default",
        state="completed" if outcomes[-1] == "completed" else "failed", reason="", priority=0,
        attempt_count=len(outcomes), failure_count=outcomes.count("failed"), lost_count=outcomes.count("lost"),
        created_at=AT, scheduled_at=AT, started_at=AT, finished_at=AT, waiting_until=None, retry_of=None,
        token=RunId.new(), requested_by=None, cancel_requested=False, error_kind=None, progress=None,
        attempts=tuple(attempt(number, outcome) for number, outcome in enumerate(outcomes, 1)),
    )  # fmt: skip


def facts_of(path: str) -> FileFacts:
    return FileFacts(
        path=path, sha256="", size=1, lines=1, functions=0, largest_function="", largest_function_lines=0, seconds=0.0
    )


def ledger_of(*runs: RunRecord) -> Ledger:
    """A ledger in which all is well: each run was submitted, and each file that parsed has its result."""
    queue = ActionQueue(":memory:")
    jobs = {
        run.id: Job(
            subject=f"{number}.py",
            path=f"/{number}.py",
            handle=TaskHandle[Any](queue, run.task_id.bytes, run.id.bytes, True, None),
        )
        for number, run in enumerate(runs)
    }
    parsed = [run for run in runs if run.handler == index.name and run.state == "completed"]
    return Ledger(
        jobs=jobs,
        runs={run.id: run for run in runs},
        listed=len(runs),
        facts={run.id: facts_of(jobs[run.id].path) for run in parsed},
        receipts=sum(run.handler == publish.name and run.state == "completed" for run in runs),
    )


def sound() -> Ledger:
    return ledger_of(
        run_with("index", "completed"),
        run_with("index", "lost", "completed"),
        run_with("index", "failed"),
        run_with("publish", "failed", "lost", "failed", "completed"),
    )


def test_a_sound_ledger_bears_out_every_claim() -> None:
    assert [claim.text for claim in sound().claims() if not claim.holds] == []


def without_a_run(ledger: Ledger) -> Ledger:
    return with_fields(ledger, runs=dict(list(ledger.runs.items())[1:]), listed=ledger.listed - 1)


def with_a_stranger(ledger: Ledger) -> Ledger:
    stranger = run_with("publish", "completed")
    return with_fields(ledger, runs={**ledger.runs, stranger.id: stranger}, listed=ledger.listed + 1)


def listed_twice(ledger: Ledger) -> Ledger:
    return with_fields(ledger, listed=ledger.listed + 1)


def without_a_result(ledger: Ledger) -> Ledger:
    return with_fields(ledger, facts=dict(list(ledger.facts.items())[1:]))


def with_a_file_twice(ledger: Ledger) -> Ledger:
    first = next(iter(ledger.facts.values()))
    return with_fields(ledger, facts=dict.fromkeys(ledger.facts, first))


def with_last_run(*outcomes: str, **changes: Any) -> Callable[[Ledger], Ledger]:
    def change(ledger: Ledger) -> Ledger:
        last = list(ledger.runs.values())[-1]
        run = msgspec.structs.replace(run_with(last.handler, *outcomes), id=last.id, **changes)
        return with_fields(ledger, runs={**ledger.runs, last.id: run})

    return change


@pytest.mark.parametrize(
    ("damage", "claim"),
    [
        (without_a_run, "submitted ="),
        (without_a_run, "each acknowledged task"),
        (with_a_stranger, "each acknowledged task"),
        (listed_twice, "each acknowledged task"),
        (without_a_result, "none twice"),
        (with_a_file_twice, "none twice"),
        (with_last_run("lost", "completed", state="running"), "none open"),
        (with_last_run(*["failed"] * 7, "completed"), "caps kept"),
        (with_last_run(*["lost"] * 6, "completed"), "caps kept"),
        (with_last_run("completed", "completed"), "attempts ="),
        (with_last_run("lost", "completed", lost_count=0), "attempts ="),
        (with_last_run("completed", "lost"), "each was followed"),
    ],
)
def test_a_ledger_that_does_not_add_up_is_noticed(damage: Callable[[Ledger], Ledger], claim: str) -> None:
    damaged = damage(sound())

    failing = [each.text for each in damaged.claims() if not each.holds]

    assert any(claim in text for text in failing), failing
