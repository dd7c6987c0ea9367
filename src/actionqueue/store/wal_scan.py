"""Looks through a SQLite write-ahead log for damage that SQLite itself would pass over in silence.

Knows: the WAL format (https://www.sqlite.org/fileformat2.html#the_write_ahead_log) and in which order SQLite writes.
Must not know: what is in a page. Scanning reads one file, and changes nothing.

SQLite keeps a WAL up to its last commit before the first frame that does not check out, and drops what follows. After a
power failure that is right: what follows is the torn last transaction. If a frame in the middle has rotted it is silent
loss of every commit behind it. Both look alike at the first bad frame; this module looks behind it.

Each frame's checksum runs on from that of the frame before, which is stored in that frame's header. So a frame behind a
bad one can still be checked by itself, from the checksum its predecessor stores (or, if just that was hit, from the one
that its predecessor ought to store). A frame that fits, and has this generation's salts, is called *sound*.

With ``synchronous=FULL`` a commit is synced before anything is written behind it, and a new header before its first
frame. So, from the first bad frame on:

====================================================  ==============================================================
a sound frame right after a sound commit frame        damage: that commit was on the disk, whole, before it was written
two or more sound commit frames                       damage: at most one transaction at a time is not synced yet
a bad header, and any sound commit frame              damage: the header was on the disk before
anything else                                         a torn last transaction (its pages reach the disk in any order,
                                                      its commit frame perhaps first), or leftovers: no damage
====================================================  ==============================================================

Leftovers are frames of an earlier generation (other salts: the WAL is reused from its start after a checkpoint) or of a
transaction that was rolled back or torn before (no commit frame, or one). Those of several torn transactions can add up
to two commit frames if the engine went on in the same generation each time, hence the store's rule to checkpoint with
TRUNCATE after opening, before it writes.

What cannot be told from a tear is rot in the last transaction, and in the commit frame of the one before: that a sound
frame follows it says little, since under a tear its mark and its checksum can be of different writes (a frame's header
may lie across two sectors). The header itself lies in one sector; were it torn within that, as the log begins anew, the
old frames behind it would look like those of a log whose header has rotted, and it is refused.

Assumed: SQLite's default of power-safe overwrites (``psow``; without it, it writes commit frames twice), and that
nobody writes while the file is scanned. SQLite holds no locks on the WAL, so opening and closing it here drops none.

The speed comes from adding up all frames of a chunk at once, each in a lane of one big integer: see `_sums`.
"""

from __future__ import annotations

import os
import struct
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from actionqueue.core.errors import StoreDamaged, StoreUnavailable

HEADER_BYTES = 32
FRAME_HEADER_BYTES = 24

_MAGIC_LITTLE = 0x377F0682
_MAGIC_BIG = 0x377F0683
_PAGE_BYTES_ALLOWED = tuple(1 << power for power in range(9, 17))
_CHUNK_BYTES = 4 << 20
"""Read and checked at once. A thousand lanes of the usual page size: the columns still fit the processor's cache."""
_STEPS_UNMASKED = 16
"""A sum grows by less than 2.62 a step and has 32 bits to grow into, which is enough for 22 steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WalDamage:
    """Where the log is damaged: bytes that were on the disk are no longer what was written."""

    place: str
    """"header", or "frame 17" (counted from 1)."""
    offset: int
    """The first byte of that place, from the start of the file."""
    commits_behind: int
    """How many transactions still check out behind it, which SQLite would drop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WalReport:
    """What a log holds. ``frames``, ``commits``, ``valid_bytes`` are what SQLite keeps: up to the last good commit."""

    frames: int
    commits: int
    valid_bytes: int
    total_bytes: int
    damage: WalDamage | None


def check_wal(path: Path) -> WalReport:
    """Scan this ``-wal`` file before SQLite opens its database, and refuse it when it is damaged.

    A missing, empty or torn log is fine. The caller sees to it that nobody writes meanwhile.

    Raises `StoreDamaged` (``path``, ``place``, ``offset``, ``commits_behind``, ``valid_bytes``) and `StoreUnavailable`
    when the file cannot be read.
    """
    try:
        report = scan_wal(path)
    except OSError as problem:
        raise StoreUnavailable(
            f"{path} cannot be read ({problem.strerror}), and the last commits may be in it. Nothing was opened.",
            path=str(path),
            errno=problem.errno,
        ) from problem
    damage = report.damage
    if damage is None:
        return report
    raise StoreDamaged(
        f"{path} is damaged at byte {damage.offset} ({damage.place}). SQLite would drop what was committed behind it "
        f"({damage.commits_behind} commits there still check out) without a word, so nothing was opened or changed. "
        "Copy the store and its -wal file aside first. Then restore a backup (`actionqueue restore`); or, to go on "
        f"without those commits, cut the -wal file to its good part (`truncate -s {report.valid_bytes} {path}`) and "
        "run `actionqueue verify`.",
        path=str(path),
        place=f"wal {damage.place}",
        offset=damage.offset,
        commits_behind=damage.commits_behind,
        valid_bytes=report.valid_bytes,
    )


