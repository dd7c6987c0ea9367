"""The command line: ``actionqueue`` and ``python -m actionqueue``.

Starting takes most of the time a command has, so nothing is imported here, and the parser imports only argparse; what a
command needs is imported when it runs (``parser.Command`` names its function). Results go to stdout, everything else to
stderr. Exit codes: 0 done, 1 failed, 2 usage, 3 refused (validation, not found, conflict), 4 store or connection.
"""

from __future__ import annotations

import sys

INTERRUPTED = 130

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code. ``argv`` is ``sys.argv[1:]`` when left out."""
    from actionqueue.cli.parser import parse

    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words[:1] == ["demo"]:  # it reads its own arguments
            from actionqueue.demo import main as demo

            return demo(words[1:])
        command, options = parse(words)
        from actionqueue.cli.running import run

        return run(command, options)
    except SystemExit as end:
        return int(end.code or 0)
    except KeyboardInterrupt:
        return INTERRUPTED


__all__ = ["main"]
