"""The architecture's import directions, as one table (docs: the rules that hold everywhere, number 10).

Every module under ``src/actionqueue`` is parsed, not imported, so each import counts wherever it stands: at the top, in
a function, under ``TYPE_CHECKING``, in ``importlib.import_module("…")``. A new sub-package needs a line in ``LAYERS``;
until it has one, it is a violation.
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "actionqueue"
OURS = "actionqueue"


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


PURE = words(
    """
    __future__ abc array bisect collections contextlib copy dataclasses datetime decimal enum fractions functools
    hashlib heapq itertools json math operator re string struct types typing uuid zlib
    """
)
"""The standard library without clocks, randomness, I/O, threads, processes, asyncio or logging."""

EVERYTHING = frozenset(sys.stdlib_module_names)
NO_STORE = EVERYTHING - words("dbm shelve sqlite3")
NO_STORE_NO_HTTP = NO_STORE - words("http socketserver urllib wsgiref xmlrpc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """What the modules of one layer may import."""

    ours: frozenset[str]
    """Layers, or single modules of a layer, such as ``store.port``."""
    packages: frozenset[str] = words("msgspec")
    stdlib: frozenset[str] = EVERYTHING
    rule: str
    extra: dict[str, frozenset[str]] = field(default_factory=dict)
    """What single modules may import besides, each with its reason in ``rule``."""


# "top" is the public API: actionqueue/__init__.py, app.py, task.py, context.py, handle.py and their neighbours.
LAYERS: dict[str, Layer] = {
    "core": Layer(
        ours=words("core"),
        stdlib=PURE,
        rule="core is pure: itself, msgspec, the standard library without clock, randomness, I/O, threads, asyncio or "
        "logging (but ids.py makes ids in .new(), cron.py and zones.py know calendars)",
        extra={
            "core.ids": words("os secrets threading time"),
            "core.cron": words("cronsim"),
            "core.zones": words("zoneinfo"),
        },
    ),
    "store": Layer(
        ours=words("core store"),
        packages=words("msgspec psycopg"),
        rule="store imports core and store: it does not know what an event means or who runs the engine",
    ),
    "executors": Layer(
        ours=words("core executors"),
        packages=words("msgspec uvloop"),
        stdlib=NO_STORE,
        rule="executors import core and executors: they do not know states, retries or the log",
    ),
    "engine": Layer(
        ours=words("core engine store.port store.codec executors.port executors.endings"),
        stdlib=NO_STORE_NO_HTTP,
        rule="engine imports core, and of the others only ports, the codec, and how code ends: "
        "it does not know which store, which executor, or HTTP",
    ),
    "top": Layer(
        ours=words("core store executors engine client top"),
        packages=words("msgspec pydantic"),
        rule="the public API wires everything, but does not import server, worker, cli or testing",
    ),
    "client": Layer(
        ours=words("core client top"),
        stdlib=NO_STORE,
        rule="client imports core and the public API: it does not know the engine",
    ),
    "worker": Layer(
        ours=words("core client worker top"),
        stdlib=NO_STORE,
        rule="worker imports core, client and the public API: it does not know the engine",
    ),
    "server": Layer(
        ours=words("core server top"),
        stdlib=NO_STORE,
        rule="server imports core and the public API: it sends commands and queries, and knows no state internals",
    ),
    "demo": Layer(
        ours=words("demo top"),
        packages=frozenset(),
        stdlib=NO_STORE,
        rule="demo is a program as users write them: it imports the public API",
    ),
    "cli": Layer(
        ours=words("core client worker server demo cli top"),
        stdlib=NO_STORE,
        rule="cli imports core, the public API and what it starts (server, worker, client, demo), not what is behind",
    ),
    "testing": Layer(
        ours=words("core store executors engine client worker server demo cli testing top"),
        packages=words("hypothesis msgspec pytest"),
        rule="testing may import everything, and nothing imports testing",
    ),
}

AMBIENT_CALLS = words(
    "date.today datetime.now datetime.today datetime.utcnow input open print uuid.uuid1 uuid.uuid4 uuid1 uuid4"
)
"""Calls that reach for a clock, randomness or I/O through a module that core may import, or through none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """One parsed file."""

    name: str
    path: Path
    tree: ast.Module

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"


