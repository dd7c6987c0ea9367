"""``audit`` and ``export``: what a store can show for its promises."""

from __future__ import annotations

import sys
from argparse import Namespace
from typing import Any

from actionqueue.audit import TaskAudit
from actionqueue.audit import audit as audit_of
from actionqueue.cli.opening import existing_path, instant
from actionqueue.cli.render import Column, cut, plain, print_json, short_id
from actionqueue.cli.running import DONE, FAILED
from actionqueue.core.instants import instant_us
from actionqueue.export import export_lines
from actionqueue.store.sqlite_reader import SQLiteReader

_COLUMNS = (
    Column("ID"), Column("IMPLIED", right=True), Column("ASKED", right=True), Column("CREATED", right=True),
    Column("OPEN", right=True), Column("COMPLETED", right=True), Column("FAILED", right=True),
    Column("CANCELED", right=True), Column("HANDLER"),
)  # fmt: skip
_WIDTHS = (8, 7, 5, 7, 5, 9, 6, 8)
_HANDLER_WIDTH = 40


def audit(options: Namespace) -> int:
    """Account for every task; exit code 1 when one is not consistent. Lines come as they are found, oldest first."""
    reader = _reader(options)
    accounts: list[TaskAudit] = []
    if options.json:
        each = None if options.quiet else accounts.append
    else:
        each = None if options.quiet else _print_account
        if each is not None:
            print(_line([column.heading for column in _COLUMNS]))
    report = audit_of(reader, each=each, **_range(options))
    if options.json:
        print_json({**plain(report), "consistent": report.is_consistent, "accounts": plain(accounts)})
    else:
        print(report)
    return DONE if report.is_consistent else FAILED


def _print_account(account: TaskAudit) -> None:
    counts = [
        account.implied, account.asked, account.created, account.open, account.completed, account.failed,
        account.canceled,
    ]  # fmt: skip
    mark = "" if account.is_consistent else "  not consistent"
    print(_line([short_id(account.task_id), *map(str, counts), cut(account.handler, _HANDLER_WIDTH)]) + mark)


def _line(cells: list[str]) -> str:
    fixed = [
        f"{cell:>{width}}" if column.right else f"{cell:<{width}}"
        for cell, width, column in zip(cells, _WIDTHS, _COLUMNS, strict=False)
    ]
    return "  ".join([*fixed, cells[-1]])


def export(options: Namespace) -> int:
    """Write the log as JSON lines."""
    for line in export_lines(_reader(options), redact=options.redact, **_range(options)):
        sys.stdout.write(line + "\n")
    return DONE


def _reader(options: Namespace) -> SQLiteReader:
    reader = SQLiteReader(existing_path(options))
    options.opened.append(reader)
    return reader


def _range(options: Namespace) -> dict[str, Any]:
    """``since`` and ``until`` as instants."""
    given = {name: getattr(options, name) for name in ("since", "until")}
    return {
        name: None if text is None else instant_us(instant(text, f"--{name}"), field=name)
        for name, text in given.items()
    }