def make_certain(path: Path, valid_bytes: int) -> None:
    """Write a log's good part once more, as it is, and sync it. Only for whoever may write to the store.

    After a sync that failed, the system may take the pages for clean: a later sync says nothing of them, and what SQLite
    then copied into the database could be torn by a power failure with no log behind it to mend it. Raises OSError.
    """
    if valid_bytes == 0:
        return
    with path.open("r+b", buffering=0) as file:
        for offset in range(0, valid_bytes, _CHUNK_BYTES):
            part = os.pread(file.fileno(), min(_CHUNK_BYTES, valid_bytes - offset), offset)
            file.seek(offset)
            file.write(part)
        os.fsync(file.fileno())


def scan_wal(path: Path) -> WalReport:
    """Read this ``-wal`` file from start to end and say what it holds. A missing one holds nothing.

    Raises OSError when it cannot be read.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return WalReport(frames=0, commits=0, valid_bytes=0, total_bytes=0, damage=None)
    with file:
        total_bytes = file.seek(0, os.SEEK_END)
        file.seek(0)
        header = file.read(HEADER_BYTES)
        layout = _layout_of(header)
        if layout is not None:
            return _report(_weigh(_frames(file, layout)), layout, total_bytes)
        for guess in _guesses(file, header, total_bytes):
            weighed = _weigh(_frames(file, guess), first_bad=0)
            if weighed.commits_behind:
                return _report(weighed, guess, total_bytes)
    return WalReport(frames=0, commits=0, valid_bytes=0, total_bytes=total_bytes, damage=None)


# --- the verdict -------------------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class _Weighed:
    frames: int = 0
    commits: int = 0
    first_bad: int | None = None
    """The first frame that does not check out, from 1; 0 is the header."""
    commits_behind: int = 0
    written_over: bool = False
    """Whether a sound frame stands right after a sound commit frame, behind the first bad one."""

    @property
    def is_damaged(self) -> bool:
        return self.written_over or self.commits_behind > (0 if self.first_bad == 0 else 1)


def _weigh(frames: Iterable[tuple[bool, bool]], *, first_bad: int | None = None) -> _Weighed:
    """The table at the module's head, over each frame's (is it sound, is it marked as a commit)."""
    weighed = _Weighed(first_bad=first_bad)
    after_commit = False
    for number, (sound, commit) in enumerate(frames, 1):
        if weighed.first_bad is None:
            if sound:
                if commit:
                    weighed.frames = number
                    weighed.commits += 1
                continue
            weighed.first_bad = number
        if sound:
            weighed.written_over |= after_commit
            weighed.commits_behind += commit
        after_commit = sound and commit
    return weighed


def _report(weighed: _Weighed, layout: _Layout, total_bytes: int) -> WalReport:
    damage = None
    if weighed.is_damaged:
        first_bad = weighed.first_bad or 0
        damage = WalDamage(
            place=f"frame {first_bad}" if first_bad else "header",
            offset=layout.end_of(first_bad - 1) if first_bad else 0,
            commits_behind=weighed.commits_behind,
        )
    return WalReport(
        frames=weighed.frames,
        commits=weighed.commits,
        valid_bytes=0 if weighed.first_bad == 0 else layout.end_of(weighed.frames),
        total_bytes=total_bytes,
        damage=damage,
    )


# --- the format --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """How to read the frames of one log. Salts and sums are kept as the eight bytes that are in the file."""

    page_bytes: int
    big_endian: bool
    salts: bytes
    stored_sum: bytes
    """The header's checksum, from which that of the first frame runs on."""
    owed_sum: bytes
    """What the header's checksum should be."""

    @property
    def frame_bytes(self) -> int:
        return FRAME_HEADER_BYTES + self.page_bytes

    def end_of(self, frame: int) -> int:
        return HEADER_BYTES + frame * self.frame_bytes


def _layout_of(header: bytes) -> _Layout | None:
    """What a header says, or None when SQLite would take the whole log for empty because of it."""
    if len(header) < HEADER_BYTES:
        return None
    magic, _version, page_bytes = struct.unpack_from(">III", header)
    if magic not in (_MAGIC_LITTLE, _MAGIC_BIG) or page_bytes not in _PAGE_BYTES_ALLOWED:
        return None
    layout = _layout(header, page_bytes, header[16:24], big_endian=magic == _MAGIC_BIG)
    return layout if layout.stored_sum == layout.owed_sum else None


def _layout(header: bytes, page_bytes: int, salts: bytes, *, big_endian: bool) -> _Layout:
    s1 = s2 = 0
    for x1, x2 in struct.iter_unpack(">II" if big_endian else "<II", header[:24]):
        s1 = (s1 + x1 + s2) & 0xFFFFFFFF
        s2 = (s2 + x2 + s1) & 0xFFFFFFFF
    return _Layout(
        page_bytes=page_bytes,
        big_endian=big_endian,
        salts=salts,
        stored_sum=header[24:32],
        owed_sum=struct.pack(">II", s1, s2),
    )


