"""Write the generated parts of the documentation: names, commands, errors, limits, tables.

Everything comes from the code itself: signatures and first lines of docstrings, the command line's own parser, the tree
of errors, the constants and the texts below them, the schema. ``python -m scripts.reference`` writes what changed;
``--check`` says what is out of date, and so does a test.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from importlib.resources import files
from itertools import pairwise
from typing import Any

import msgspec

from actionqueue import public
from actionqueue.cli.parser import make_parser
from actionqueue.cli.running import exit_code_of
from actionqueue.core import rows
from actionqueue.core.errors import ActionQueueError
from actionqueue.demo.story import make_parser as make_demo_parser
from scripts.sections import Sections, run

COMMAND = "scripts.reference"

GROUPS: dict[str, tuple[str, ...]] = {
    "The queue": ("ActionQueue", "IdleSummary", "restore"),
    "Tasks": ("Task", "Call", "TaskHandle", "Batch"),
    "In a handler": ("Context", "CONTEXT", "TerminalFailure", "RetryAfter", "Snooze"),
    "Retries": ("Retry", "Backoff", "fixed", "exponential", "delays"),
    "Limits": ("Limit", "Rate"),
    "Records": (
        "RunRecord", "AttemptRecord", "ErrorRecord", "TaskRecord", "BatchRecord", "StateChange", "Progress", "Page",
        "Stats",
        "SlotsRecord", "EngineRecord", "Explanation", "LimitRecord", "ScheduleRecord", "SkipRecord", "Signal",
        "StepRecord", "Refusal",
        "PruneSummary", "VerifyReport", "Problem", "AuditReport", "TaskAudit",
    ),
    "Forecasts": (
        "Forecast", "ForecastEntry", "BacklogEstimate", "OverlapEstimate", "PeakEstimate", "DurationEstimate", "HeldRuns",
        "LoadEstimate", "ForecastDifference",
    ),
    "The low-level form": ("TaskSpec", "Once", "TaskConstraints", "TaskMetadata", "Repeat", "Cron"),
    "Ids": ("TaskId", "RunId", "AttemptId", "BatchId"),
    "The model of a run": ("RunInstance", "RunState"),
}  # fmt: skip
"""Every public name but the errors, which have a table of their own, and ``__version__``."""

PARTS_OF_THEIR_OWN: dict[str, frozenset[str]] = {
    "ActionQueue": frozenset(
        "adeclarations asker await_task blocks_loop cancel_submitted check_engine_present decision declarations "
        "declare exchange_session failure_hooks forget_waiter leave_to_parent line line_session memory newest_state "
        "open_session refuse_on_loop runs_of_task sent session settings submission_of_many submission_of_one".split()
    ),
    "Task": frozenset(
        "check_importable declaration declared declared_schedule problems runnable scheduled submission".split()
    ),
    "Call": frozenset(("scheduled", "submission")),
    "TaskHandle": frozenset(("blocks_loop", "decided")),
    "Batch": frozenset(("learn",)),
}
"""Members that the package's own parts need of each other: they may change, and users have no use for them."""

