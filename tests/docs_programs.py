"""The code in documents, as its marks say: which blocks are files, which run, and what they print.

A mark is an HTML comment on the line before a block::

    <!-- file: jobs.py -->    the block is saved under that name, for the blocks after it
    <!-- run: main.py -->     the same, and it runs as a program
    <!-- run -->              it runs in a shell; what it leaves in the background ends with the document
    <!-- prints -->           what the program before it has printed

The blocks of a document share one new directory. Python blocks without a mark must compile.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_S = 60.0

_BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>file|run|prints)(?:: (?P<name>\S+))? -->\n)?"
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<body>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)


class Block(NamedTuple):
    """One block of code."""

    line: int
    language: str
    body: str
    mark: str | None
    name: str | None


def documents() -> list[Path]:
    """Every document that users read."""
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def blocks_of(path: Path) -> Iterator[Block]:
    """The blocks of a document."""
    text = path.read_text(encoding="utf-8")
    for match in _BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("language")) + 1
        yield Block(line, match["language"], match["body"], match["mark"], match["name"])


class Reader:
    """Someone who does what a document says, in a new directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._groups: list[int] = []
        self._outside = tools = folder.parent / f"{folder.name}-tools"
        tools.mkdir()
        folder.mkdir()
        for name, command in (("actionqueue", "-m actionqueue"), ("python", "")):
            tool = tools / name
            tool.write_text(f'#!/bin/sh\nexec "{sys.executable}" {command} "$@"\n')
            tool.chmod(0o755)
        self._env = {
            **os.environ,
            "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(folder)]),
            "ACTIONQUEUE_STORE": "jobs.db",
        }

    def save(self, block: Block) -> None:
        """A file."""
        assert block.name is not None
        (self.folder / block.name).write_text(block.body)

    def run(self, block: Block) -> str:
        """A program, or commands; what it printed."""
        if block.name is not None:
            self.save(block)
            command = [sys.executable, block.name]
        else:
            command = ["bash", "-euo", "pipefail", "-c", block.body]
        said, log = self._outside / "stdout", self._outside / "stderr"
        # files, not pipes: a program in the background goes on writing when the shell that started it has ended
        with said.open("wb") as output, log.open("ab") as errors:
            process = subprocess.Popen(
                command, cwd=self.folder, env=self._env, stdout=output, stderr=errors, start_new_session=True
            )
        self._groups.append(process.pid)
        status = process.wait(PATIENCE_S)
        assert status == 0, f"line {block.line}: exit {status}\n{said.read_text()}\n{log.read_text()}"
        return said.read_text()

    def leave(self) -> None:
        """End what still runs."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for group in self._groups:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(group, number)
