"""``audit`` and ``export``: what a store can show for its promises."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable
from datetime import datetime

from actionqueue.audit import TaskAudit
from actionqueue.cli.opening import existing_path, instant, open_store
from actionqueue.cli.render import Column, cut, print_json, short_id
from actionqueue.cli.running import DONE, FAILED
from actionqueue.core.instants import instant_us
from actionqueue.core.plain import plain
from actionqueue.export import export_store

_COLUMNS = (
    Column("ID"), Column("IMPLIED", right=True), Column("ASKED", right=True), Column("CREATED", right=True),
    Column("OPEN", right=True), Column("COMPLETED", right=True), Column("FAILED", right=True),
    Column("CANCELED", right=True), Column("HANDLER"),
)  # fmt: skip
_WIDTHS = (8, 7, 5, 7, 5, 9, 6, 8)
_HANDLER_WIDTH = 40


def audit(options: Namespace) -> int:
    """Account for every task; exit code 1 when one is not consistent. Lines come as they are found, oldest first."""
    accounts: list[TaskAudit] = []
    each: Callable[[TaskAudit], object] | None = accounts.append if options.json else _print_account
    if options.quiet:
        each = None
    elif not options.json:
        print(_line([column.heading for column in _COLUMNS]))
    report = open_store(options).audit(each=each, **_range(options))
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
    wanted = {name: None if at is None else instant_us(at, field=name) for name, at in _range(options).items()}
    for line in export_store(existing_path(options), redact=options.redact, **wanted):
        sys.stdout.write(line + "\n")
    return DONE


def _range(options: Namespace) -> dict[str, datetime | None]:
    given = {name: getattr(options, name) for name in ("since", "until")}
    return {name: None if text is None else instant(text, f"--{name}") for name, text in given.items()}
