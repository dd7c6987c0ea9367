#!/usr/bin/env python3
"""Check the documentation: every relative link leads somewhere, every Python example compiles.

It reads the Markdown files of the repository's root and ``docs/``. Links to the web are not followed.
"""

import ast
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parent.parent

FENCE = re.compile(r"^(?P<indent> *)(?P<mark>```+|~~~+)(?P<language>[\w-]*)")
HEADING = re.compile(r"^#{1,6}\s+(?P<title>.+?)\s*#*$")
INLINE_CODE = re.compile(r"`+[^`]*`+")
LINK = re.compile(r"\]\((?P<target>[^()\s]+(?:\([^()\s]*\)[^()\s]*)*)(?:\s+\"[^\"]*\")?\)")
MARKUP = re.compile(r"\[([^\]]*)\]\([^)]*\)")
WEB = re.compile(r"^[a-z][a-z0-9+.-]*:", re.IGNORECASE)


def documents() -> list[Path]:
    """The Markdown files that readers see."""
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def split(path: Path) -> tuple[list[tuple[int, str]], list[tuple[int, str, str]]]:
    """Part a document into its prose lines and its code blocks, as (line, text) and (line, language, source)."""
    prose: list[tuple[int, str]] = []
    blocks: list[tuple[int, str, str]] = []
    lines = iter(enumerate(path.read_text(encoding="utf-8").splitlines(), start=1))
    for number, line in lines:
        fence = FENCE.match(line)
        if fence is None:
            prose.append((number, line))
            continue
        body: list[str] = []
        for _, inner in lines:
            if inner.strip() == fence["mark"]:
                break
            body.append(inner)
        blocks.append((number, fence["language"], textwrap.dedent("\n".join(body))))
    return prose, blocks


def anchors(path: Path) -> set[str]:
    """The names under which a document's headings can be linked to, as GitHub makes them."""
    names: set[str] = set()
    for _, line in split(path)[0]:
        heading = HEADING.match(line)
        if heading is None:
            continue
        title = MARKUP.sub(r"\1", heading["title"]).lower()
        name = re.sub(r"[^\w\- ]", "", title).replace(" ", "-")
        repeats = sum(1 for known in names if re.fullmatch(re.escape(name) + r"(-\d+)?", known))
        names.add(f"{name}-{repeats}" if repeats else name)
    return names


def broken_links(path: Path, prose: list[tuple[int, str]]) -> Iterator[str]:
    """Each link of the document that leads nowhere."""
    for number, line in prose:
        for match in LINK.finditer(INLINE_CODE.sub("", line)):
            target = match["target"].strip("<>")
            if WEB.match(target):
                continue
            file, _, anchor = target.partition("#")
            there = (path.parent / unquote(file)).resolve() if file else path
            where = f"{path.relative_to(ROOT)}:{number}"
            if not there.exists():
                yield f"{where}: {target}: no such file"
            elif anchor and there.suffix == ".md" and unquote(anchor) not in anchors(there):
                yield f"{where}: {target}: no such heading in {there.name}"


def broken_examples(path: Path, blocks: list[tuple[int, str, str]]) -> Iterator[str]:
    """Each Python example of the document that is not Python."""
    for number, language, source in blocks:
        if language not in {"python", "py"}:
            continue
        try:
            compile(source, str(path), "exec", flags=ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        except SyntaxError as error:
            yield f"{path.relative_to(ROOT)}:{number + (error.lineno or 1)}: example does not compile: {error.msg}"


def main() -> int:
    """Check every document."""
    paths = documents()
    problems: list[str] = []
    examples = 0
    for path in paths:
        prose, blocks = split(path)
        examples += sum(language in {"python", "py"} for _, language, _ in blocks)
        problems += [*broken_links(path, prose), *broken_examples(path, blocks)]
    for problem in problems:
        print(problem)
    print(f"docs: {len(paths)} documents, {examples} Python examples, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
