"""``batch`` and ``batches``: tasks that were submitted together, counted."""

from __future__ import annotations

from argparse import Namespace
from datetime import UTC, datetime

from actionqueue.batching import BatchRecord
from actionqueue.cli.opening import open_store
from actionqueue.cli.render import Column, ago, columns_of_terminal, fields, moment, print_json, table
from actionqueue.cli.running import DONE
from actionqueue.core.plain import plain


def batch(options: Namespace) -> int:
    """One batch."""
    found = open_store(options).get_batch(options.id)
    if options.json:
        print_json({"batch": plain(found)})
        return DONE
    now = datetime.now(UTC)
    print(
        fields(
            [
                ("batch", str(found.id)),
                ("name", found.name or None),
                ("tasks", str(found.task_count)),
                ("runs", _counted(found)),
                ("open", str(found.open_count)),
                ("followed by", None if found.callback is None else f"task {found.callback}"),
                ("created", f"{moment(found.created_at)} ({ago(found.created_at, now)} ago)"),
            ],
            columns_of_terminal(),
        )
    )
    return DONE


def batches(options: Namespace) -> int:
    """The latest."""
    found = open_store(options).batches(limit=options.limit)
    if options.json:
        print_json({"batches": plain(found)})
        return DONE
    if not found:
        print("no batches")
        return DONE
    now = datetime.now(UTC)
    columns = [Column("AGE", right=True), Column("BATCH"), Column("NAME"), Column("TASKS", right=True), Column("RUNS")]
    rows = [
        [ago(each.created_at, now), str(each.id), each.name, str(each.task_count), _counted(each)] for each in found
    ]
    print(table(columns, rows, columns_of_terminal()))
    return DONE


def _counted(found: BatchRecord) -> str:
    return ", ".join(f"{count} {state}" for state, count in found.runs.items()) or "none"