def modules_under(source: Path) -> dict[str, Module]:
    modules: dict[str, Module] = {}
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        name = ".".join((OURS, *(part for part in parts if part != "__init__")))
        modules[name] = Module(name=name, path=path, tree=ast.parse(path.read_text(encoding="utf-8"), str(path)))
    return modules


def layer_of(name: str, modules: dict[str, Module]) -> str | None:
    """The layer that a module of ours belongs to; None for a sub-package that has no line in the table."""
    parts = name.split(".")
    if len(parts) == 1:
        return "top"
    if parts[1] == "__main__":
        return "cli"
    if parts[1] in LAYERS:
        return parts[1]
    is_plain_module = len(parts) == 2 and not (name in modules and modules[name].is_package)
    return "top" if is_plain_module else None


def imports_of(module: Module, modules: dict[str, Module]) -> Iterator[tuple[int, str]]:
    """Each import of a module as (line, full name of what is imported, down to the sub-module)."""
    for node in ast.walk(module.tree):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=target, names=names, level=level):
                base = target or ""
                if level:
                    package = module.name.split(".") if module.is_package else module.name.split(".")[:-1]
                    anchor = package[: len(package) - level + 1]
                    base = ".".join([*anchor, target] if target else anchor)
                for alias in names:
                    full = f"{base}.{alias.name}"
                    yield node.lineno, full if full in modules else base
            case ast.Call(func=func, args=[ast.Constant(value=str(target)), *_]) if ast.unparse(func) in {
                "__import__",
                "import_module",
                "importlib.import_module",
            }:
                yield node.lineno, target


def may_import(layer: Layer, module: str, target: str, modules: dict[str, Module]) -> bool:
    root, _, inside = target.partition(".")
    if root in layer.extra.get(module.partition(".")[2], frozenset()):
        return True
    if root == OURS:
        return layer_of(target, modules) in layer.ours or any(
            inside == allowed or inside.startswith(f"{allowed}.") for allowed in layer.ours if "." in allowed
        )
    if root in EVERYTHING:
        return root in layer.stdlib
    return root in layer.packages


