"""The inside of a fresh process: calls one function with given arguments and leaves its answer in a file.

``python -m benchmarks.child MODULE:FUNCTION JSON ANSWER``; see ``harness.fresh``.
"""

from __future__ import annotations

import importlib
import logging
import sys
from pathlib import Path

from msgspec import json

from actionqueue.running import tune_process


def main() -> None:
    """Entry point."""
    target, given, answer = sys.argv[1:]
    logging.basicConfig(level=logging.ERROR)
    module, _, name = target.partition(":")
    function = getattr(importlib.import_module(module), name)
    tune_process()  # as ``run_forever`` does; for the floor too
    Path(answer).write_bytes(json.encode(function(**json.decode(given))))


if __name__ == "__main__":
    main()
