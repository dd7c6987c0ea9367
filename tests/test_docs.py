"""The documentation against the code, both ways: what is said exists, and what exists is said.

Programs and commands in it run (``docs_programs`` says how they are marked), its generated parts are up to date, its
tables of settings, commands, errors, limits and environment variables are complete, and every link leads somewhere.
"""

from __future__ import annotations

import ast
import asyncio
import builtins
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from actionqueue import ActionQueue, RunState, public, reasons
from actionqueue.core import errors
from actionqueue.core.errors import ActionQueueError
from actionqueue.settings import SLOTS_MAX
from actionqueue.testing.__main__ import make_parser as make_testing_parser
from scripts import check_docs, reference, sections, state_diagram
from tests.docs_programs import ROOT, Block, Reader, blocks_of, documents

PAGES = {path.name: path for path in documents()}
COMPILES = ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT


def text_of(name: str) -> str:
    return PAGES[name].read_text(encoding="utf-8")


def words_in_code(text: str) -> set[str]:
    """Every word that stands in code of a document."""
    code = re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL)
    return {word for part in code for word in re.findall(r"[\w.-]+", part)}


# --- programs -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [path for path in documents() if any(block.mark == "run" for block in blocks_of(path))],
    ids=lambda path: path.name,
)
def test_doing_what_a_document_says_gives_what_it_says(path: Path, tmp_path: Path) -> None:
    reader = Reader(tmp_path / "reader")
    printed = ""
    try:
        for block in blocks_of(path):
            match block.mark:
                case "file":
                    reader.save(block)
                case "run":
                    printed = reader.run(block)
                case "prints":
                    assert printed.splitlines() == block.body.splitlines(), f"line {block.line}"
                case _:
                    continue
    finally:
        reader.leave()


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_every_python_block_is_python(path: Path) -> None:
    for block in blocks_of(path):
        if block.language == "python":
            compile(block.body, f"{path}:{block.line}", "exec", flags=COMPILES)


def test_links_lead_somewhere() -> None:
    for path in check_docs.documents():
        prose, blocks = check_docs.split(path)
        assert list(check_docs.broken_links(path, prose)) == []
        assert list(check_docs.broken_examples(path, blocks)) == []


# --- generated parts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "command"),
    [(state_diagram.SECTIONS, state_diagram.COMMAND), (reference.SECTIONS, reference.COMMAND)],
    ids=["state_diagram", "reference"],
)
def test_generated_parts_are_up_to_date(made: sections.Sections, command: str) -> None:
    stale = sections.outdated(made, command)
    assert not stale, f"python -m {command} writes {[str(path.relative_to(ROOT)) for path in stale]}"


def test_every_generated_part_is_generated() -> None:
    made = state_diagram.SECTIONS | reference.SECTIONS
    found = {
        f"{path.relative_to(ROOT).as_posix()}#{name}"
        for path in documents()
        for name in sections.names_in(path.read_text(encoding="utf-8"))
    }
    assert found == set(made)


def test_the_diagram_has_every_edge_of_the_table_and_no_other() -> None:
    edges = set(re.findall(r"^    (\w+) --> (\w+)$", state_diagram.mermaid(), re.MULTILINE))
    names = {state: state_diagram.name(state) for state in RunState}
    assert edges == {(names[before], names[after]) for before in RunState for after in RunState.transitions()[before]}


# --- names --------------------------------------------------------------------------------------------------------


def test_every_public_name_is_in_the_reference() -> None:
    grouped = [name for group in reference.GROUPS.values() for name in group]
    errors_told = {kind.__name__ for kind in reference.error_classes()}
    assert sorted(grouped) == sorted(set(public.__all__) - errors_told - {"__version__"})
    page = text_of("reference.md")
    assert "`actionqueue.__version__`" in page
    for name in set(public.__all__) - {"__version__"}:
        assert f"\n#### {name}\n" in page or f"\n| `{name}` | `" in page, name


def test_members_left_out_of_the_reference_exist() -> None:
    for name, members in reference.PARTS_OF_THEIR_OWN.items():
        kind = getattr(public, name)
        there = set(dir(kind)) | {"memory", "sent", "settings"}  # set when constructed
        assert members <= there, name


def test_every_public_class_function_and_method_has_a_docstring() -> None:
    for name in public.__all__:
        value = getattr(public, name)
        if not callable(value):
            continue
        assert inspect.getdoc(value), name
        if isinstance(value, type):
            for member in reference.members_of(name, value):
                assert inspect.getdoc(inspect.getattr_static(value, member)), f"{name}.{member}"


