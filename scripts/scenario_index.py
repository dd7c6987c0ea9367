"""The index of acceptance scenarios: which test covers each, or why none does (yet).

The scenarios come from the catalogue of the original engine's behaviour (461 of its own, and a list of what it never
tested). ``tests/scenarios.toml`` lists them by family, with a reason for those that belong to a capability that does
not exist yet ("later: …") or are otherwise here on purpose ("different: …"). Tests name the ids they cover in their
docstrings, in any of these forms::

    retry_cap/01, 02 · retry_cap/01 to /05 · max_attempts#1-8 · max_attempts#1, #3
    section 5 number 40 · section 5, 23 and 24 · S5-40 · scenario 40

A scenario with a reason may be named by tests too: they show the part of it that does hold, or what is different.
This script writes ``docs/scenarios.md`` from both; with ``--check`` it only says whether that page is up to date.
Either way it fails when a scenario in scope is covered by no test, or a test names one that does not exist.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections import Counter, defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "scenarios.md"
FAMILIES = ROOT / "tests" / "scenarios.toml"
TESTS_SHOWN_MAX = 4

_ID = re.compile(
    r"(?P<name>[a-z_]+(?:\.[a-z_]+)?)(?P<separator>[/#])(?P<first>\d+)\b"
    r"(?P<more>(?:\s*(?:(?:-|–|to)\s*(?:(?P=name))?[/#]?\d+|(?:,|,?\s+and)\s*(?:[/#]\d+|\d\d))\b)*)"
)
_MORE = re.compile(r"(-|–|to|,|and)\s*[a-z_.]*[/#]?(\d+)")
_SECTION = re.compile(r"\b(?:section 5,? (?:numbers? )?|S5-|scenarios? )(\d[\d, –-]*(?:and \d+)?)", re.IGNORECASE)


def expected() -> dict[str, str]:
    """Every scenario id in the order of the catalogue, with the reason it needs no test here ("" when it does)."""
    listed = tomllib.loads(FAMILIES.read_text())
    found: dict[str, str] = {}
    for name, family in listed["family"].items():
        width = 2 if family["sep"] == "/" else 1
        for number in range(1, family["count"] + 1):
            reasons = family.get("reasons", {})
            found[f"{name}{family['sep']}{number:0{width}}"] = reasons.get(str(number), family.get("reason", ""))
    for number, reason in listed["missing"].items():
        found[f"section 5 number {number}"] = reason
    return found


def cited() -> dict[str, list[str]]:
    """The tests that name each id in their docstrings."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
                continue
            said = ast.get_docstring(node) or ""
            name = path.relative_to(ROOT).as_posix()
            if not isinstance(node, ast.Module):
                name += f"::{node.name}"
            for id in ids_in(said):
                if name not in found[id]:
                    found[id].append(name)
    return found


def ids_in(text: str) -> set[str]:
    """Scenario ids in a docstring; ranges and lists are spelt out.

    >>> sorted(ids_in("retry_cap/01 to /03, max_attempts#2, #4-6; S5-7"))[:3]
    ['max_attempts#2', 'max_attempts#4', 'max_attempts#5']
    """
    found: set[str] = set()
    for match in _ID.finditer(text):
        width = 2 if match["separator"] == "/" else 1
        for number in _spelt_out(int(match["first"]), match["more"]):
            found.add(f"{match['name']}{match['separator']}{number:0{width}}")
    for numbers in _SECTION.findall(text):
        for part in re.split(r",|and", numbers):
            ends = [int(each) for each in re.split(r"[–-]", part.strip()) if each.strip().isdigit()]
            if ends:
                found.update(f"section 5 number {number}" for number in range(ends[0], ends[-1] + 1))
    return found


def _spelt_out(first: int, more: str) -> list[int]:
    numbers = [first]
    for how, number in _MORE.findall(more):
        start = int(number) if how in (",", "and") else numbers[-1] + 1
        numbers += range(start, int(number) + 1)
    return numbers


def kind_of(reason: str, tests: list[str]) -> str:
    """Where a scenario stands: covered, later, different, or open."""
    if reason:
        return reason.partition(":")[0]
    return "covered" if tests else "open"


def counts(wanted: dict[str, str], tests: dict[str, list[str]]) -> Counter[str]:
    """How many scenarios stand where."""
    return Counter(kind_of(reason, tests.get(id, [])) for id, reason in wanted.items())


def page(wanted: dict[str, str], tests: dict[str, list[str]]) -> str:
    """The index as Markdown."""
    count = counts(wanted, tests)
    lines = [
        "# Scenario index",
        "",
        "Which test covers each acceptance scenario, or why none does. Written by `scripts/scenario_index.py` from",
        "`tests/scenarios.toml` and the docstrings of the tests.",
        "",
        f"Of {len(wanted)} scenarios {count['covered']} are covered, {count['later']} belong to a capability that",
        f"comes later, and {count['different']} are different here on purpose. A test beside a reason shows the part",
        "that holds, or the difference.",
        "",
        "| scenario | covered by, or why not |",
        "|---|---|",
    ]
    lines += [f"| {id} | {_cell(reason, tests.get(id, []))} |" for id, reason in wanted.items()]
    return "\n".join(lines) + "\n"


def _cell(reason: str, tests: list[str]) -> str:
    covering = ", ".join(f"`{test.removeprefix('tests/')}`" for test in tests[:TESTS_SHOWN_MAX])
    if len(tests) > TESTS_SHOWN_MAX:
        covering += f" and {len(tests) - TESTS_SHOWN_MAX} more"
    if reason and covering:
        return f"{reason} ({covering})"
    return covering or reason or "NOT COVERED"


def problems(wanted: dict[str, str], tests: dict[str, list[str]]) -> list[str]:
    """What is wrong with the index, as sentences."""
    found = [f"no test covers {id}" for id, reason in wanted.items() if kind_of(reason, tests.get(id, [])) == "open"]
    found += [
        f"the reason of {id} is neither 'later: …' nor 'different: …': {reason!r}"
        for id, reason in wanted.items()
        if reason and not re.fullmatch(r"(later|different): .{4,}", reason)
    ]
    found += [f"{', '.join(tests[id])} names {id}, which does not exist" for id in sorted(tests) if id not in wanted]
    return found


def main() -> int:
    """Write the page, or check it."""
    wanted, tests = expected(), cited()
    text = page(wanted, tests)
    found = problems(wanted, tests)
    if "--check" not in sys.argv:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(text)
    elif not PAGE.exists() or PAGE.read_text() != text:
        found.append("docs/scenarios.md is not up to date: run python scripts/scenario_index.py")
    for problem in found:
        print(problem)
    print(", ".join(f"{count} {kind}" for kind, count in sorted(counts(wanted, tests).items())))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