LIMITS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "actionqueue.core.spec",
        (
            "PAYLOAD_BYTES_MAX", "RESULT_BYTES_MAX", "NAME_CHARACTERS_MAX", "KEY_CHARACTERS_MAX", "TAGS_MAX",
            "TAG_CHARACTERS_MAX", "METADATA_BYTES_MAX", "DESCRIPTION_CHARACTERS_MAX", "SUBMIT_MANY_MAX",
            "DEPENDENCIES_MAX", "OUTPUTS_MAX", "PATH_STEPS_MAX",
        ),
    ),
    ("actionqueue.core.submission", ("LIVE_RUNS_MAX",)),
    ("actionqueue.core.retry", ("ATTEMPTS_MAX", "DELAY_US_MAX", "DELAYS_MAX")),
    ("actionqueue.task", ("MAX_LOST_MAX", "CONCURRENCY_MAX")),
    ("actionqueue.settings", ("SLOTS_MAX",)),
    (
        "actionqueue.core.needs",
        ("LIMITS_MAX", "LIMIT_KEY_CHARACTERS_MAX", "CAPACITY_MAX", "TOKENS_MAX", "PERIOD_US_MAX"),
    ),
    ("actionqueue.core.occurrences", ("CATCH_UP_RUNS_MAX", "QUEUED_MAX")),
    ("actionqueue.core.schedules", ("BACKFILL_RUNS_MAX",)),
    ("actionqueue.engine.engine", ("MAILBOX_POSTS_MAX", "TURN_EVENTS_MAX")),
    ("actionqueue.engine.outputs", ("JOINED_BYTES_MAX",)),
    ("actionqueue.engine.writer", ("PAYLOAD_CACHE_BYTES",)),
    ("actionqueue.store.inbox", ("INBOX_ROWS_MAX",)),
    ("actionqueue.filters", ("LIMIT_MAX",)),
    ("actionqueue.forecasting", ("HORIZON_US_MAX", "SAMPLES_MAX", "HANDLERS_MAX")),
    ("actionqueue.core.rehearsal", ("EVENTS_MAX",)),
    ("actionqueue.core.known", ("ENTRIES_MAX",)),
    (
        "actionqueue.executors.endings",
        ("ERROR_MESSAGE_CHARACTERS_MAX", "ERROR_KIND_CHARACTERS_MAX", "TRACEBACK_CHARACTERS_MAX"),
    ),
    ("actionqueue.executors.port", ("PROGRESS_MESSAGE_CHARACTERS_MAX",)),
    ("actionqueue.executors.frames", ("FRAME_BYTES_MAX",)),
    ("actionqueue.store.sqlite_upkeep", ("WAL_BYTES_SOFT", "WAL_BYTES_KEPT")),
)  # fmt: skip


PARAMETERS_SHOWN_MAX = 6
"""A call with more options is shown without them; they have a table of their own."""


# --- names ----------------------------------------------------------------------------------------------------------


def names() -> str:
    """Every public name with its signature and what it is."""
    lines: list[str] = []
    for group, members in GROUPS.items():
        lines += [f"### {group}", ""]
        for name in members:
            lines += [*_name(name, getattr(public, name)), ""]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))


def _name(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, type) and issubclass(value, msgspec.Struct) and name != "RunInstance":
        yield f"#### {name}"
        yield f"\n{described(value)}\n"
        yield "Fields: " + ", ".join(_fields(value)) + "."
        return
    if isinstance(value, type):
        yield f"#### {name}"
        yield f"\n{described(value)}\n"
        if name == "RunState":
            yield "Members: " + ", ".join(f"`{member.name}`" for member in value) + ".\n"  # type: ignore[attr-defined]
        yield from _members(name, value)
        return
    yield f"#### {name}"
    if callable(value) and hasattr(value, "__code__"):
        yield f"\n`{name}{signature(value)}`: {described(value)}"
    else:
        yield f"\n{_CONSTANTS[name]}"


_CONSTANTS = {
    "CONTEXT": "The default of an injected parameter: written `ctx: Context = CONTEXT`, type checkers let calls omit it.",
    "Backoff": "The type of what `fixed`, `exponential` and `delays` give.",
}


def _fields(struct: type[msgspec.Struct]) -> Iterator[str]:
    for field in msgspec.structs.fields(struct):
        shown = _short(_annotation_of(struct, field.name))
        default = ""
        if field.default is not msgspec.NODEFAULT:
            default = f" = {field.default!r}" if not isinstance(field.default, msgspec.Struct) else " = …"
        elif field.default_factory is not msgspec.NODEFAULT:
            default = " = …"
        yield f"`{field.name}: {shown}{default}`"


def _annotation_of(struct: type, field: str) -> str:
    for kind in struct.__mro__:
        found = inspect.get_annotations(kind).get(field)
        if found is not None:
            return str(found)
    raise LookupError(field)


def members_of(name: str, kind: type) -> list[str]:
    """The public members of a class that are documented, its own and inherited ones."""
    hidden = PARTS_OF_THEIR_OWN.get(name, frozenset())
    found: list[str] = []
    for owner in (kind, *reversed(kind.__mro__[1:])):
        if owner.__module__.partition(".")[0] != "actionqueue":
            continue
        for member in owner.__dict__:
            if not member.startswith("_") and member not in hidden and member not in found and _is_member(kind, member):
                found.append(member)
    return found


def _is_member(kind: type, member: str) -> bool:
    value = inspect.getattr_static(kind, member)
    return isinstance(value, property | classmethod | staticmethod) or (callable(value) and not isinstance(value, type))


def is_twin(member: str, members: Iterable[str]) -> bool:
    """Whether it is the form to await of another one."""
    return member.startswith("a") and member[1:] in members


