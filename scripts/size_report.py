#!/usr/bin/env python3
"""Report the sizes of files and functions: the drift towards files that nobody can hold in their head.

A file counts its lines; a function its own lines without its docstring. It reports; with ``--strict`` it also fails
when a file or a function is over its limit.
"""

import argparse
import ast
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "actionqueue"

FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 70
FUNCTION_LINES_LONG = 35


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """One function or method, nested ones included."""

    where: str
    name: str
    lines: int


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """One module and what it holds."""

    path: str
    package: str
    lines: int
    functions: tuple[Function, ...]


def docstring_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many lines of the function its docstring takes."""
    if ast.get_docstring(node, clean=False) is None:
        return 0
    first = node.body[0]
    return (first.end_lineno or first.lineno) - first.lineno + 1


def read_file(path: Path) -> File:
    """Measure one module."""
    text = path.read_text(encoding="utf-8")
    shown = path.relative_to(ROOT).as_posix()
    within = path.relative_to(SOURCE)
    functions = tuple(
        Function(
            where=f"{shown}:{node.lineno}",
            name=node.name,
            lines=(node.end_lineno or node.lineno) - node.lineno + 1 - docstring_lines(node),
        )
        for node in ast.walk(ast.parse(text, filename=shown))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    return File(
        path=shown,
        package=within.parts[0] if len(within.parts) > 1 else "(top level)",
        lines=len(text.splitlines()),
        functions=functions,
    )


def print_packages(files: list[File]) -> None:
    """Print one line for each package, largest first, and the total."""
    by_package: dict[str, list[File]] = defaultdict(list)
    for file in files:
        by_package[file.package].append(file)
    rows = sorted(by_package.items(), key=lambda item: -sum(file.lines for file in item[1]))
    print_row("package", "files", "lines", "median file", "functions", f"over {FUNCTION_LINES_LONG}")
    for name, group in [*rows, ("total", files)]:
        sizes = [function.lines for file in group for function in file.functions]
        long = sum(size > FUNCTION_LINES_LONG for size in sizes)
        share = f"{100 * long / len(sizes):.1f} %" if sizes else "-"
        lines = [file.lines for file in group]
        print_row(name, str(len(lines)), str(sum(lines)), f"{median(lines):.0f}", str(len(sizes)), share)


def print_row(*cells: str) -> None:
    """Print one line of the table."""
    print(f"{cells[0]:<14}" + "".join(f"{cell:>13}" for cell in cells[1:]))


def print_oversized(files: list[File]) -> int:
    """Print what is over its limit, and return how many that are."""
    long_files = [file for file in files if file.lines > FILE_LINES_MAX]
    functions = [function for file in files for function in file.functions]
    long_functions = [function for function in functions if function.lines > FUNCTION_LINES_MAX]
    for file in sorted(long_files, key=lambda file: -file.lines):
        print(f"{file.path}: {file.lines} lines, over {FILE_LINES_MAX}")
    for function in sorted(long_functions, key=lambda function: -function.lines):
        print(f"{function.where}: {function.name} has {function.lines} lines, over {FUNCTION_LINES_MAX}")
    return len(long_files) + len(long_functions)


def main() -> int:
    """Run the report."""
    parser = argparse.ArgumentParser(description="Report the sizes of files and functions under src/.")
    parser.add_argument("--strict", action="store_true", help="exit 1 when a file or a function is over its limit")
    strict: bool = parser.parse_args().strict
    files = [read_file(path) for path in sorted(SOURCE.rglob("*.py"))]
    if not files:
        print(f"no modules under {SOURCE}", file=sys.stderr)
        return 1
    print_packages(files)
    oversized = print_oversized(files)
    return 1 if strict and oversized else 0


if __name__ == "__main__":
    sys.exit(main())
