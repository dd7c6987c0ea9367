"""The examples in docstrings, run as they stand."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import actionqueue

MODULES = sorted(
    info.name
    for info in pkgutil.walk_packages(actionqueue.__path__, "actionqueue.")
    if not info.name.endswith(".__main__")
)


def with_examples() -> list[str]:
    """The modules that have any, found in their text so that collecting tests imports none of them."""
    root = Path(actionqueue.__path__[0]).parent
    found = []
    for name in ["actionqueue", *MODULES]:
        path = root / name.replace(".", "/")
        source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if ">>> " in source.read_text(encoding="utf-8"):
            found.append(name)
    return found


@pytest.mark.parametrize("name", with_examples())
def test_examples_in_docstrings_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried
    assert not failed
