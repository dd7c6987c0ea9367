"""What may be opened as a store: a local path, absent, empty or ours. Looking disturbs nobody's locks."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actionqueue.core.errors import NetworkFileSystem, NotAStore, StoreTooNew
from actionqueue.store import filesystem
from actionqueue.store.filesystem import APPLICATION_ID, FORMAT_VERSION, check_is_store_or_absent, check_local

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX locks and modes")


# --- whose file it is --------------------------------------------------------------------------------------------


@contextmanager
def database(path: Path, *statements: str) -> Generator[sqlite3.Connection]:
    """A database in WAL mode after these statements, not closed, as a killed process leaves it."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = wal")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        for statement in statements:
            connection.execute(statement)
        yield connection


OURS = f"PRAGMA application_id = {APPLICATION_ID}"
TABLE = "CREATE TABLE commits (last_seq INTEGER PRIMARY KEY)"
CHECKPOINT = "PRAGMA wal_checkpoint(TRUNCATE)"


def version(number: int) -> str:
    return f"PRAGMA user_version = {number}"


def test_nothing_is_fine(tmp_path: Path) -> None:
    check_is_store_or_absent(tmp_path / "jobs.db")
    check_is_store_or_absent(tmp_path / "missing" / "jobs.db")


def test_an_empty_file_is_fine_with_and_without_a_wal(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    path.touch()
    check_is_store_or_absent(path)

    (tmp_path / "jobs.db-wal").write_bytes(bytes(5000))

    check_is_store_or_absent(path)


def test_a_store_is_fine_at_every_step_of_its_creation_whatever_is_checkpointed(tmp_path: Path) -> None:
    steps = ["PRAGMA auto_vacuum = INCREMENTAL", OURS, version(FORMAT_VERSION), TABLE, "INSERT INTO commits VALUES (1)"]
    path = tmp_path / "jobs.db"

    for done in range(len(steps) + 1):
        for checkpoint in ("PRAGMA user_version", "PRAGMA wal_checkpoint(PASSIVE)", CHECKPOINT):
            for name in ("jobs.db", "jobs.db-wal", "jobs.db-shm"):
                (tmp_path / name).unlink(missing_ok=True)
            with database(path, *steps[:done], checkpoint):
                check_is_store_or_absent(path)
            check_is_store_or_absent(path)


def test_one_transaction_may_make_all_of_it(tmp_path: Path) -> None:
    with database(tmp_path / "jobs.db", "BEGIN", OURS, version(1), TABLE, "COMMIT", CHECKPOINT):
        check_is_store_or_absent(tmp_path / "jobs.db")


@pytest.mark.parametrize("suffix", ["-wal", "-journal"])
def test_a_first_page_that_was_never_written_is_fine_while_recovery_is_due(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "jobs.db"
    path.write_bytes(bytes(8192))
    with pytest.raises(NotAStore):
        check_is_store_or_absent(path)

    Path(f"{path}{suffix}").write_bytes(b"pages to restore")

    check_is_store_or_absent(path)


@pytest.mark.parametrize(
    "content",
    [
        b"x",
        b"hello, this is a text file of some length\n" * 200,
        bytes(16),
        b"SQLite format 3\0",
        b"SQLite format 2\0" + bytes(5000),
        b"\x7fELF" + bytes(5000),
    ],
)
def test_what_is_no_database_is_refused_untouched(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)

    with pytest.raises(NotAStore, match="is not an ActionQueue store") as refusal:
        check_is_store_or_absent(path)

    assert refusal.value.facts["path"] == str(path)
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


@given(content=st.binary(min_size=1, max_size=2048))
def test_any_bytes_are_refused_and_nothing_else_happens(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("any") / "jobs.db"
    path.write_bytes(content)

    with pytest.raises(NotAStore):
        check_is_store_or_absent(path)


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotAStore, match="it is a directory"):
        check_is_store_or_absent(tmp_path)


@posix
def test_a_pipe_is_refused_without_waiting_for_its_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(NotAStore, match="no regular file"):
        check_is_store_or_absent(tmp_path / "pipe")


@pytest.mark.parametrize("application_id", [0, 1, -1, 0x47504B47])
def test_another_programs_database_is_refused(tmp_path: Path, application_id: int) -> None:
    mark = f"PRAGMA application_id = {application_id}"

    with (
        database(tmp_path / "app.db", mark, TABLE, CHECKPOINT),
        pytest.raises(NotAStore, match="another program's database"),
    ):
        check_is_store_or_absent(tmp_path / "app.db")


def test_a_newer_store_is_refused_with_both_versions(tmp_path: Path) -> None:
    """Scenario 62, second half: refuse newer ones without touching them."""
    path = tmp_path / "jobs.db"
    with database(path, OURS, version(FORMAT_VERSION + 2), TABLE, CHECKPOINT):
        pass
    before = path.read_bytes()

    with pytest.raises(StoreTooNew, match="newer version") as refusal:
        check_is_store_or_absent(path)

    assert (refusal.value.facts["found"], refusal.value.facts["supported"]) == (FORMAT_VERSION + 2, FORMAT_VERSION)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["a b.db", "50%.db", "what?.db", "a#b.db", "ä€.db", "a&mode=rwc.db"])
def test_any_file_name_will_do(tmp_path: Path, name: str) -> None:
    with database(tmp_path / name, "PRAGMA application_id = 7", TABLE, CHECKPOINT), pytest.raises(NotAStore):
        check_is_store_or_absent(tmp_path / name)


READ_LOCKS_ON = """
import fcntl, struct, sys
with open(sys.argv[1], "rb+") as file:
    question = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0)
    answer = struct.unpack("hhqqi4x", fcntl.fcntl(file, fcntl.F_GETLK, question))
    print("free" if answer[0] == fcntl.F_UNLCK else "locked")
"""


def seen_by_another_process(path: Path) -> str:
    told = subprocess.run([sys.executable, "-c", READ_LOCKS_ON, path], capture_output=True, text=True, check=True)
    return told.stdout.strip()


@pytest.mark.skipif(sys.platform != "linux", reason="reads the locks in Linux's layout")
def test_looking_leaves_the_locks_of_this_process_alone(tmp_path: Path) -> None:
    """Scenario 22, a part of it: a second object of this process that opens the store must not unlock it."""
    path = tmp_path / "jobs.db"
    with database(path, OURS, TABLE):
        assert seen_by_another_process(path) == "locked"

        check_is_store_or_absent(path)
        filesystem.is_writable(path)

        assert seen_by_another_process(path) == "locked"
        path.read_bytes()  # what the check must not do, to see that this test can fail
        assert seen_by_another_process(path) == "free"


# --- where it lies -----------------------------------------------------------------------------------------------

MOUNTS = r"""
22 1 259:2 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p2 rw
23 22 0:21 / /proc rw,nosuid shared:12 - proc proc rw
30 22 0:30 / /tmp rw - tmpfs tmpfs rw
31 22 0:31 / /data rw,relatime master:3 propagate_from:2 - nfs4 server:/export rw,vers=4.2
32 31 8:1 / /data/local rw - xfs /dev/sda1 rw
33 22 0:33 / /mnt/my\040share rw - cifs //nas/share rw
34 22 0:34 / /home/me/remote rw - fuse.sshfs me@host:/ rw
35 22 0:35 / /mnt/c rw - 9p C:\134 rw,aname=drvfs
36 22 0:36 / /var/lib/overlay rw - overlay overlay rw,lowerdir=/a,upperdir=/b
37 22 0:37 / /vms rw - virtiofs share rw
38 22 0:38 / /pool rw - zfs tank/pool rw
39 22 0:39 / /b rw - btrfs /dev/sdb rw
40 22 0:40 / /ntfs rw - fuseblk /dev/sdc1 rw
41 22 0:41 / /merged rw - fuse.mergerfs a:b rw
42 22 0:42 / /again rw - nfs server:/old rw
43 22 8:2 / /again rw - ext4 /dev/sdd rw
44 22 8:3 / /hidden rw - ext4 /dev/sde rw
45 22 0:45 / /hidden rw - nfs server:/new rw
a line that is no mount
"""


@pytest.mark.parametrize(
    "path",
    [
        "/jobs.db",
        "/tmp/jobs.db",
        "/database/jobs.db",
        "/data/local/jobs.db",
        "/data/local",
        "/home/me/jobs.db",
        "/home/me/remote.db",
        "/var/lib/overlay/jobs.db",
        "/vms/jobs.db",
        "/pool/jobs.db",
        "/b/jobs.db",
        "/ntfs/jobs.db",
        "/merged/jobs.db",
        "/again/jobs.db",
    ],
)
def test_a_local_file_system_is_accepted(path: str) -> None:
    check_local(Path(path), mountinfo=MOUNTS)


@pytest.mark.parametrize(
    ("path", "mount_point", "kind"),
    [
        ("/data/jobs.db", "/data", "nfs4"),
        ("/data/jobs.db-or/any/deeper/jobs.db", "/data", "nfs4"),
        ("/data/localhost/jobs.db", "/data", "nfs4"),
        ("/mnt/my share/jobs.db", "/mnt/my share", "cifs"),
        ("/home/me/remote/jobs.db", "/home/me/remote", "fuse.sshfs"),
        ("/mnt/c/Users/me/jobs.db", "/mnt/c", "9p"),
        ("/hidden/jobs.db", "/hidden", "nfs"),
    ],
)
def test_a_network_file_system_is_refused(path: str, mount_point: str, kind: str) -> None:
    with pytest.raises(NetworkFileSystem, match="local disk") as refusal:
        check_local(Path(path), mountinfo=MOUNTS)

    assert refusal.value.facts == {"path": path, "mount_point": mount_point, "kind": kind}


def test_a_link_is_judged_by_where_it_leads(tmp_path: Path) -> None:
    real_path = os.path.realpath(tmp_path)
    (tmp_path / "far").mkdir()
    (tmp_path / "near").symlink_to("far")
    mounts = f"1 0 8:1 / / rw - ext4 x rw\n2 1 0:2 / {real_path}/far rw - nfs x rw\n"

    with pytest.raises(NetworkFileSystem):
        check_local(tmp_path / "near" / "jobs.db", mountinfo=mounts)
    check_local(tmp_path / "jobs.db", mountinfo=mounts)


def test_a_mount_table_that_says_nothing_refuses_nothing() -> None:
    check_local(Path("/data/jobs.db"), mountinfo="")
    check_local(Path("/data/jobs.db"), mountinfo="1 2 3\n - \n")


def test_the_system_of_this_test_is_asked(tmp_path: Path) -> None:
    check_local(tmp_path / "jobs.db")


def test_the_table_that_macos_prints_is_read() -> None:
    told = """
/dev/disk3s1s1 on / (apfs, sealed, local, read-only, journaled)
//me@nas._smb._tcp.local/my on share on /Volumes/my share (smbfs, nodev, nosuid, mounted by me)
server:/export on /private/nfs (nfs, asynchronous)
"""

    mounts = list(filesystem._bsd_mounts(told))

    assert [mount.kind for mount in mounts] == ["apfs", "smbfs", "nfs"]
    assert [mount.point for mount in mounts][::2] == ["/", "/private/nfs"]
    found = filesystem._mount_of("/private/nfs/jobs.db", mounts)
    assert found is not None
    assert found.kind == "nfs"


# --- whether it can be written -----------------------------------------------------------------------------------


def test_a_directory_that_can_be_written_will_do_for_a_new_store(tmp_path: Path) -> None:
    assert filesystem.is_writable(tmp_path / "jobs.db")
    assert not filesystem.is_writable(tmp_path / "missing" / "jobs.db")


@posix
@pytest.mark.parametrize(
    ("file_mode", "folder_mode", "expected"),
    [(0o666, 0o777, True), (0o444, 0o777, False), (0o666, 0o555, False)],
)
def test_a_file_and_its_directory_must_both_be_writable(file_mode: int, folder_mode: int, expected: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "jobs.db").touch()
        (folder / "jobs.db").chmod(file_mode)
        folder.chmod(folder_mode)

        answer = answer_to_a_plain_user(folder / "jobs.db")

        folder.chmod(0o755)
    assert answer == str(expected)


def answer_to_a_plain_user(path: Path) -> str:
    """What `is_writable` says to a user without special rights; root may write everything."""
    program = (
        "import os, sys; from pathlib import Path; from actionqueue.store.filesystem import is_writable\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"
        "print(is_writable(Path(sys.argv[1])))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.strip()
