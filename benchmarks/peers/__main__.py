"""``python -m benchmarks.peers``: the same work on every queue, ours beside them, and the ratios pair by pair.

Three rounds; in each, every contestant takes each measurement once, ours first and last, so that a machine that slows
down in between is seen. Medians count. What is compared: one producer, one after another, with the durable peers; many
at once with the fastest peers, durable and not.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from msgspec import json, structs

from benchmarks.floor import commits_per_s
from benchmarks.harness import ROOT, end_group
from benchmarks.peers.contestants import CONTESTANTS, Contestant
from benchmarks.peers.servers import VARIABLES, is_reachable, redis_syncs, url_of

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
ENVIRONMENT = ROOT / ".venv-peers"
RESULTS = ROOT / "benchmarks" / "results" / "peers.json"
MODES = ("single", "many", "pickup")
DURABLE_RATIO_MIN, OTHER_RATIO_MIN = 3.0, 1.5
TITLE_WIDTH = 42

Measured = dict[str, dict[str, list[dict[str, float]]]]
"""By contestant, by mode: one answer a round."""


def main() -> int:
    """Entry point; 1 when a comparison is lost."""
    chosen = _arguments()
    contestants = _present([each for each in CONTESTANTS if _is_chosen(each, chosen.only)])
    peers_python = Path(chosen.python) if chosen.python else _environment()
    measured: Measured = {each.name: {mode: [] for mode in MODES} for each in contestants}
    problems: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix=".bench-peers-", dir=chosen.dir) as place:
        print(f"SQLite, one row a commit: {commits_per_s(Path(place, 'floor.db'), 1_000):,.0f}/s\n")
        for number in range(chosen.rounds):
            for each in contestants:
                if each.name in problems:
                    continue
                print(f"\rround {number + 1} of {chosen.rounds}: {each.title:{TITLE_WIDTH}}", end="", file=sys.stderr)
                try:
                    _take_part(each, peers_python, Path(place), chosen, measured[each.name])
                except RuntimeError as problem:
                    problems[each.name] = str(problem)
        print("\r" + " " * 80 + "\r", end="", file=sys.stderr)
    medians = _medians(measured)
    _print_table(contestants, medians, problems)
    _print_missing(chosen.only)
    lost = _compare(contestants, medians)
    if not chosen.no_record:
        RESULTS.parent.mkdir(exist_ok=True)
        record = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "rounds": chosen.rounds,
            "medians": medians,
            "all": measured,
            "problems": problems,
        }
        RESULTS.write_bytes(json.format(json.encode(record)) + b"\n")
        print(f"\nwritten: {RESULTS.relative_to(ROOT)}")
    return 1 if lost else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description="Measure beside other task queues.")
    parser.add_argument("--rounds", type=int, default=3, help="medians are of so many (default 3)")
    parser.add_argument("--single", type=int, default=2_000, help="runs submitted one by one (default 2,000)")
    parser.add_argument("--many", type=int, default=10_000, help="runs submitted at once (default 10,000)")
    parser.add_argument("--pickup", type=int, default=100, help="runs of an idle queue (default 100)")
    parser.add_argument("--limit", type=float, default=40, help="seconds of a measurement; then what was done counts")
    parser.add_argument("--only", action="append", metavar="NAME", help="this peer (a pattern; repeatable), and ours")
    parser.add_argument("--dir", default=str(ROOT), help="where stores are made (the repository)")
    parser.add_argument("--python", help="an interpreter that has the peers, instead of .venv-peers")
    parser.add_argument("--no-record", action="store_true", help="write no results")
    return parser.parse_args()


def _is_chosen(contestant: Contestant, only: Sequence[str] | None) -> bool:
    return contestant.is_ours or not only or any(fnmatch.fnmatch(contestant.name, pattern) for pattern in only)


def _present(contestants: Sequence[Contestant]) -> list[Contestant]:
    """Those whose server is there; a Redis that syncs each command makes its peers durable."""
    servers = {each.server for each in contestants if each.server is not None}
    reachable = {server for server in servers if is_reachable(server)}
    syncs = "redis" in reachable and redis_syncs()
    return [
        structs.replace(each, durable=True, title=f"{each.title} (fsync)") if each.server == "redis" and syncs else each
        for each in contestants
        if each.server is None or each.server in reachable
    ]


def _environment() -> Path:
    """The peers' interpreter, installed when it is not there or the pinned versions changed."""
    stamp = ENVIRONMENT / "installed.txt"
    python = ENVIRONMENT / "bin" / "python"
    wanted = REQUIREMENTS.read_text()
    if not (stamp.exists() and stamp.read_text() == wanted):
        print(f"installing the peers into {ENVIRONMENT.name} …", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
        install = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check", "-r", str(REQUIREMENTS)]
        subprocess.run(install, check=True)
        stamp.write_text(wanted)
    return python


def _take_part(
    contestant: Contestant,
    peers_python: Path,
    place: Path,
    chosen: argparse.Namespace,
    measured: dict[str, list[dict[str, float]]],
) -> None:
    """Each measurement once. Raises ``RuntimeError``."""
    python = sys.executable if contestant.is_ours else str(peers_python)
    for mode in MODES:
        folder = Path(tempfile.mkdtemp(prefix=f"{contestant.name}-{mode}-", dir=place))
        answer = folder / "answer"
        command = [python, "-m", "benchmarks.peers.driving", "drive", contestant.peer, mode]
        command += [str(getattr(chosen, mode)), str(folder), str(chosen.limit), str(answer)]
        with (folder / "said").open("wb") as said:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
            try:
                process.wait(chosen.limit * 2 + 90)
            except subprocess.TimeoutExpired:
                raise RuntimeError(f"{mode}: no answer in time") from None
            finally:
                end_group(process)
        if not answer.exists():
            last = (folder / "said").read_text(errors="replace").strip().splitlines()[-1:]
            raise RuntimeError(f"{mode}: {''.join(last) or 'no answer'}")
        measured[mode].append(json.decode(answer.read_bytes()))
        shutil.rmtree(folder, ignore_errors=True)


def _medians(measured: Measured) -> dict[str, dict[str, dict[str, float]]]:
    return {
        name: {
            mode: {figure: median(each[figure] for each in answers) for figure in answers[0]}
            for mode, answers in modes.items()
            if answers
        }
        for name, modes in measured.items()
    }


def _print_table(contestants: Sequence[Contestant], medians: dict[str, Any], problems: dict[str, str]) -> None:
    print(f"{'':{TITLE_WIDTH}} {'one by one':>21} {'many at once':>21} {'idle pickup':>15}  durable  ends")
    print(f"{'':{TITLE_WIDTH}} {'submit/s':>10} {'end/s':>10} {'submit/s':>10} {'end/s':>10} {'p50':>7} {'p99':>7}")
    for each in contestants:
        if each.name in problems:
            print(f"{each.title:{TITLE_WIDTH}} failed: {problems[each.name]}")
            continue
        single, many, pickup = (medians[each.name][mode] for mode in MODES)
        line = f"{each.title:{TITLE_WIDTH}} {single['submit_per_s']:10,.0f} {single['per_s']:10,.0f}"
        line += f" {many['submit_per_s']:10,.0f} {many['per_s']:10,.0f} {pickup['p50_ms']:7.1f} {pickup['p99_ms']:7.1f}"
        print(f"{line}  {'yes' if each.durable else 'no':7}  {each.ends}")
        repeated = max(single["repeated"], many["repeated"])
        if repeated:
            print(f"{'':{TITLE_WIDTH}} {repeated:g} runs were done more than once")


def _print_missing(only: Sequence[str] | None) -> None:
    for each in CONTESTANTS:
        if each.server is not None and _is_chosen(each, only) and not is_reachable(each.server):
            print(f"{each.title:{TITLE_WIDTH}} no server at {url_of(each.server)} ({VARIABLES[each.server][0]})")


def _compare(contestants: Sequence[Contestant], medians: dict[str, Any]) -> int:
    """Print ours against each peer; how many of the comparisons that must be won are lost."""
    peers = [each for each in contestants if not each.is_ours and len(medians[each.name]) == len(MODES)]
    if not peers or len(medians["ours"]) != len(MODES):
        return 0
    ours = medians["ours"]
    print(f"\n{'ours against':{TITLE_WIDTH}} {'one by one':>12} {'many at once':>14}")
    single: dict[str, float] = {}
    many: dict[str, float] = {}
    for each in peers:
        single[each.name] = ours["single"]["per_s"] / medians[each.name]["single"]["per_s"]
        many[each.name] = ours["many"]["per_s"] / medians[each.name]["many"]["per_s"]
        print(f"{each.title:{TITLE_WIDTH}} {single[each.name]:11.2f}× {many[each.name]:13.2f}×")
    durable = [each.name for each in peers if each.durable]
    other = [each.name for each in peers if not each.durable]
    goals = [("ahead of every durable peer, one by one", [single[name] for name in durable], 1.0)]
    goals.append(("of the fastest durable peer, many at once", [many[name] for name in durable], DURABLE_RATIO_MIN))
    goals.append(("of the fastest other peer, many at once", [many[name] for name in other], OTHER_RATIO_MIN))
    lost = 0
    print()
    for title, ratios, least in goals:
        if ratios:
            met = min(ratios) >= least
            lost += not met
            print(f"{title:{TITLE_WIDTH}} {min(ratios):11.2f}×  (≥ {least:g})  {'yes' if met else 'NO'}")
    return lost


if __name__ == "__main__":
    sys.exit(main())
