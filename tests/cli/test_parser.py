"""The command line as such: help, usage, exit codes, and how little starting it imports."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from actionqueue.cli import main
from actionqueue.cli.parser import make_parser
from actionqueue.cli.running import exit_code_of
from actionqueue.core import errors
from tests.cli.conftest import Call
from tests.process.support import environment


def commands() -> list[str]:
    action = next(each for each in make_parser()._actions if isinstance(each, argparse._SubParsersAction))
    return list(action.choices)


def test_the_commands_of_this_release_are_there() -> None:
    expected = "demo run submit tasks runs show stats top cancel retry pause resume prune verify audit export"
    expected += " backup restore explain limits schedules forecast depend batch batches signal signals"

    assert set(commands()) == set(expected.split())


@pytest.mark.parametrize("command", ["", *commands()])
def test_help_is_exit_0_on_stdout(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = main([*command.split(), "--help"])

    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    assert out.startswith("usage: actionqueue")
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("command", commands())
def test_every_function_that_a_command_names_exists(command: str) -> None:
    action = next(each for each in make_parser()._actions if isinstance(each, argparse._SubParsersAction))

    module, _, name = action.choices[command].get_default("function").partition(":")

    assert callable(getattr(__import__(f"actionqueue.cli.{module}", fromlist=[name]), name))


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    from actionqueue import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"actionqueue {__version__}\n"


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["nonsense"],
        ["runs", "--nonsense"],
        ["runs", "--limit", "many"],
        ["submit"],
        ["submit", "send", "--delay", "1s", "--at", "2026-11-24T09:00:00Z"],
        ["pause", "--queue", "a", "--handler", "b"],
        ["cancel", "--how", "gently"],
    ],
)
def test_what_cannot_be_parsed_is_exit_2_with_one_error_line(words: list[str], cli: Call) -> None:
    """smoke#5: what is missing is said on stderr."""
    result = cli(*words)

    assert (result.code, result.out) == (2, "")
    assert result.err.splitlines()[-1].startswith("error: ")
    assert result.err.splitlines()[-1].endswith(" (usage)")


def test_options_are_not_abbreviated(cli: Call) -> None:
    """Or else a script would break when an option is added."""
    assert cli("runs", "--hand", "send").code == 2


def test_which_store_must_be_said(cli: Call) -> None:
    result = cli("stats", at=None)

    assert result.code == 2
    assert result.err == "error: which store? give --store PATH or set ACTIONQUEUE_STORE (usage)\n"


@pytest.mark.parametrize("name", [":memory:", "postgresql://host/db"])
def test_a_store_that_no_other_process_can_reach_is_refused(name: str, cli: Call) -> None:
    assert cli("--store", name, "stats", at=None).code == 2


@pytest.mark.parametrize(
    "words",
    [
        "tasks", "runs", "show abcdef12", "stats", "top --once", "cancel abcdef12", "retry --state failed", "pause",
        "resume", "prune --before 1d", "verify", "submit send", "backup copy.db",
    ],
)  # fmt: skip
def test_a_store_that_is_not_there_is_exit_4_and_is_not_made(words: str, cli: Call, tmp_path: Path) -> None:
    result = cli(*words.split())

    assert (result.code, result.out) == (4, "")
    assert "there is no store at" in result.err
    assert result.err.endswith("(store_unavailable)\n")
    assert list(tmp_path.iterdir()) == []


def test_another_programs_file_is_exit_4(cli: Call, store: Path) -> None:
    store.write_text("not a store at all, but a text that is long enough to be one" * 10)

    result = cli("runs")

    assert result.code == 4
    assert result.err.count("\n") == 1
    assert result.err.endswith("(not_a_store)\n")


def test_the_store_may_be_named_before_or_after_the_command_or_in_the_environment(
    resting: object, cli: Call, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = cli("--store", store, "stats", "--json", at=None)
    after = cli("stats", "--store", store, "--json", at=None)
    monkeypatch.setenv("ACTIONQUEUE_STORE", str(store))
    around = cli("--json", "stats", at=None)

    assert before.json == after.json == around.json
    assert before.code == 0


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.InvalidSubmission, 3), (errors.UnknownRun, 3), (errors.AlreadyTerminal, 3), (errors.Overloaded, 3),
        (errors.StoreHeld, 4), (errors.StoreDamaged, 4), (errors.NoEngine, 4), (errors.RunFailed, 1),
        (errors.RunCanceled, 1), (errors.NotRunning, 2), (errors.ActionQueueError, 1),
    ],
)  # fmt: skip
def test_the_exit_code_says_of_what_kind_an_error_is(kind: type[errors.ActionQueueError], code: int) -> None:
    assert exit_code_of(kind("")) == code


def test_an_error_is_one_line_whatever_its_message_holds(cli: Call, resting: object) -> None:
    result = cli("runs", "--queue", "a\nb\x1b[31m", "--text", "x")

    assert result.code == 3
    assert result.err.count("\n") == 1
    assert "\x1b" not in result.err
    assert "text: needs since" in result.err


# --- starting up ------------------------------------------------------------------------------------------------

HEAVY = "asyncio sqlite3 msgspec logging inspect typing subprocess socket actionqueue.app actionqueue.public"


def imported_by(code: str) -> set[str]:
    """The modules that a fresh interpreter has imported after ``code``."""
    program = f"import sys\n{code}\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", program], env=environment(), capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_importing_the_command_line_imports_nothing_heavy() -> None:
    assert imported_by("import actionqueue.cli") & set(HEAVY.split()) == set()


def test_parsing_imports_argparse_and_nothing_of_the_package_but_itself() -> None:
    loaded = imported_by("from actionqueue.cli.parser import parse\nparse(['--store', 'x', 'runs'])")

    assert loaded & set(HEAVY.split()) == set()
    assert {name for name in loaded if name.startswith("actionqueue.")} == {
        "actionqueue.cli",
        "actionqueue.cli.parser",
    }


@pytest.mark.parametrize("module", ["commands_read", "commands_show", "commands_control", "commands_keep", "top"])
def test_commands_that_read_and_control_need_no_engine_and_no_event_loop(module: str) -> None:
    loaded = imported_by(f"import site; site.main()\nimport actionqueue.cli.{module}")

    assert "actionqueue.store_client" in loaded
    assert {"asyncio", "actionqueue.app", "actionqueue.engine.engine", "actionqueue.public"} & loaded == set()


def test_the_package_imports_its_names_on_first_use() -> None:
    assert "actionqueue.app" not in imported_by("import actionqueue")
    loaded = imported_by("import site; site.main()\nfrom actionqueue import ActionQueue, RunFailed")
    assert "actionqueue.app" in loaded


def test_every_public_name_is_there_and_listed_in_order() -> None:
    import actionqueue
    from actionqueue import public

    assert list(actionqueue.__all__) == public.__all__
    assert all(getattr(actionqueue, name) is getattr(public, name) for name in public.__all__)
    assert set(public.__all__) <= set(dir(actionqueue))
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        actionqueue.nonsense  # type: ignore[attr-defined]
