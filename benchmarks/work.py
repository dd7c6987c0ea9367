"""The work that rows submit, and what they measure it with: percentiles, resident memory, synced appends."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from actionqueue import ActionQueue

BATCH = 500
SLOTS = 200
ARGUMENT = "x" * 90
"""With its name and the punctuation of JSON: about 100 bytes of arguments."""

_PAGE_BYTES = resource.getpagesize()


def open_queue(path: Path, **options: Any) -> ActionQueue:
    """A queue on ``path`` with ``SLOTS`` async slots."""
    return ActionQueue(path, **{"concurrency": SLOTS, **options})


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that ``percent`` of 100 do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def timed(call: Callable[[], object]) -> float:
    """Seconds that ``call`` took."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def resident_bytes() -> int:
    """Memory of this process that is in RAM."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES


def synced_appends(directory: Path, size_bytes: int, count: int) -> list[float]:
    """Seconds of each of ``count`` appends of ``size_bytes`` followed by fdatasync, to a new file."""
    path = directory / f"append-{size_bytes}"
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    body = os.urandom(size_bytes)

    def append() -> None:
        os.write(descriptor, body)
        os.fdatasync(descriptor)

    try:
        return [timed(append) for _ in range(count)]
    finally:
        os.close(descriptor)
        path.unlink()


def median_by_name(measured: Sequence[dict[str, float]]) -> dict[str, float]:
    """The median of each figure over several measurements."""
    return {name: median(each[name] for each in measured) for name in measured[0]}
