"""Every program in ``examples`` runs as it is, without a warning, and prints what its reader is told to see."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from actionqueue.verify import verify

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"

PRINTED = {
    "hello.py": ["hello world"],
    "retries.py": [
        "done in attempt 3 of 4 | 1: failed, 2: failed, 3: completed",
        "done after the pause | 1: failed, 2: completed",
        "invalid literal for int() with base 10: 'twelve' | 1: failed",
        "there is nothing to read | 1: failed",
        "retried as a new run: True",
    ],
    "processes.py": [
        "primes: [1229, 9592, 78498]",
        "counted in this process: False",
        "stopped: timed_out",
        "still here, in attempt 2",
        "its first attempt: failed | the worker process N exited with status 7 while it ran the handler",
    ],
    "idempotency.py": [
        "submitted twice, one task: True | created: False",
        "attempts: 2 | charges: 1",
        "the same key with other content is refused: idempotency_conflict",
    ],
    "cancel_and_progress.py": [
        "running: running | of 10000",
        "asked to stop: 1",
        "ended: canceled",
        "what waits is canceled at once: True canceled",
        "all that still live: 1",
        "cleaned up: True",
        "nothing is left: 0",
    ],
    "schedule_and_limits.py": [
        "['7 2026-09', '7 2026-10', '7 2026-11']",
        "at once, for each customer: [1, 1, 1]",
        "nine starts took at least 0.2 s: True",
        "each_second | * * * * * * UTC | 2 occurrences, skipped: {}",
        "runs: ['completed', 'completed']",
        "10 tasks imply 11 runs, 0 more were asked for",
        "11 runs are there: 11 completed, 0 failed, 0 canceled, 0 open",
        "consistent",
    ],
    "approval.py": [
        "waiting: awaiting, steps done: 2",
        "order 42 paid, approved by anna",
        "order 43 undone: refused by bert",
        "['plan', 'receive#1', 'pay']",
        "['gave 70 back', 'paid 900 for order 42', 'reserved 70 for order 43', 'reserved 900 for order 42']",
    ],
    "word_count.py": [
        "canceled because of page three: True",
        "word count is over",
        "words: 8",
        "runs: {'canceled': 1, 'completed': 5, 'failed': 1}",
    ],
    "notebook.py": ["HELLO!", "HELLO!!!"],
}
"""What each prints, with process ids as N."""

ELSEWHERE = {"fastapi_app.py": "tests/process/test_web.py"}
"""Examples that a server runs, and the tests that run them."""


def test_every_example_is_run() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == PRINTED.keys() | ELSEWHERE.keys()
    assert all((ROOT / test).exists() for test in ELSEWHERE.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", PRINTED)
def test_an_example_prints_what_it_promises_and_leaves_a_sound_store(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert re.sub(r"process \d+", "process N", done.stdout).splitlines() == PRINTED[name]
    assert verify(tmp_path / "jobs.db").ok