def _guesses(file: BinaryIO, header: bytes, total_bytes: int) -> Iterator[_Layout]:
    """Layouts that could be right behind a bad header, the likely ones first."""
    if len(header) < HEADER_BYTES:
        return
    likely_big = bool(header[3] & 1)
    found: list[tuple[int, int, bytes]] = []
    for page_bytes in _PAGE_BYTES_ALLOWED:
        frame_bytes = FRAME_HEADER_BYTES + page_bytes
        salts, count = _usual_salts(file, frame_bytes, total_bytes)
        found.append((count * frame_bytes, page_bytes, salts))
    for covered_bytes, page_bytes, salts in sorted(found, reverse=True):
        if covered_bytes:
            for big_endian in (likely_big, not likely_big):
                yield _layout(header, page_bytes, salts, big_endian=big_endian)


def _usual_salts(file: BinaryIO, frame_bytes: int, total_bytes: int) -> tuple[bytes, int]:
    """The salts that most frames have, if frames are that long, and how many; the first frame's in doubt."""
    seen: Counter[bytes] = Counter()
    for offset in range(HEADER_BYTES, total_bytes - frame_bytes + 1, frame_bytes):
        file.seek(offset + 8)
        seen[file.read(8)] += 1
    del seen[bytes(8)]  # empty space
    return next(iter(seen.most_common(1)), (b"", 0))


def _frames(file: BinaryIO, layout: _Layout) -> Iterator[tuple[bool, bool]]:
    """Of each whole frame: whether it is sound, and whether it is marked as a commit."""
    stride = layout.frame_bytes // 8
    stored_before, owed_before = layout.stored_sum, layout.owed_sum
    for words in _chunks(file, layout.frame_bytes):
        heads, salts, stored = words[0::stride].tobytes(), words[1::stride].tobytes(), words[2::stride]
        current = [salts[at : at + 8] == layout.salts for at in range(0, len(salts), 8)]
        if any(current):
            owed = _sums(words, array("Q", stored_before) + stored[:-1], big_endian=layout.big_endian)
            fits = [one == other for one, other in zip(owed, stored, strict=True)]
            if not all(fits):
                again = _sums(words, array("Q", owed_before) + owed[:-1], big_endian=layout.big_endian)
                fits = [fit or one == other for fit, one, other in zip(fits, again, stored, strict=True)]
            owed_before = owed[-1:].tobytes()
        else:
            fits = current
            owed_before = stored[-1:].tobytes()
        stored_before = stored[-1:].tobytes()
        for fit, new, (page, pages_after) in zip(fits, current, struct.iter_unpack(">II", heads), strict=True):
            yield fit and new and page != 0, pages_after != 0


def _chunks(file: BinaryIO, frame_bytes: int) -> Iterator[array[int]]:
    """All whole frames, many at a time, as 64-bit words; what number a word is depends on the machine."""
    left = (file.seek(0, os.SEEK_END) - HEADER_BYTES) // frame_bytes
    file.seek(HEADER_BYTES)
    while left > 0:
        count = min(left, max(1, _CHUNK_BYTES // frame_bytes))
        yield array("Q", file.read(count * frame_bytes))
        left -= count


def _sums(words: array[int], seeds: array[int], *, big_endian: bool) -> array[int]:
    """The checksum each frame should store, run on from its seed; sums and seeds as they are in the file.

    The definition, for each pair of 32-bit words ``x1, x2``: ``s1 += x1 + s2; s2 += x2 + s1``, modulo 2**32. It goes
    over the first eight bytes of the frame's header and over its page.

    The frames are added up side by side: frame ``k`` has the 64 bits from ``64 * k`` on of each big integer. A column
    of pairs, one from each frame, is cut out with one slice. Sums are cut back to 32 bits only now and then.
    """
    count = len(seeds)
    stride = len(words) // count
    low_halves = int.from_bytes(b"\xff\xff\xff\xff\0\0\0\0" * count, "little")
    lanes = int.from_bytes(seeds[::-1].tobytes(), "big")
    s1, s2 = (lanes >> 32) & low_halves, lanes & low_halves
    # Big-endian integers have their first lane last, so those columns are cut out backwards.
    start, step = (len(words) - stride, -stride) if big_endian else (0, stride)
    for turn, column in enumerate((0, *range(FRAME_HEADER_BYTES // 8, stride)), 1):
        pairs = int.from_bytes(words[start + column :: step].tobytes(), "big" if big_endian else "little")
        low = pairs & low_halves
        high = (pairs ^ low) >> 32
        x1, x2 = (high, low) if big_endian else (low, high)
        s1 += x1 + s2
        s2 += x2 + s1
        if turn % _STEPS_UNMASKED == 0:
            s1 &= low_halves
            s2 &= low_halves
    summed = array("Q", ((s1 & low_halves) << 32 | s2 & low_halves).to_bytes(8 * count, "big"))
    return summed[::-1]
