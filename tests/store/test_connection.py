"""Opening a connection while another one is in the way."""

import sqlite3
import threading
from contextlib import closing
from pathlib import Path

from actionqueue.store.sqlite_connection import connect


def test_connecting_waits_for_one_who_keeps_the_file_locked_for_a_moment(tmp_path: Path) -> None:
    """Whoever comes first after a killed engine recovers its WAL, and nobody can read the schema meanwhile."""
    path = tmp_path / "store.db"
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("CREATE TABLE t (x)")
        other.execute("BEGIN EXCLUSIVE")
        release = threading.Timer(0.1, other.execute, ("COMMIT",))
        release.start()

        with closing(connect(path, "rw", 1 << 20)) as connection:
            rows = connection.execute("SELECT count(*) FROM t").fetchone()

        release.join()
    assert rows == (0,)
