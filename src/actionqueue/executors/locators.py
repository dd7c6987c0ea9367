"""``module:qualname``: which handlers a worker process can import, and how it does.

A child has its own interpreter, so a handler must be reachable by name: a function of a module, or of the main script,
which the child then runs under the name ``__mp_main__`` (what multiprocessing's spawn does), so that code below
``if __name__ == "__main__":`` stays the parent's. It is run only when a handler of it is asked for.
"""

from __future__ import annotations

import contextvars
import importlib
import importlib.util
import io
import sys
import types
from pathlib import Path
from typing import Any

from actionqueue.executors.port import Runnable

MAIN = "__main__"
MAIN_IN_CHILD = "__mp_main__"

importing_main: contextvars.ContextVar[bool] = contextvars.ContextVar("actionqueue_importing_main", default=False)
"""True while a worker process runs the main script for its handlers; running an engine then is a mistake of the script
(no ``if __name__ == "__main__":``)."""


class NotImportable(Exception):
    """A locator leads to no handler; the message says what to do."""


def main_module() -> tuple[str | None, str | None]:
    """How a child finds this process's main module: its name (``python -m``) or its path; neither for a session."""
    main = sys.modules.get(MAIN)
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return spec.name, None
    path = getattr(main, "__file__", None)
    return None, str(Path(path).absolute()) if path is not None and Path(path).is_file() else None


def check_importable(locator: str, *, bound: bool = False) -> str | None:
    """Why a worker process could not find the handler, or None.

    At declaration the module is still being imported, so only the name is judged; with ``bound`` (at start) it is also
    looked up.
    """
    module_name, colon, qualname = locator.partition(":")
    if not (colon and module_name and qualname):
        return f"{locator!r} is not of the form module:qualname"
    if "<locals>" in qualname or "<lambda>" in qualname:
        return (
            f"{qualname} is defined inside a function (or is a lambda); a worker process imports handlers by name: "
            "define it at the top level of a module"
        )
    problem = _check_main(qualname) if module_name == MAIN else None
    if problem is None and bound:
        problem = _check_bound(module_name, qualname)
    return problem


def _check_main(qualname: str) -> str | None:
    name, path = main_module()
    if name is not None and (name == MAIN or name.endswith(f".{MAIN}")):
        return f"{qualname} is defined in a package's __main__.py, which cannot be imported twice: move it to a module"
    if name is None and path is None:
        return (
            f"{qualname} is defined in an interactive session; a worker process imports handlers from files: "
            "move it to a module"
        )
    return None


def _check_bound(module_name: str, qualname: str) -> str | None:
    top = module_name.partition(".")[0]
    if module_name != MAIN and not any(_finds(finder, top) for finder in sys.meta_path):
        return f"the module {module_name} is on no path that a worker process has: install it, or add it to sys.path"
    try:
        find(importlib.import_module(module_name), module_name, qualname)
    except NotImportable as problem:
        return str(problem)
    except Exception as error:
        return f"importing {module_name} fails: {type(error).__name__}: {error}"
    return None


def _finds(finder: Any, top: str) -> bool:
    find_spec = getattr(finder, "find_spec", None)
    return find_spec is not None and find_spec(top, None) is not None


def find(module: types.ModuleType, module_name: str, qualname: str) -> Runnable:
    """The handler at ``qualname``: the object there carries it as its attribute ``runnable``."""
    found: Any = module
    for part in qualname.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise NotImportable(
                f"{module_name} has no {qualname}; a handler for worker processes keeps the name of its function"
            ) from None
    runnable = getattr(found, "runnable", None)
    if runnable is None:
        raise NotImportable(
            f"{module_name}:{qualname} is a {type(found).__name__}, not a task; a handler for worker processes is "
            "decorated where it is defined, and keeps the name of its function"
        )
    handler: Runnable = runnable
    return handler


class Resolver:
    """In a child: from locators to handlers, each found once."""

    def __init__(self, main_name: str | None, main_path: str | None) -> None:
        self._main_name = main_name
        self._main_path = main_path
        self._found: dict[str, Runnable] = {}

    def resolve(self, locator: str, name: str) -> Runnable:
        """The handler; raises ``NotImportable``, or whatever importing its module raises."""
        runnable = self._found.get(locator)
        if runnable is None:
            module_name, _, qualname = locator.partition(":")
            module = self._main() if module_name == MAIN else importlib.import_module(module_name)
            runnable = self._found[locator] = find(module, module_name, qualname)
        if runnable.name != name:
            raise NotImportable(
                f"{locator} is the handler {runnable.name!r} here, and {name!r} was asked for; "
                "a handler for worker processes is decorated once, where it is defined"
            )
        return runnable

    def _main(self) -> types.ModuleType:
        module = sys.modules.get(MAIN_IN_CHILD)
        if module is not None:
            return module
        module = types.ModuleType(MAIN_IN_CHILD)
        if self._main_name is not None:
            code = _code_of_module(self._main_name, module)
        elif self._main_path is not None:
            module.__file__ = self._main_path
            with io.open_code(self._main_path) as file:
                code = compile(file.read(), self._main_path, "exec")
        else:
            raise NotImportable("the handler is defined in an interactive session: move it to a module")
        before = sys.modules[MAIN]
        sys.modules[MAIN] = sys.modules[MAIN_IN_CHILD] = module
        importing = importing_main.set(True)
        try:
            exec(code, module.__dict__)  # the user's own main module
        except BaseException:
            sys.modules[MAIN] = before
            del sys.modules[MAIN_IN_CHILD]
            raise
        finally:
            importing_main.reset(importing)
        return module


def _code_of_module(name: str, module: types.ModuleType) -> types.CodeType:
    spec = importlib.util.find_spec(name)
    get_code = getattr(None if spec is None else spec.loader, "get_code", None)
    code = None if get_code is None else get_code(name)
    if spec is None or code is None:
        raise NotImportable(f"the main module {name} cannot be found by a worker process")
    module.__spec__, module.__package__, module.__file__ = spec, spec.parent, spec.origin
    found: types.CodeType = code
    return found
