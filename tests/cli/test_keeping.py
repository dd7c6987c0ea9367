"""``verify``, ``backup``, ``restore``: with and without an engine."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from actionqueue import ActionQueue
from tests.cli.conftest import Call, Gate, make_queue


def test_verify_of_a_whole_store_is_exit_0(resting: ActionQueue, cli: Call, store: Path) -> None:
    result = cli("verify")

    assert (result.code, result.err) == (0, "")
    assert result.lines[0] == f"store     {store}"
    assert result.lines[-1] == "ok        everything is as it was written"
    plain = cli("verify", "--json").json
    assert (plain["ok"], plain["replay"], plain["problems"]) == (True, "whole", [])


def test_verify_beside_an_engine(engine: ActionQueue, cli: Call) -> None:
    engine.handlers["send"].submit("ann").result(timeout=20)

    assert cli("verify", "--json").json["ok"] is True


def test_verify_of_a_damaged_store_is_exit_1_and_names_the_damage(resting: ActionQueue, cli: Call, store: Path) -> None:
    with closing(sqlite3.connect(store)) as connection:
        connection.execute("UPDATE blobs SET body = x'00' WHERE id = (SELECT min(id) FROM tasks)")
        connection.commit()

    result = cli("verify")

    assert result.code == 1
    assert "does not match its digest" in result.out
    assert "actionqueue restore" in result.out
    plain = cli("verify", "--json")
    assert (plain.code, plain.json["ok"], plain.json["problems"][0]["kind"]) == (1, False, "digest")


@pytest.mark.parametrize("running", [False, True])
def test_backup_and_restore(resting: ActionQueue, cli: Call, tmp_path: Path, running: bool) -> None:
    copy, other = tmp_path / "copy.db", tmp_path / "other.db"
    if running:
        with resting.running():
            result = cli("backup", copy)
    else:
        result = cli("backup", copy)
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("copied ")

    restored = cli("restore", copy, "--store", other, at=None)

    assert restored.code == 0
    assert "it opens paused" in restored.out
    assert cli("stats", "--json", at=other).json["runs"]["completed"] == 3
    assert cli("verify", "--json", at=other).json["ok"] is True
    with make_queue(other, Gate()).running():
        assert cli("stats", "--json", at=other).json["paused"] == ["engine"]


def test_backup_as_json_and_never_over_a_file(resting: ActionQueue, cli: Call, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"

    plain = cli("backup", copy, "--json").json
    again = cli("backup", copy)

    assert plain == {"backup": str(copy), "bytes": copy.stat().st_size}
    assert again.code == 4
    assert "exists" in again.err


def test_restore_over_a_store_needs_force_and_moves_it_aside(resting: ActionQueue, cli: Call, store: Path) -> None:
    copy = store.with_name("copy.db")
    cli("backup", copy)

    refused = cli("restore", copy)
    forced = cli("restore", copy, "--force", "--json")

    assert refused.code == 4
    assert "was not touched" in refused.err
    assert forced.json == {"store": str(store), "moved_aside": f"{store}.replaced-1"}
    assert cli("stats", "--json").json["runs"]["completed"] == 3


def test_restore_of_a_damaged_backup_is_refused(resting: ActionQueue, cli: Call, store: Path) -> None:
    copy, other = store.with_name("copy.db"), store.with_name("other.db")
    cli("backup", copy)
    with closing(sqlite3.connect(copy)) as connection:
        connection.execute("UPDATE commits SET events = x'90' WHERE last_seq = (SELECT max(last_seq) FROM commits)")
        connection.commit()

    result = cli("restore", copy, at=other)

    assert result.code == 4
    assert result.err.endswith("(store_damaged)\n")
    assert not other.exists()


def test_restore_under_a_running_engine_is_refused(engine: ActionQueue, cli: Call, store: Path) -> None:
    copy = store.with_name("copy.db")
    cli("backup", copy)

    result = cli("restore", copy, "--force")

    assert result.code == 4
    assert result.err.endswith("(store_held)\n")


def test_restore_of_what_is_not_there_is_exit_4(cli: Call, tmp_path: Path) -> None:
    assert cli("restore", tmp_path / "none.db").code == 4
