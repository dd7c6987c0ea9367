"""The demo's two handlers, on the store that ``ACTIONQUEUE_STORE`` names.

This is the module that an application would have: the engine runs it, its worker processes import it, and the demo
submits through it. The variable is read at import, as applications do: that is how the three find the same store.
"""

from __future__ import annotations

import ast
import asyncio
import os
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b, sha256
from pathlib import Path

from actionqueue import CONTEXT, ActionQueue, Context, Retry, exponential
from actionqueue.demo import STORE_VARIABLE

WORKERS_MAX = 8
CALLS_AT_ONCE = 4
AWAY_IN_256 = 90
"""How often the service cannot be reached: in 90 of 256 calls."""
FAILURES_BEFORE_LUCK = 4

queue = ActionQueue(
    os.environ.get(STORE_VARIABLE, "actionqueue-demo.db"),
    processes=min(WORKERS_MAX, os.cpu_count() or 1),
    queues={"service": CALLS_AT_ONCE},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """What is known of a source file that parses."""

    path: str
    sha256: str
    size: int
    """In bytes."""
    lines: int
    functions: int
    largest_function: str
    """Its qualified name, or nothing where there is none."""
    largest_function_lines: int
    seconds: float
    """What reading, hashing and parsing it took."""


@queue.task(executor="process", timeout="1m", no_retry_on=(SyntaxError, ValueError, RecursionError, MemoryError))
def index(path: str) -> FileFacts:
    """Hash and parse one source file. One that does not parse fails for good: it would not parse next time either."""
    began = time.perf_counter()
    source = Path(path).read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the parser thinks of other people's escape sequences
        module = ast.parse(source, path)
    functions = list(_functions(module))
    lines, name = max(functions, default=(0, ""))
    return FileFacts(
        path=path,
        sha256=sha256(source).hexdigest(),
        size=len(source),
        lines=source.count(b"\n") + (not source.endswith(b"\n") and bool(source)),
        functions=len(functions),
        largest_function=name,
        largest_function_lines=lines,
        seconds=time.perf_counter() - began,
    )


def _functions(module: ast.Module) -> Iterator[tuple[int, str]]:
    """(lines, qualified name) of each function, also of those inside classes and functions."""
    left: list[tuple[ast.AST, str]] = [(module, "")]
    while left:
        node, prefix = left.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield (node.end_lineno or node.lineno) - node.lineno + 1, prefix + node.name
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            prefix = f"{prefix}{node.name}."
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
                left.append((child, prefix))  # noqa: PERF401 - read as a loop


@queue.task(queue="service", retry=Retry(max_attempts=6, backoff=exponential("200ms", cap="2s")))
async def publish(directory: str, files: int, *, ctx: Context = CONTEXT) -> str:
    """Announce one directory to a service that is often away; a failed call is tried again a little later.

    The service is made up. Whether a call reaches it depends on what is called and how often it has failed, so that a
    second demo meets the same weather.
    """
    luck = blake2b(f"{directory}/{ctx.failure_count}".encode()).digest()
    await asyncio.sleep(0.05 + luck[1] / 2560)
    if luck[0] < AWAY_IN_256 and ctx.failure_count < FAILURES_BEFORE_LUCK:
        raise ConnectionError("the service cannot be reached")
    return f"{files} files, receipt {luck[2:6].hex()}"
