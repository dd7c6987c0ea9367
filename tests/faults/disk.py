"""A disk as a power failure leaves it, rebuilt from the recording of everything that was done to a store's files.

What is known of a disk: a write, or another length of a file, is there for certain once that file was synced after it;
a file's name (made, gone, or another's) once its folder was. Everything else may be there or not, whatever its order,
and one write more may be there in part: up to a byte, or in some of its sectors. After a sync that *failed* what came
before it may never reach the disk, whatever later syncs say (the system may have given those pages up).

``Disk`` walks a recording and keeps the two apart; ``images`` draws what may be found. Assumed, as SQLite does: a write
leaves the bytes beside it alone (power-safe overwrites).
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

HEAD = struct.Struct("<c31sqq")
MARKS = ".marks"
SECTOR_BYTES = 512
WAL_HEADER_BYTES = 32


class Step(NamedTuple):
    """One thing that was done; ``op`` as in ``disk_shim.c``. ``offset`` is the size where that is set."""

    op: str
    name: str
    offset: int
    body: bytes


def read_steps(record: Path) -> list[Step]:
    """A recording, in order."""
    data, at, steps = record.read_bytes(), 0, []
    while at < len(data):
        op, name, offset, count = HEAD.unpack_from(data, at)
        at += HEAD.size
        steps.append(Step(op.decode(), name.rstrip(b"\0").decode(), offset, data[at : at + count]))
        at += count
    return steps


Part = tuple[int, bytes]
"""Bytes at an offset."""


@dataclass(slots=True, eq=False)
class Change:
    """Something that was done and is not certain. ``file`` is which file it was, whatever its name then."""

    op: str
    name: str
    file: int
    offset: int = 0
    body: bytes = b""
    doomed: bool = False
    """A sync failed after it: no later one makes it certain, only another change in its place."""

    def beside(self, later: Change) -> list[Change]:
        """What a later change, which is certain, leaves open of this one."""
        if later.op not in ("w", "t") or later.file != self.file:
            return [self]
        if self.op == "t":
            return []
        end = self.offset + len(self.body)
        cover_end = later.offset + len(later.body) if later.op == "w" else end
        ends = [(self.offset, min(end, later.offset)), (max(self.offset, cover_end), end)]
        return [replace(self, offset=a, body=self.body[a - self.offset : b - self.offset]) for a, b in ends if a < b]

    def torn(self, draw: random.Random) -> list[Part]:
        """What may be there of a write that was under way."""
        if draw.random() < 0.5:
            return [(self.offset, self.body[: draw.randrange(len(self.body))])]
        first = -(-self.offset // SECTOR_BYTES) * SECTOR_BYTES - self.offset
        cuts = [0, *range(first, len(self.body), SECTOR_BYTES), len(self.body)]
        sectors = [(self.offset + a, self.body[a:b]) for a, b in pairwise(cuts) if b > a]
        return [sector for sector in sectors if draw.random() < 0.5]


@dataclass(slots=True)
class Image:
    """Which of the uncertain changes are there: their numbers, and the last one in part perhaps."""

    kind: str
    kept: list[int]
    torn: tuple[int, list[Part]] | None = None


@dataclass(slots=True)
class Disk:
    """What is certain (``files`` by number, ``names``) and what is not (``pending``, in order)."""

    files: dict[int, bytearray] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)
    pending: list[Change] = field(default_factory=list)
    _now: dict[str, int] = field(default_factory=dict)
    """The names as the running system sees them."""
    _made: int = 0

    def take(self, step: Step) -> None:
        """One step on."""
        match step.op:
            case "w" | "t":
                self.pending.append(Change(step.op, step.name, self._file(step.name), step.offset, step.body))
            case "u":
                self._unlink(step.name)
            case "r":
                becomes = step.body.decode()
                self.pending.append(Change("link", becomes, self._file(step.name)))
                self._now[becomes] = self._now[step.name]
                self._unlink(step.name)
            case "s":
                self._settle({id(each) for each in self._of(step.name) if not each.doomed})
            case "f":
                for each in self._of(step.name):
                    each.doomed = True
            case "d":
                self._settle({id(each) for each in self.pending if each.op in ("link", "unlink")})
            case "x":
                pass
            case _:
                raise AssertionError(f"the recording has a step {step.op!r}")

    def _file(self, name: str) -> int:
        """The file of that name, made if there is none."""
        if name not in self._now:
            self._made += 1
            self._now[name] = self._made
            self.files[self._made] = bytearray()
            self.pending.append(Change("link", name, self._made))
        return self._now[name]

    def _unlink(self, name: str) -> None:
        self.pending.append(Change("unlink", name, self._now.pop(name, 0)))

    def _of(self, name: str) -> list[Change]:
        number = self._now.get(name)
        return [each for each in self.pending if each.file == number and each.op in ("w", "t")]

    def _settle(self, certain: set[int]) -> None:
        """These are there for good; what was doomed before them is not, where they are."""
        left: list[Change] = []
        for each in self.pending:
            if id(each) in certain:
                _change(self.files, self.names, each)
                if any(other.doomed for other in left):
                    left = [part for other in left for part in (other.beside(each) if other.doomed else [other])]
            else:
                left.append(each)
        self.pending = left
        for number in self.files.keys() - {*self.names.values(), *self._now.values(), *(c.file for c in self.pending)}:
            del self.files[number]

    def has_half_a_header(self, image: Image) -> bool:
        """Whether a log's header was torn within itself: the one tear that is refused, see ``test_power_loss.py``."""
        if image.torn is None:
            return False
        change = self.pending[image.torn[0]]
        return change.name.endswith("-wal") and change.offset == 0 and len(change.body) == WAL_HEADER_BYTES

    def write(self, image: Image, folder: Path, name: str) -> Path:
        """Put what is found after a power failure into ``folder``; the store's path there."""
        touched = {self.pending[number].file for number in image.kept}
        if image.torn is not None:
            touched.add(self.pending[image.torn[0]].file)
        files = {n: bytearray(body) if n in touched else body for n, body in self.files.items()}
        names = dict(self.names)
        for number in image.kept:
            _change(files, names, self.pending[number])
        if image.torn is not None:
            number, parts = image.torn
            for offset, body in parts:
                _put(files[self.pending[number].file], offset, body)
        for ending, number in names.items():
            (folder / f"{name}{ending}").write_bytes(files[number])
        return folder / name


