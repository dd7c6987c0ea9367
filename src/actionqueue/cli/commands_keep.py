"""``verify``, ``backup``, ``restore``: looking after the store's file."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

from actionqueue.administer import restore as restore_store
from actionqueue.cli.opening import open_store, store_path
from actionqueue.cli.progress import Progress
from actionqueue.cli.render import print_json, size
from actionqueue.cli.running import DONE, FAILED
from actionqueue.core.plain import plain


def verify(options: Namespace) -> int:
    """Check everything; exit code 1 when something is wrong."""
    progress = Progress("checking")
    try:
        report = open_store(options).verify(progress=progress if sys.stderr.isatty() else None)
    finally:
        progress.end()
    if options.json:
        print_json(plain(report))
    else:
        print(report)
    return DONE if report.ok else FAILED


def backup(options: Namespace) -> int:
    """Copy the store."""
    client = open_store(options)
    path = client.backup(options.path)
    bytes_count = path.stat().st_size
    if options.json:
        print_json({"backup": str(path), "bytes": bytes_count})
    else:
        print(f"copied {client.store} to {path} ({size(bytes_count)})")
    return DONE


def restore(options: Namespace) -> int:
    """Bring a backup back."""
    path = store_path(options)
    aside = restore_store(Path(options.backup), path, force=options.force)
    if options.json:
        print_json({"store": str(path), "moved_aside": None if aside is None else str(aside)})
        return DONE
    if aside is not None:
        print(f"the store that was there is now {aside}")
    print(f"restored {path}; it opens paused, since work done after the backup may be repeated: actionqueue resume")
    return DONE
