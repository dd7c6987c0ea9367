"""Generated parts of documents: what stands between ``<!-- generated: NAME … -->`` and ``<!-- end of NAME -->``.

Knows: the marks. Must not know: what is generated. ``run`` is the whole command line of a script that generates some.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

Sections = dict[str, Callable[[], str]]
"""What generates the body of a section, by the document's path from the root and the section's name: "docs/a.md#b"."""

_SECTION = re.compile(
    r"^<!-- generated: (?P<name>[\w-]+)[^\n]*-->\n(?P<body>.*?)^<!-- end of (?P=name) -->$", re.DOTALL | re.MULTILINE
)


def names_in(text: str) -> list[str]:
    """The names of the sections of a document."""
    return [match["name"] for match in _SECTION.finditer(text)]


def filled(text: str, name: str, body: str, command: str) -> str:
    """The document with that body in that section. Raises ``LookupError`` when it has no such section."""
    found = [match for match in _SECTION.finditer(text) if match["name"] == name]
    if len(found) != 1:
        raise LookupError(f"{len(found)} sections are named {name!r}; there must be one")
    head = f"<!-- generated: {name}, by `python -m {command}` (make generate); do not edit -->\n"
    section = f"{head}\n{body.strip()}\n\n<!-- end of {name} -->"
    return text[: found[0].start()] + section + text[found[0].end() :]


def outdated(sections: Sections, command: str) -> dict[Path, str]:
    """The documents whose sections are not what would be generated now, with what they should be."""
    texts: dict[Path, str] = {}
    for place, generate in sections.items():
        file, _, name = place.partition("#")
        path = ROOT / file
        text = texts.get(path) or path.read_text(encoding="utf-8")
        texts[path] = filled(text, name, generate(), command)
    return {path: text for path, text in texts.items() if text != path.read_text(encoding="utf-8")}


def run(sections: Sections, command: str, description: str) -> int:
    """Write the sections, or with ``--check`` say which are out of date; the exit code."""
    parser = argparse.ArgumentParser(prog=f"python -m {command}", description=description)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when something is out of date")
    is_check: bool = parser.parse_args().check
    stale = outdated(sections, command)
    for path, text in stale.items():
        print(f"{path.relative_to(ROOT)}: {'out of date' if is_check else 'written'}")
        if not is_check:
            path.write_text(text, encoding="utf-8")
    return 1 if stale and is_check else 0