def _members(name: str, kind: type) -> Iterator[str]:
    members = members_of(name, kind)
    for member in members:
        if is_twin(member, members):
            continue
        value = inspect.getattr_static(kind, member)
        call = f"`{member}`" if isinstance(value, property) else f"`{member}{signature(getattr(kind, member))}`"
        twin = f" · `await a{member}(…)`" if f"a{member}" in members else ""
        yield f"- {call}{twin}: {described(value)}"


def signature(function: Callable[..., Any]) -> str:
    """As users call it: without ``self``, with the answer's type; of many options only that there are some."""
    found = inspect.signature(function)
    parameters = [each for each in found.parameters.values() if each.name not in ("self", "cls")]
    returns = _short(str(found.return_annotation)) if found.return_annotation is not inspect.Signature.empty else "None"
    for wrapper in ("Operation[", "Script["):
        if returns.startswith(wrapper):
            returns = returns.removeprefix(wrapper).removesuffix("]")
    shown = f"({', '.join(_parameters(parameters))})" if len(parameters) <= PARAMETERS_SHOWN_MAX else "(…)"
    return shown if returns in ("None", "Any") else f"{shown} -> {returns}"


def _parameters(parameters: list[inspect.Parameter]) -> Iterator[str]:
    is_keyword_only = False
    for each in parameters:
        if each.kind is each.VAR_KEYWORD and "Filters" in str(each.annotation):
            yield "**filters"
            continue
        if each.kind is each.KEYWORD_ONLY and not is_keyword_only:
            is_keyword_only = True
            yield "*"
        star = "*" if each.kind is each.VAR_POSITIONAL else "**" if each.kind is each.VAR_KEYWORD else ""
        annotation = "" if each.annotation is each.empty else f": {_short(str(each.annotation))}"
        default = "" if each.default is each.empty else f" = {each.default!r}"
        yield f"{star}{each.name}{annotation}{default}"


def _short(text: str) -> str:
    """Names of modules left out, and the variance of type variables."""
    text = re.sub(r"\b(?:typing|datetime|os|collections\.abc|actionqueue(?:\.\w+)+)\.(?=[A-Z])", "", text)
    return re.sub(r"\b(R|T)_co\b", r"\1", text)


def described(value: Any) -> str:
    """What its docstring says, as Markdown in one paragraph; examples are left out."""
    function = value.__func__ if isinstance(value, classmethod | staticmethod) else value
    text = inspect.getdoc(function)
    assert text, f"{value} has no docstring"
    return prose("\n\n".join(part for part in text.split("\n\n") if not part.startswith((">>>", "::"))))


def prose(text: str) -> str:
    """A docstring's text as Markdown on one line."""
    return " ".join(text.replace("``", "`").split())


# --- commands -------------------------------------------------------------------------------------------------------

Parsers = dict[str, argparse.ArgumentParser]


def commands() -> Parsers:
    """The parser of each command; under "" that of the whole command line."""
    parser = make_parser()
    found: Parsers = {"": parser}
    for action in parser._actions:  # noqa: SLF001 - argparse has no other way to ask
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            found |= action.choices
    found["demo"] = make_demo_parser()
    return found


