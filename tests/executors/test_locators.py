"""Which handlers a worker process can import."""

from __future__ import annotations

import importlib.machinery
import sys
import types

import pytest

from actionqueue.executors.locators import check_importable


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A main module without file and name, as in an interactive session."""
    module = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", module)
    return module


@pytest.mark.parametrize(
    "locator",
    [
        "tests.executors.handlers:echo",
        "tests.executors.handlers:raises_unretryable",
        "tests.executors.handlers:vanished",
    ],
)
def test_a_handler_at_the_top_of_a_module_is_found(locator: str) -> None:
    assert check_importable(locator) is None
    assert check_importable(locator, bound=True) is None


@pytest.mark.parametrize(
    ("locator", "problem"),
    [
        ("handlers", "not of the form"),
        (":echo", "not of the form"),
        ("jobs:make.<locals>.handler", "inside a function"),
        ("jobs:<lambda>", "inside a function"),
    ],
)
def test_what_no_process_could_find_is_known_by_its_name(locator: str, problem: str) -> None:
    assert problem in (check_importable(locator) or "")


@pytest.mark.parametrize(
    ("locator", "problem"),
    [
        ("tests.executors.handlers:undecorated", "is a function, not a task"),
        ("tests.executors.handlers:nobody", "has no nobody"),
        ("tests.executors.raises_on_import:handler", "importing tests.executors.raises_on_import fails: RuntimeError"),
        ("no_such_package_anywhere.jobs:handler", "is on no path"),
    ],
)
def test_at_start_the_handler_is_looked_up(locator: str, problem: str) -> None:
    assert check_importable(locator) is None
    assert problem in (check_importable(locator, bound=True) or "")


def test_a_module_that_only_this_process_has_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "made_in_memory", types.ModuleType("made_in_memory"))

    assert "is on no path" in (check_importable("made_in_memory:handler", bound=True) or "")


def test_an_interactive_session_is_refused(main: types.ModuleType) -> None:
    assert "interactive session" in (check_importable("__main__:handler") or "")


def test_a_program_from_standard_input_is_refused(main: types.ModuleType) -> None:
    main.__file__ = "<stdin>"

    assert "interactive session" in (check_importable("__main__:handler") or "")


def test_a_script_is_fine(main: types.ModuleType) -> None:
    main.__file__ = __file__

    assert check_importable("__main__:handler") is None


@pytest.mark.parametrize(("name", "is_fine"), [("jobs.orders", True), ("jobs.__main__", False), ("__main__", False)])
def test_a_module_run_by_name_is_fine_but_a_package_is_not(main: types.ModuleType, name: str, is_fine: bool) -> None:
    main.__spec__ = importlib.machinery.ModuleSpec(name, None)

    problem = check_importable("__main__:handler")

    assert (problem is None) is is_fine
    assert is_fine or "move it to a module" in (problem or "")