def ambient_calls(module: Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in AMBIENT_CALLS or any("." in call and called.endswith(f".{call}") for call in AMBIENT_CALLS):
                yield node.lineno, called


def violations_in(source: Path) -> list[str]:
    """Every broken rule as ``file:line: what (the rule)``."""
    modules = modules_under(source)
    found: list[str] = []
    for module in modules.values():
        shown = Path("src", OURS, module.path.relative_to(source)).as_posix()
        name = layer_of(module.name, modules)
        if name is None:
            found.append(f"{shown}:1: {module.name} is in no layer (every sub-package has its line in LAYERS)")
            continue
        layer = LAYERS[name]
        found += [
            f"{shown}:{line}: {name} may not import {target} ({layer.rule})"
            for line, target in imports_of(module, modules)
            if not may_import(layer, module.name, target, modules)
        ]
        if name == "core":
            calls = ambient_calls(module)
            found += [f"{shown}:{line}: core may not call {call}() ({layer.rule})" for line, call in calls]
    return found


def test_every_module_imports_only_what_its_layer_may() -> None:
    assert modules_under(SOURCE), f"no modules under {SOURCE}"

    violations = violations_in(SOURCE)

    if violations:
        pytest.fail("\n".join(violations), pytrace=False)


# The check must be able to fail: a synthetic package with one bad module, and one that is all right.


EMPTY_PACKAGE = """
__init__.py app.py core/__init__.py core/run.py engine/__init__.py engine/writer.py
store/__init__.py store/codec.py store/port.py store/sqlite.py
"""


def package(folder: Path, files: dict[str, str]) -> Path:
    source = folder / OURS
    for path, text in (dict.fromkeys(EMPTY_PACKAGE.split(), "") | files).items():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_text(text)
    return source


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("core/bad.py", "import random\n", "core/bad.py:1: core may not import random (core is pure"),
        ("core/bad.py", "x = 1\nfrom time import time_ns\n", "core/bad.py:2: core may not import time "),
        ("core/bad.py", "import cronsim\n", "core may not import cronsim "),
        ("core/ids.py", "import os\nimport asyncio\n", "core/ids.py:2: core may not import asyncio "),
        ("core/bad.py", "def f():\n    import logging\n", "core/bad.py:2: core may not import logging "),
        ("core/bad.py", "from actionqueue import app\n", "core may not import actionqueue.app "),
        ("core/bad.py", "from actionqueue import ActionQueue\n", "core may not import actionqueue "),
        ("core/bad.py", "from ..store import port\n", "core may not import actionqueue.store.port "),
        ("core/bad.py", "from datetime import datetime\ndatetime.now()\n", "py:2: core may not call datetime.now()"),
        (
            "core/bad.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from actionqueue.engine import writer\n",
            "core/bad.py:3: core may not import actionqueue.engine.writer ",
        ),
        ("store/bad.py", "import actionqueue.engine.writer\n", "store may not import actionqueue.engine.writer "),
        ("engine/bad.py", "import actionqueue.store.sqlite\n", "engine may not import actionqueue.store.sqlite "),
        ("engine/bad.py", "from actionqueue.store import Store\n", "engine may not import actionqueue.store "),
        ("engine/bad.py", "import sqlite3\n", "engine may not import sqlite3 "),
        ("engine/bad.py", "import http.client\n", "engine may not import http.client "),
        ("executors/bad.py", "import actionqueue.engine.writer\n", "executors may not import actionqueue.engine."),
        ("app.py", "from actionqueue.server import serve\n", "app.py:1: top may not import actionqueue.server "),
        ("app.py", "import importlib\nimportlib.import_module('actionqueue.testing')\n", "app.py:2: top may not "),
        ("app.py", "import starlette\n", "top may not import starlette "),
        ("cli/bad.py", "from actionqueue.engine import writer\n", "cli may not import actionqueue.engine.writer "),
        ("__main__.py", "from actionqueue.engine import writer\n", "cli may not import actionqueue.engine.writer "),
        ("server/bad.py", "from actionqueue.testing import sim\n", "server may not import actionqueue.testing "),
        ("worker/bad.py", "from actionqueue.store import sqlite\n", "worker may not import actionqueue.store.sqlite "),
        ("plugins/__init__.py", "", "plugins/__init__.py:1: actionqueue.plugins is in no layer"),
    ],
)
def test_a_broken_rule_is_named_with_file_and_line(tmp_path: Path, path: str, text: str, expected: str) -> None:
    source = package(tmp_path, {path: text})

    violations = violations_in(source)

    assert len(violations) == 1
    assert expected in violations[0]
    assert violations[0].startswith("src/actionqueue/")


def test_what_the_architecture_allows_is_no_violation(tmp_path: Path) -> None:
    source = package(
        tmp_path,
        {
            "core/ids.py": "import time\nimport os\nimport secrets\n",
            "core/cron.py": "import cronsim\nfrom .run import X\n",
            "core/zones.py": "from zoneinfo import ZoneInfo\n",
            "core/spec.py": "from collections.abc import Mapping\nimport msgspec\nfrom actionqueue.core import run\n",
            "engine/timers.py": "import threading\nfrom actionqueue.store import codec, port\n",
            "store/postgres.py": "import psycopg\nfrom actionqueue.core.run import X\n",
            "app.py": "from actionqueue.engine import writer\nfrom actionqueue.store import sqlite\n",
            "cli/main.py": "from actionqueue import ActionQueue\nfrom actionqueue.core import run\n",
            "__main__.py": "from actionqueue.cli import main\n",
            "testing/faults.py": "import pytest\nfrom actionqueue.store import sqlite\n",
        },
    )

    violations = violations_in(source)

    assert violations == []


def test_no_layer_but_testing_itself_may_import_testing() -> None:
    importers = [name for name, layer in LAYERS.items() if "testing" in layer.ours]

    assert importers == ["testing"]
