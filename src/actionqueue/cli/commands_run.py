"""``run``: this process is the engine of a program's queue until a signal."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from argparse import Namespace
from pathlib import Path
from typing import Any

from actionqueue.app import ActionQueue
from actionqueue.cli.render import print_json
from actionqueue.cli.running import DONE, Misuse, discard_output, note
from actionqueue.core.errors import ActionQueueError, InvalidDuration
from actionqueue.core.instants import parse_duration_us
from actionqueue.running import run_forever

DEFAULT_NAME = "queue"


def run(options: Namespace) -> int:
    """Import the queue, be its engine, drain on SIGTERM or SIGINT.

    It works on when nobody reads its output: that is for whoever started it, and the work is everyone's.
    """
    wait = options.wait_for_store
    if isinstance(wait, str):
        try:
            parse_duration_us(wait, field="--wait-for-store")
        except InvalidDuration as error:
            raise Misuse(error.message) from None
    sys.path.insert(0, str(Path.cwd()))
    queue = find_queue(options.queue)
    for module in options.imports:
        _import(module)
    if options.store is not None and Path(options.store).absolute() != Path(queue.store):
        raise Misuse(f"{options.queue} is a queue on {queue.store}, not on {options.store}; leave --store out")

    def on_ready() -> None:
        names = sorted(queue.handlers)
        try:
            if options.json:
                print_json({"event": "ready", "store": str(queue.store), "pid": os.getpid(), "handlers": names})
            else:
                print(f"ready: {queue.store}, pid {os.getpid()}, handlers: {', '.join(names) or 'none'}", flush=True)
        except BrokenPipeError:
            discard_output()
            note("nobody reads standard output; the engine goes on")

    run_forever(queue, wait, on_ready)
    return DONE


def demo(options: Namespace) -> int:
    """The demo, as it is without options of its own (``main`` hands those on)."""
    del options
    from actionqueue.demo import main

    return main([])


def find_queue(target: str) -> ActionQueue:
    """The queue at "module:name" (of attributes, with dots). Raises ``Misuse``."""
    module_name, _, path = target.partition(":")
    found: Any = _import(module_name)
    for name in (path or DEFAULT_NAME).split("."):
        if not hasattr(found, name):
            raise Misuse(f"{target}: {module_name} has no {path or DEFAULT_NAME}; give MODULE:NAME of an ActionQueue")
        found = getattr(found, name)
    if not isinstance(found, ActionQueue):
        raise Misuse(f"{target}: is a {type(found).__name__}, not an ActionQueue")
    return found


def _import(name: str) -> Any:
    """The module; whatever its import raises becomes one line that says where."""
    try:
        return importlib.import_module(name)
    except ActionQueueError as error:
        raise Misuse(f"importing {name} failed at {_place(error)}: {error.message}") from error
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise Misuse(f"there is no module {name} (looked in {Path.cwd()} and on Python's path)") from error
        raise Misuse(f"importing {name} failed at {_place(error)}: {error}") from error
    except Exception as error:
        raise Misuse(f"importing {name} failed at {_place(error)}: {type(error).__name__}: {error}") from error


def _place(error: Exception) -> str:
    """File and line where it was raised, by the user's code."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    ours = str(Path(__file__).parents[1])
    theirs = [frame for frame in frames if not frame.filename.startswith(ours)] or frames
    return f"{theirs[-1].filename}:{theirs[-1].lineno}" if theirs else "an unknown place"
