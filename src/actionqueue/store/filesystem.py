"""What must be true of a path before a store is opened there: a local disk, and a store or nothing yet.

Knows: mount tables, and the three fields of a SQLite header that say whose database it is. Must not know: tables, the
log, or who holds the store.

A database in use must never be opened by hand, not even to read its first bytes: closing that descriptor would drop the
locks that SQLite holds on the file for other connections of this process (a client's, say, while its process takes the
store over), and the next process could then delete the WAL under them. So the header is read through SQLite, which
keeps such descriptors open, in its immutable mode, which takes no locks and recovers nothing: what is read is the main
file alone. A store that was killed young may have everything in its WAL; the store asks again, in SQL, once it is open.
"""

from __future__ import annotations

import os
import re
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from actionqueue.core.errors import NetworkFileSystem, NotAStore, StoreTooNew, StoreUnavailable

APPLICATION_ID = 0x41515545
"""``AQUE``, in the header of every store (``PRAGMA application_id``), set no later than its first table."""
FORMAT_VERSION = 3
"""The newest store format this version reads (``PRAGMA user_version``)."""

_MAGIC_BYTES = 16

NETWORK_TYPES = frozenset(
    "9p acfs afpfs afs beegfs ceph cifs coda davfs glusterfs gpfs lustre ncp ncpfs nfs nfs3 nfs4 orangefs panfs "
    "prl_fs pvfs2 smb smb2 smb3 smbfs vboxsf vmhgfs webdav wekafs".split()
)
"""File systems of other machines, and the folders of its host that a virtual machine sees (9p is also WSL's /mnt/c)."""
NETWORK_FUSE_TYPES = frozenset(
    "blobfuse blobfuse2 ceph ceph-fuse cifs curlftpfs davfs davfs2 gcsfuse geesefs glusterfs goofys gvfsd-fuse "
    "juicefs lizardfs mfs moosefs mount-s3 nfs ossfs rclone s3fs seaweedfs smbnetfs sshfs vmhgfs-fuse weed".split()
)
"""The same behind FUSE, where the type reads ``fuse.sshfs``."""


def check_local(path: Path, *, mountinfo: str | None = None) -> None:
    """Refuse a path on a network file system. What is unknown passes: only a known network type is refused.

    ``mountinfo`` is the text of ``/proc/self/mountinfo``, for tests; by default the system is asked.

    Raises `NetworkFileSystem` (``path``, ``mount_point``, ``kind``).
    """
    real_path = os.path.realpath(path)
    if sys.platform == "win32" and real_path.startswith("\\\\") and not real_path.startswith("\\\\?\\"):
        raise _on_network(real_path, real_path, "unc")
    mounts = _system_mounts() if mountinfo is None else _linux_mounts(mountinfo)
    mount = _mount_of(real_path, mounts)
    if mount is not None and _is_network(mount.kind):
        raise _on_network(real_path, mount.point, mount.kind)


def check_is_store_or_absent(path: Path) -> None:
    """Refuse what exists and cannot be a store of this version. Absent, empty and just begun are fine.

    Safe beside open connections. Looks at the main file only, so the store must ask again after opening.

    Raises `NotAStore` (``path``), `StoreTooNew` (``path``, ``found``, ``supported``), and `StoreUnavailable` when the
    file cannot be read.
    """
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return  # a missing directory is the concern of whoever creates the file
    except OSError as problem:
        raise _unreadable(path, problem.strerror or "") from problem
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "no regular file"
        raise _not_a_store(path, f"it is {kind}")
    if status.st_size == 0:
        return  # new; or all of it is still in the WAL
    header = _read_header(path) if status.st_size >= _MAGIC_BYTES else None  # SQLite takes one byte for an empty file
    if header is None:
        if _awaits_recovery(path):
            return  # page 1 not written yet, or half: SQLite completes or undoes that
        raise _not_a_store(path, "it does not begin as a SQLite database does, or the disk cannot read how it begins")
    if header.application_id == 0 and header.is_empty:
        return  # a database, but nothing in it: the store was killed before its first commit
    if header.application_id != APPLICATION_ID:
        raise _not_a_store(path, f"it is another program's database (application id {header.application_id:#x})")
    if header.format_version > FORMAT_VERSION:
        raise StoreTooNew(
            f"{path} was written by a newer version of ActionQueue: its format is {header.format_version}, this "
            f"version reads up to {FORMAT_VERSION}. Nothing was touched. Upgrade ActionQueue, or use another store.",
            path=str(path),
            found=header.format_version,
            supported=FORMAT_VERSION,
        )


