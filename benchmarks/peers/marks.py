"""Which runs have begun and ended, in a file that producer and worker both map: the same measure for every queue."""

from __future__ import annotations

import mmap
import time
from pathlib import Path
from struct import Struct

_INSTANT = Struct("<Q")


class Marks:
    """One byte a run that has been done, and the instant (monotonic ns, of this machine) at which it began."""

    def __init__(self, path: Path, runs: int) -> None:
        self._runs = runs
        size = runs * (1 + _INSTANT.size)
        if not path.exists():
            path.write_bytes(bytes(size))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), size)

    def mark(self, number: int) -> None:
        """The handler's whole work."""
        _INSTANT.pack_into(self._map, self._runs + number * _INSTANT.size, time.monotonic_ns())
        self._map[number] += 1

    def done(self, first: int, last: int) -> int:
        """How many of the runs from ``first`` to before ``last`` have been done."""
        return last - first - self._map[first:last].count(0)

    def repeated(self) -> int:
        """How many have been done more than once."""
        return sum(count > 1 for count in self._map[: self._runs])

    def began_ns(self, number: int) -> int:
        """When the run began."""
        instant: int = _INSTANT.unpack_from(self._map, self._runs + number * _INSTANT.size)[0]
        return instant
