"""Around a command: its function is found and called, and every way it can end becomes an exit code.

An error is one line on stderr, ``error: message (code)``, without a traceback, unless it is a mistake of ours.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import traceback
from argparse import Namespace
from collections.abc import Callable

from actionqueue.core.errors import ActionQueueError, NoEngine, Refused, RunFailed, StoreError, UsageError

DONE, FAILED, USAGE, REFUSED, STORE = range(5)


class Misuse(UsageError):
    """The command line does not say what it must."""

    code = "usage"


def run(command: str, options: Namespace) -> int:
    """Call ``command`` ("module:function" of this package) and say how it ended, as an exit code.

    What it opened, and put into ``options.opened``, is closed.
    """
    options.opened = []
    module, _, name = command.partition(":")
    function: Callable[[Namespace], int] = getattr(importlib.import_module(f"actionqueue.cli.{module}"), name)
    try:
        code = function(options)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has enough of it
        discard_output()
        return DONE
    except ActionQueueError as error:
        return complain(error.message or type(error).__name__, error.code, exit_code_of(error))
    except TimeoutError as error:
        return complain(str(error), "timeout", FAILED)
    except OSError as error:
        return complain(str(error), "os_error", STORE)
    except Exception as error:
        traceback.print_exc()
        return complain(f"{type(error).__name__}: {error}; this is a mistake in actionqueue", "internal", FAILED)
    finally:
        for each in options.opened:
            each.close()
    return code


def discard_output() -> None:
    """Nobody reads standard output any more: from now on it leads nowhere, which is no error."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def complain(message: str, code: str, exit_code: int) -> int:
    """The one line about an error; the exit code comes back."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    said = "".join(char if char.isprintable() else " " for char in message)
    print(f"error: {' '.join(said.split())} ({code})", file=sys.stderr)
    return exit_code


def exit_code_of(error: ActionQueueError) -> int:
    """By the kind of error; see the package's head."""
    if isinstance(error, Refused):
        return REFUSED
    if isinstance(error, StoreError | NoEngine):
        return STORE
    if isinstance(error, RunFailed):
        return FAILED
    return USAGE if isinstance(error, UsageError) else FAILED


def note(message: str) -> None:
    """Something worth knowing that is no result: on stderr."""
    print(message, file=sys.stderr)