def test_every_attribute_the_documents_use_of_a_known_object_exists() -> None:
    """``queue.…``, ``ctx.…``, ``job.…`` and ``task.…`` in code, wherever they stand."""
    kinds = {"queue": ActionQueue, "ctx": public.Context, "job": public.TaskHandle, "handle": public.TaskHandle}
    for path in documents():
        for block in re.findall(r"```python.*?```|`[^`\n]+`", path.read_text(encoding="utf-8"), re.DOTALL):
            for name, attribute in re.findall(r"\b(queue|ctx|job|handle)\.([a-z]\w*)", block):
                assert hasattr(kinds[name], attribute), f"{path.name}: {name}.{attribute}"


# --- settings -----------------------------------------------------------------------------------------------------


def settings_told(heading: str) -> dict[str, str]:
    """Name and default of each row of the table below a heading of the reference."""
    below = text_of("reference.md").partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", below, re.MULTILINE))


def defaults_of(function: Any) -> dict[str, Any]:
    return {
        parameter.name: parameter.default
        for parameter in inspect.signature(function).parameters.values()
        if parameter.name not in ("self", "function")
    }


@pytest.mark.parametrize(
    ("heading", "function"),
    [
        ("Settings of a queue", ActionQueue.__init__),
        ("Options of a task", ActionQueue.task),
        ("Options of a submission", public.Task.options),
    ],
    ids=["queue", "task", "submission"],
)
def test_every_setting_is_told_with_its_default(heading: str, function: Any) -> None:
    told, there = settings_told(heading), defaults_of(function)
    assert list(told) == list(there)
    for name, default in there.items():
        if default is inspect.Parameter.empty:
            assert told[name] == "required", name
        elif default is not None:
            assert told[name].startswith(f"`{default!r}`".replace("'", '"')), name


# --- commands -----------------------------------------------------------------------------------------------------


def commands_in(block: Block) -> Iterator[list[str]]:
    """The command lines of a shell block, without their comments, redirections and variables set before them."""
    for line in block.body.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        cut = next((n for n, word in enumerate(words) if re.match(r"^(\d?>|[|&;<])", word)), len(words))
        if words[:cut]:
            yield words[:cut]


KNOWN_PROGRAMS = {
    "cd", "cp", "curl", "export", "git", "gunicorn", "kill", "journalctl", "pip", "python", "sqlite3", "systemctl",
    "uvicorn", "docker", "HYPOTHESIS_PROFILE=explore",
}  # fmt: skip


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_every_command_in_a_document_is_valid(path: Path) -> None:
    """Commands of ours are parsed, targets of make and files of Python are looked for."""
    parsers = reference.commands()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for block in blocks_of(path):
        if block.language not in ("sh", ""):
            continue
        for words in commands_in(block):
            where = f"{path.name}:{block.line}: {' '.join(words)}"
            if words[0] == "actionqueue":
                if words[1] == "demo":
                    parsers["demo"].parse_args(words[2:])
                elif words[1] != "--version":
                    parsers[""].parse_args(words[1:])
            elif words[0] == "make":
                assert words[1] in targets, where
            elif words[0] == "python" and words[1] == "-m":
                if words[2] == "actionqueue.testing":
                    make_testing_parser().parse_args(words[3:])
                else:
                    assert words[2] in ("actionqueue", "scripts.reference", "scripts.state_diagram", "pytest"), where
            elif words[0] == "python" and words[1].startswith("examples/"):
                assert (ROOT / words[1]).exists(), where
            elif block.language == "sh":
                assert words[0] in KNOWN_PROGRAMS, where


def test_commands_named_in_prose_exist() -> None:
    """``actionqueue WORD --option`` in code within a sentence."""
    parsers = reference.commands()
    for path in documents():
        for said in re.findall(r"`actionqueue ([^`]+)`", path.read_text(encoding="utf-8")):
            words = said.split()
            assert words[0] in parsers or words[0].startswith("-"), f"{path.name}: {said}"
            options = reference.options_of(parsers.get(words[0], parsers[""])) | {"--help"}
            given = {word for word in words[1:] if word.startswith("--")}
            assert given <= options, f"{path.name}: {said}"


def test_every_command_and_option_is_in_the_reference_and_no_other() -> None:
    below = text_of("reference.md").partition("## Command line\n")[2].partition("\n## ")[0]
    parsers = reference.commands()
    assert re.findall(r"^### actionqueue (\w+)$", below, re.MULTILINE) == [name for name in parsers if name]
    shared = reference.options_of(parsers[""])
    for part in below.split("\n### ")[1:]:
        name = part.split()[1]
        told = {option for row in re.findall(r"^\| `([^`]*)`", part, re.MULTILINE) for option in _options(row)}
        assert told | shared == reference.options_of(parsers[name]) | shared, name