def arguments_of(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """What can be given to a command; ``--help`` is left out."""
    return [
        action
        for action in parser._actions  # noqa: SLF001
        if not isinstance(action, argparse._HelpAction | argparse._SubParsersAction)  # noqa: SLF001
    ]


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    """The options of a command, as they are typed."""
    return {option for action in arguments_of(parser) for option in action.option_strings}


def spelling(action: argparse.Action) -> str:
    """An option or argument as it is typed."""
    value = (
        ""
        if action.nargs == 0
        else str(action.metavar or (action.dest.upper() if action.option_strings else action.dest))
    )
    if action.choices is not None and action.option_strings:
        value = "{" + ",".join(str(choice) for choice in action.choices) + "}"
    if action.nargs == "?" and value:
        value = f"[{value}]"
    if not action.option_strings:
        return f"[{value} …]" if action.nargs == "*" else value
    return f"{', '.join(action.option_strings)} {value}".rstrip()


def command_line() -> str:
    """Every command with its arguments and options."""
    lines: list[str] = []
    everywhere = options_of(commands()[""])
    for name, parser in commands().items():
        repeated = everywhere if name not in ("", "demo") else set()  # the demo reads its own arguments
        shown = [action for action in arguments_of(parser) if not set(action.option_strings) & repeated]
        if name:
            lines += [f"### actionqueue {name}", "", prose(parser.description or ""), ""]
        else:
            lines += ["Given before the command or after it:", ""]
        if shown:
            lines += ["| | |", "|---|---|"]
            lines += [f"| `{_cell(spelling(action))}` | {_cell(help_of(action))} |" for action in shown]
            lines.append("")
    return "\n".join(lines)


def help_of(action: argparse.Action) -> str:
    """Its help text, with its default filled in."""
    return (action.help or "").replace("%(default)s", str(action.default))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


# --- errors -----------------------------------------------------------------------------------------------------------


def error_classes() -> list[type[ActionQueueError]]:
    """Every error of the package in the order of its tree."""
    return [kind for kind in _tree(ActionQueueError) if kind.__module__ == ActionQueueError.__module__]


def _tree(kind: type[ActionQueueError]) -> Iterator[type[ActionQueueError]]:
    yield kind
    for each in kind.__subclasses__():
        yield from _tree(each)


def errors() -> str:
    """Every error with its code, its place in the tree, and the exit code of a command that ends with it."""
    lines = ["| error | code | is a | exit | meaning |", "|---|---|---|---|---|"]
    for kind in error_classes():
        parent = kind.__mro__[1].__name__
        lines.append(
            f"| `{kind.__name__}` | `{kind.code}` | `{parent}` | {exit_code_of(kind())} | {_cell(described(kind))} |"
        )
    return "\n".join(lines)


# --- limits -----------------------------------------------------------------------------------------------------------


def limits() -> str:
    """Every limit with its value and what it bounds, from the constants and the texts below them."""
    lines = ["| limit | value | bounds |", "|---|---|---|"]
    for module_name, constants in LIMITS:
        module = import_module(module_name)
        texts = texts_of(inspect.getsource(module))
        for constant in constants:
            value = _amount(constant, getattr(module, constant))
            lines.append(f"| `{constant.lower()}` | {value} | {_cell(prose(texts[constant]))} |")
    return "\n".join(lines)


def texts_of(source: str) -> dict[str, str]:
    """The text below each constant of a module."""
    found: dict[str, str] = {}
    body = ast.parse(source).body
    for statement, text in pairwise(body):
        match statement, text:
            case (
                ast.Assign(targets=[target]) | ast.AnnAssign(target=target),
                ast.Expr(value=ast.Constant(value=str(said))),
            ):
                for name in [target] if isinstance(target, ast.Name) else getattr(target, "elts", []):
                    found[name.id] = said
            case _:
                continue
    return found


def _amount(constant: str, value: int) -> str:
    if "BYTES" in constant:
        for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
            if value >= size and value % size == 0:
                return f"{value // size} {unit}"
    if constant.endswith("_US_MAX"):
        return f"{value // 86_400_000_000} days"
    return f"{value:,}"


# --- tables -----------------------------------------------------------------------------------------------------------


def tables() -> str:
    """Every table of a store with its columns, as SQLite has them, and what the bodies hold."""
    lines = ["| table | columns |", "|---|---|"]
    lines += [
        f"| `{table}` | {', '.join(f'`{column}`' for column in columns)} |" for table, columns in schema().items()
    ]
    bodies = {"tasks": rows.TASK_COLUMNS[3:-1], "runs": rows.RUN_COLUMNS[4:-1]}
    for table, columns in bodies.items():
        lines += ["", f"The body of a row of `{table}`: {', '.join(f'`{column}`' for column in columns)}."]
    return "\n".join(lines)


def schema() -> dict[str, list[str]]:
    """The columns of each table of a new store."""
    script = (files("actionqueue.store") / "sql" / "schema.sql").read_text(encoding="utf-8")
    connection = sqlite3.connect(":memory:")
    try:
        connection.executescript(script)
        found = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY rowid").fetchall()
        return {
            table: [row[1] for row in connection.execute(f"PRAGMA table_info({table})").fetchall()]
            for (table,) in found
        }
    finally:
        connection.close()


SECTIONS: Sections = {
    "docs/reference.md#names": names,
    "docs/reference.md#commands": command_line,
    "docs/reference.md#errors": errors,
    "docs/production.md#limits": limits,
    "docs/internals.md#tables": tables,
}


def main() -> int:
    """Write what changed."""
    return run(SECTIONS, COMMAND, "Write the generated parts of the documentation.")


if __name__ == "__main__":
    sys.exit(main())
