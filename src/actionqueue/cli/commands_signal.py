"""``signal`` and ``signals``: telling waiting runs something, and what was told.

With an engine on the store ``signal`` waits for its answer; without one it is left in the inbox, which is said.
"""

from __future__ import annotations

from argparse import Namespace
from datetime import UTC, datetime

import msgspec

from actionqueue.cli.opening import control, note_queued, open_store
from actionqueue.cli.render import Column, ago, columns_of_terminal, preview, print_json, table
from actionqueue.cli.running import DONE, Misuse
from actionqueue.core.plain import plain


def signal(options: Namespace) -> int:
    """Send a signal."""
    try:
        payload = None if options.payload is None else msgspec.json.decode(options.payload)
    except msgspec.DecodeError as error:
        raise Misuse(f"--payload is not JSON: {error}") from error
    client = open_store(options)
    new, queued = control(
        lambda: client.signal(options.name, key=options.key, payload=payload, id=options.id, by=options.by)
    )
    if options.json:
        print_json({"new": new, "queued": queued})
    elif not queued:
        print("the signal is sent" if new else "this signal was sent before; nothing changed")
    note_queued(queued, client.store)
    return DONE


def signals(options: Namespace) -> int:
    """List the signals that are kept."""
    client = open_store(options)
    found = client.signals(name=options.name, key=options.key, limit=100 if options.limit is None else options.limit)
    if options.json:
        print_json({"signals": plain(found)})
        return DONE
    if not found:
        print("no signals are kept")
        return DONE
    now = datetime.now(UTC)
    columns = [Column("AGE", right=True), Column("NAME"), Column("KEY"), Column("BY"), Column("PAYLOAD", flexible=True)]
    rows = [
        [ago(each.sent_at, now), each.name, each.key or "", each.by, preview(msgspec.json.encode(each.payload)) or ""]
        for each in found
    ]
    print(table(columns, rows, columns_of_terminal()))
    return DONE
