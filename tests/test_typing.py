"""What users' type checkers say, mypy and pyright: right calls pass and have the right types, wrong ones are refused.

The files are in ``tests/typing``: ``good.py`` must pass whole, ``bad.py`` must be refused on exactly its marked lines.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = ROOT / "tests" / "typing"
MARK = "  # error"

Checker = Callable[[list[Path], Path], dict[str, set[int]]]


def mypy(paths: list[Path], scratch: Path) -> dict[str, set[int]]:
    """The lines mypy refuses, strict as the project is, by file name."""
    del scratch
    said = _run("mypy", "--no-pretty", "--no-error-summary", *map(str, paths))
    lines: dict[str, set[int]] = {path.name: set() for path in paths}
    for file, line in re.findall(r"^(.+?):(\d+): error", said, re.MULTILINE):
        lines.setdefault(Path(file).name, set()).add(int(line))
    return lines


def pyright(paths: list[Path], scratch: Path) -> dict[str, set[int]]:
    """The lines pyright refuses, strict as the project is, by file name."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pyright"]
    places = ("include", "exclude", "venv", "venvPath")
    strict = {name: value for name, value in settings.items() if name not in places}
    (scratch / "pyrightconfig.json").write_text(json.dumps(strict | {"extraPaths": [str(ROOT / "src")]}))
    for path in paths:  # the project's own configuration leaves bad.py out
        shutil.copy(path, scratch)
    said = _run("pyright", "--pythonpath", sys.executable, "--outputjson", "--project", str(scratch))
    lines: dict[str, set[int]] = {path.name: set() for path in paths}
    for each in json.loads(said[said.index("{") :])["generalDiagnostics"]:
        if each["severity"] == "error":
            lines.setdefault(Path(each["file"]).name, set()).add(each["range"]["start"]["line"] + 1)
    return lines


def _run(module: str, *arguments: str) -> str:
    environment = {**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1", "MYPY_FORCE_COLOR": "0"}
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode in (0, 1), f"{module} did not run: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("checker", [mypy, pyright])
def test_right_calls_pass_and_wrong_ones_are_refused_line_by_line(checker: Checker, tmp_path: Path) -> None:
    good, bad = FILES / "good.py", FILES / "bad.py"
    marked = {n for n, line in enumerate(bad.read_text().splitlines(), start=1) if line.endswith(MARK)}

    refused = checker([good, bad], tmp_path)

    assert len(marked) > 40
    assert refused == {"good.py": set(), "bad.py": marked}