def _change(files: dict[int, bytearray], names: dict[str, int], change: Change) -> None:
    match change.op:
        case "w":
            _put(files[change.file], change.offset, change.body)
        case "t":
            body = files[change.file]
            del body[change.offset :]
            body.extend(bytes(change.offset - len(body)))
        case "link":
            names[change.name] = change.file
        case _:
            names.pop(change.name, None)


def _put(body: bytearray, offset: int, part: bytes) -> None:
    if offset > len(body):
        body.extend(bytes(offset - len(body)))
    body[offset : offset + len(part)] = part


def images(pending: Sequence[Change], draw: random.Random, subsets: int = 2) -> Iterator[Image]:
    """Nothing, all, a prefix, a torn write behind a prefix and behind a subset, and so many subsets."""
    count = len(pending)
    everything = list(range(count))
    yield Image("none", [])
    if not count:
        return
    yield Image("all", everything)
    cut = draw.randrange(count)
    yield Image("prefix", everything[:cut])
    writes = [number for number in everything if pending[number].op == "w"]
    if writes:
        yield Image("all, the last torn", everything[: writes[-1]], (writes[-1], pending[writes[-1]].torn(draw)))
        torn = draw.choice(writes)
        yield Image("prefix, the last torn", everything[:torn], (torn, pending[torn].torn(draw)))
        torn = draw.choice(writes)
        others = [number for number in _subset(everything, draw) if number != torn]
        yield Image("subset, one torn", others, (torn, pending[torn].torn(draw)))
    for _ in range(subsets):
        yield Image("subset", _subset(everything, draw))


def _subset(numbers: Sequence[int], draw: random.Random) -> list[int]:
    share = draw.choice((0.2, 0.5, 0.8, 0.95))
    return [number for number in numbers if draw.random() < share]
