"""The source files to index: those of the standard library of this machine, or of another tree."""

from __future__ import annotations

import os
import platform
import sysconfig
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

LEFT_OUT = frozenset(("__pycache__", "site-packages", "dist-packages", "node_modules"))
"""Directories that are not of the tree but in it; so are those whose name begins with a dot."""


class NothingToIndex(Exception):
    """There is no source file; the message says where."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """Source files under a root, in order of their names."""

    root: Path
    title: str
    files: tuple[str, ...]
    """Relative to the root."""
    found: int
    """How many there are, those beyond the limit included."""

    def directories(self) -> dict[str, int]:
        """How many of the files are in each directory."""
        return Counter(os.path.dirname(file) or "." for file in self.files)  # noqa: PTH120 - thousands of texts

    def path(self, file: str) -> str:
        """The whole path of a file."""
        return os.path.join(self.root, file)  # noqa: PTH118 - thousands of texts


def read_tree(root: Path | None, *, limit: int) -> Tree:
    """The tree under ``root`` (None: the standard library), its first ``limit`` files (0: all).

    Raises ``NothingToIndex``.
    """
    if root is None:
        root = Path(sysconfig.get_path("stdlib"))
        title = f"the standard library of Python {platform.python_version()}"
    else:
        root = root.absolute()
        title = root.name or str(root)
    if not root.is_dir():
        raise NothingToIndex(f"{root} is not a directory; name one that has Python files with --files")
    files = sorted(_source_files(root))
    if not files:
        raise NothingToIndex(f"there is no Python file under {root}; name another directory with --files")
    return Tree(root=root, title=title, files=tuple(files[: limit or None]), found=len(files))


def _source_files(root: Path) -> list[str]:
    found: list[str] = []
    for folder, folders, names in os.walk(root):
        folders[:] = [each for each in folders if each not in LEFT_OUT and not each.startswith(".")]
        prefix = os.path.relpath(folder, root)
        prefix = "" if prefix == "." else prefix + os.sep
        found += [prefix + name for name in names if name.endswith(".py") and (prefix + name).isprintable()]
    return found


BROKEN_FILES = {
    "unfinished.py": "def unfinished(:\n    return 1\n",
    "indented.py": "if True:\nprint('not indented')\n",
}
"""For trees in which every file parses."""


def write_broken_files(folder: Path) -> list[str]:
    """Two files that do not parse; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in BROKEN_FILES.items():
        (folder / name).write_text(text)
    return [os.fspath(folder / name) for name in BROKEN_FILES]