def _options(row: str) -> list[str]:
    return re.findall(r"(?<![\w-])(--[\w-]+)", row)


# --- errors, limits, environment ------------------------------------------------------------------------------------


def test_every_error_is_told_with_its_code_and_no_other() -> None:
    told = dict(re.findall(r"^\| `(\w+)` \| `(\w+)` \| `\w+` \|", text_of("reference.md"), re.MULTILINE))
    there = {
        name: kind.code
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, ActionQueueError)
    }
    assert told == there
    assert len(set(there.values())) == len(there)


def test_errors_named_anywhere_exist() -> None:
    """A word in code that begins as our errors do is one, or one of Python's, or a reason why a run is not running."""
    known = {kind.__name__ for kind in reference.error_classes()} | set(dir(builtins)) | set(reasons.__all__)
    for path in documents():
        for word in words_in_code(path.read_text(encoding="utf-8")):
            if re.fullmatch(r"(?:Store|Invalid|Unknown|Not|No|Idempotency|Already|Attempt|Commit)[A-Z]\w+", word):
                assert word in known or word in ("AttemptId", "AttemptRecord"), f"{path.name}: {word}"


def test_every_limit_of_a_submission_is_told() -> None:
    """What the modules of these limits bound by a constant is in the table, or is not of a user's concern."""
    told = {name for _, names in reference.LIMITS for name in names}
    internal = {"PRIORITY_MAX", "DURATION_US_MAX"}
    for module, _ in reference.LIMITS[:6]:
        source = Path(str(inspect.getsourcefile(__import__(module, fromlist=["_"])))).read_text()
        constants = set(re.findall(r"^(?:[A-Z_]+, )?([A-Z][A-Z_]*_MAX)\b", source, re.MULTILINE))
        assert constants - internal <= told, module
    assert f"{SLOTS_MAX:,}" in text_of("production.md")


def test_every_environment_variable_is_told() -> None:
    """Those the package reads, but for what it hands to its own worker processes."""
    read: set[str] = set()
    for path in (ROOT / "src").rglob("*.py"):
        read |= set(re.findall(r"environ(?:\.get\(|\[)\"([A-Z_]+)\"", path.read_text(encoding="utf-8")))
    below = text_of("reference.md").partition("## Environment variables\n")[2].partition("\n## ")[0]
    told = {name for row in re.findall(r"^\| (`.*?) \|", below, re.MULTILINE) for name in re.findall(r"[A-Z_]+", row)}
    assert told == read


def test_every_field_of_a_table_is_told() -> None:
    """The generated layout names each table of the schema, and the page says what each is for."""
    page = text_of("internals.md")
    for table in reference.schema():
        assert len(re.findall(rf"^\| `{table}` \|", page, re.MULTILINE)) == 2, table


# --- what the documents promise of the first program ----------------------------------------------------------------


def test_the_first_program_of_readme_and_quickstart_is_the_example() -> None:
    example = (ROOT / "examples" / "hello.py").read_text()
    code = re.sub(r'^ *""".*?"""\n', "", example, flags=re.DOTALL | re.MULTILINE)
    wanted = [line for line in code.splitlines() if line.strip()]
    for name in ("README.md", "quickstart.md"):
        first = next(block for block in blocks_of(PAGES[name]) if block.language == "python")
        assert [line for line in first.body.splitlines() if line.strip()] == wanted, name


async def _run_cell(source: str, namespace: dict[str, Any]) -> None:
    """As a notebook does: in a running event loop, which is not the queue's."""
    exec(compile(source, "<cell>", "exec"), namespace)


def test_the_first_program_runs_twice_in_one_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    source = next(block for block in blocks_of(PAGES["README.md"]) if block.language == "python").body
    namespace: dict[str, Any] = {"__name__": "__main__"}

    async def cells() -> None:
        for _ in range(2):
            await _run_cell(source, namespace)

    asyncio.run(cells())

    assert capsys.readouterr().out.splitlines() == ["hello world", "hello world"]


def test_records_of_the_reference_are_structs_with_the_fields_it_lists() -> None:
    page = text_of("reference.md")
    for name in reference.GROUPS["Records"]:
        kind = getattr(public, name)
        if not issubclass(kind, msgspec.Struct):
            continue
        told = page.partition(f"#### {name}\n")[2].partition("\n#### ")[0]
        assert re.findall(r"`(\w+): ", told) == list(kind.__struct_fields__), name
