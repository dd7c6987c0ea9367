"""Break the engine in one place after another and see that a test notices: ``python -m scripts.mutants``.

The unmutated copy must pass first. A mutation that does not apply, or that no test notices, is a failure; what noticed
each one is printed. Each runs in a copy of its own, so that the checkout is never touched; two at a time.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from scripts.mutations import MUTATIONS, Mutation

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("src", "tests", "scripts", "benchmarks", "examples", "docs", "pyproject.toml", "README.md", "Makefile")
TEST_S_MAX = 600.0
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Verdict:
    """How it went: ``noticed_by`` is the first test that failed, None when all passed."""

    mutation: Mutation
    noticed_by: str | None
    seconds: float


def main() -> int:
    """Entry point; 1 when a mutation was not noticed or did not apply."""
    parser = argparse.ArgumentParser(prog="python -m scripts.mutants", description="See that the tests notice.")
    parser.add_argument("--only", metavar="TEXT", default="", help="the mutations whose name or file has this text")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time (default 2)")
    parser.add_argument("--skip-whole", action="store_true", help="do not run the tests on the unmutated copy first")
    chosen = parser.parse_args()
    mutations = [each for each in MUTATIONS if chosen.only in each.name or chosen.only in each.file]
    broken = [each.name for each in mutations if not applies(each)]
    if broken:
        print(f"these do not apply, their text is not there exactly once: {', '.join(broken)}")
        return 1
    if not chosen.skip_whole and (
        noticed := _run_tests(None, sorted({test for each in mutations for test in each.tests}))
    ):
        print(f"the unmutated copy fails: {noticed}")
        return 1
    with ThreadPoolExecutor(chosen.jobs) as pool:
        verdicts = []
        for verdict in pool.map(judge, mutations):
            verdicts.append(verdict)
            print(
                f"{verdict.mutation.name:42} {verdict.noticed_by or 'NOT NOTICED'}  ({verdict.seconds:.0f} s)",
                flush=True,
            )
    missed = sum(verdict.noticed_by is None for verdict in verdicts)
    print(f"{len(verdicts)} mutations, {len(verdicts) - missed} noticed, {missed} not")
    return 1 if missed else 0


def applies(mutation: Mutation) -> bool:
    """Whether its text is there exactly once."""
    return (ROOT / mutation.file).read_text(encoding="utf-8").count(mutation.old) == 1


def judge(mutation: Mutation) -> Verdict:
    """Run the tests on a mutated copy, one group after the other, until one fails."""
    began = time.monotonic()
    noticed_by = None
    for test in mutation.tests:
        noticed_by = _run_tests(mutation, [test])
        if noticed_by is not None:
            break
    return Verdict(mutation, noticed_by, time.monotonic() - began)


def _run_tests(mutation: Mutation | None, tests: Sequence[str]) -> str | None:
    """The first test that fails on a copy with this mutation; None when all pass."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as place:
        copy = Path(place)
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
            else:
                shutil.copy(source, copy / name)
        if mutation is not None:
            path = copy / mutation.file
            path.write_text(path.read_text(encoding="utf-8").replace(mutation.old, mutation.new), encoding="utf-8")
        return _first_failure(copy, tests)


def _first_failure(copy: Path, tests: Sequence[str]) -> str | None:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", *tests]
    environment = {**os.environ, "PYTHONPATH": f"{copy / 'src'}:{copy}", "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, timeout=TEST_S_MAX, check=False
        )
    except subprocess.TimeoutExpired:
        return f"{' '.join(tests)} did not end within {TEST_S_MAX:.0f} s"
    if done.returncode == 0:
        return None
    found = _FAILED.search(done.stdout)
    return found.group(1) if found else done.stdout.strip().splitlines()[-1]


if __name__ == "__main__":
    sys.exit(main())