def is_writable(path: Path) -> bool:
    """Whether a store here could be written: its directory, and the file if there is one. Opens nothing."""
    real_path = Path(os.path.realpath(path))
    if not os.access(real_path.parent, os.W_OK | os.X_OK):
        return False
    return not real_path.exists() or os.access(real_path, os.W_OK)


# --- the header --------------------------------------------------------------------------------------------------


class _Header(NamedTuple):
    application_id: int
    format_version: int
    is_empty: bool


def _read_header(path: Path) -> _Header | None:
    """None for what SQLite does not take for a database (its first page cannot be made out)."""
    uri = f"file:{quote(os.fsencode(path.absolute()))}?mode=ro&immutable=1"
    try:
        with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
            application_id = int(connection.execute("PRAGMA application_id").fetchone()[0]) & 0xFFFFFFFF
            format_version = int(connection.execute("PRAGMA user_version").fetchone()[0])
            # Asked only where it matters: without locks, a checkpoint may be rewriting the tables at this moment.
            is_empty = application_id == 0 and connection.execute("SELECT 1 FROM sqlite_schema").fetchone() is None
            return _Header(application_id, format_version, is_empty)
    except sqlite3.DatabaseError as problem:
        if problem.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            return None
        raise _unreadable(path, str(problem)) from problem


def _awaits_recovery(path: Path) -> bool:
    real_path = os.path.realpath(path)
    return any(_size_of(f"{real_path}{suffix}") > 0 for suffix in ("-wal", "-journal"))


def _size_of(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:
        return 0


def _not_a_store(path: Path, why: str) -> NotAStore:
    return NotAStore(
        f"{path} is not an ActionQueue store: {why}. Nothing was touched. Give another path; a store is created where "
        "there is no file.",
        path=str(path),
    )


def _unreadable(path: Path, why: str) -> StoreUnavailable:
    return StoreUnavailable(
        f"{path} cannot be read ({why}). Check its owner and mode, and those of the directories above it.",
        path=str(path),
    )


# --- mounts ------------------------------------------------------------------------------------------------------


class _Mount(NamedTuple):
    point: str
    kind: str


def _system_mounts() -> Iterable[_Mount]:
    """The mounts, in the order they were made; none where the system cannot be asked."""
    platform: str = sys.platform
    try:
        if platform == "linux":
            return _linux_mounts(Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape"))
        if platform == "darwin" or "bsd" in platform:
            told = subprocess.run(["/sbin/mount"], capture_output=True, text=True, timeout=5, check=True)
            return _bsd_mounts(told.stdout)
    except (OSError, subprocess.SubprocessError):
        pass
    return ()


def _linux_mounts(mountinfo: str) -> Iterator[_Mount]:
    """Lines such as ``36 35 98:0 /root /mnt rw,noatime master:1 - ext4 /dev/sda1 rw``, see proc(5)."""
    for line in mountinfo.splitlines():
        before, found, after = line.partition(" - ")
        fields = before.split(" ")
        if found and len(fields) > 4:
            yield _Mount(_unescaped(fields[4]), after.split(" ")[0])


def _bsd_mounts(told: str) -> Iterator[_Mount]:
    """Lines such as ``//me@host/share on /Volumes/share (smbfs, nodev)``: what ``mount`` prints on macOS and BSD."""
    for match in re.finditer(r"^.*? on (/.*) \(([\w.]+)", told, re.MULTILINE):
        yield _Mount(match[1], match[2])


def _unescaped(field: str) -> str:
    r"""A path as it is: mountinfo writes blanks and the like in octal, as in ``/mnt/my\040disk``."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def _mount_of(real_path: str, mounts: Iterable[_Mount]) -> _Mount | None:
    """The mount with the longest path above this one; of several there, the last, which covers the others."""
    found: _Mount | None = None
    for mount in mounts:
        above = mount.point.rstrip("/") + "/"
        if f"{real_path}/".startswith(above) and (found is None or len(mount.point) >= len(found.point)):
            found = mount
    return found


def _is_network(kind: str) -> bool:
    lowered = kind.lower()
    family, _, subtype = lowered.partition(".")
    return lowered in NETWORK_TYPES or (family in ("fuse", "macfuse", "osxfuse") and subtype in NETWORK_FUSE_TYPES)


def _on_network(real_path: str, mount_point: str, kind: str) -> NetworkFileSystem:
    return NetworkFileSystem(
        f"{real_path} lies on a network file system ({kind}, mounted on {mount_point}), whose locks cannot be trusted: "
        "two machines could write at once. Put the store on a local disk; for several machines, use PostgreSQL.",
        path=real_path,
        mount_point=mount_point,
        kind=kind,
    )
