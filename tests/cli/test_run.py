"""``run``, and the command line as a process: signals, pipes, what goes where."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from actionqueue import ActionQueue
from actionqueue.cli import main
from tests.process.support import PATIENCE_S, Programs, environment

APP = """
import logging
from actionqueue import ActionQueue

queue = ActionQueue("jobs.db", threads=2, drain_timeout="5s")

@queue.task
def hello(name: str) -> str:
    return f"hello {name}"

class Box:
    jobs = queue
"""
MORE = """
from app import queue

@queue.task
def extra() -> str:
    return "extra"
"""

COMMAND = [sys.executable, "-m", "actionqueue"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "more.py").write_text(MORE)
    return tmp_path


def shell(folder: Path, *words: str, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *words], cwd=folder, env=environment(), capture_output=True, text=True, timeout=60, check=False
    )


# --- run --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_run_says_when_it_is_ready_and_drains_on_sigterm(programs: Programs, folder: Path) -> None:
    engine = programs.run([*COMMAND, "run", "app:queue"], cwd=folder)
    ready = engine.line("ready: ")

    assert ready == f"{folder / 'jobs.db'}, pid {engine.pid}, handlers: hello"
    done = shell(folder, "submit", "hello", "--args", '{"name": "world"}', "--wait", "--store", "jobs.db")
    assert (done.returncode, done.stdout) == (0, '"hello world"\n')
    engine.send(signal.SIGTERM)
    assert engine.wait() == 0
    assert "stopped" in engine.errors
    assert engine.said == [f"ready: {ready}"]


def test_sigint_drains_too_and_the_default_name_is_queue(programs: Programs, folder: Path) -> None:
    engine = programs.run([*COMMAND, "--json", "run", "app", "--import", "more"], cwd=folder)
    ready = json.loads(engine.line())

    assert ready == {
        "event": "ready", "store": str(folder / "jobs.db"), "pid": engine.pid, "handlers": ["extra", "hello"],
    }  # fmt: skip
    engine.send(signal.SIGINT)
    assert engine.wait() == 0


def test_an_engine_goes_on_when_nobody_reads_its_output(folder: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [*COMMAND, "run", "app:queue"]
    with subprocess.Popen(command, cwd=folder, env=environment(), stdout=writer, stderr=subprocess.PIPE) as engine:
        os.close(writer)
        assert engine.stderr is not None
        try:
            said = next(line for line in engine.stderr if b"standard output" in line)
            assert said == b"nobody reads standard output; the engine goes on\n"
            client = ActionQueue(folder / "jobs.db", role="client")
            client.task(name="hello")(hello)
            assert client.handlers["hello"].submit("world").result(timeout=PATIENCE_S) == "hello world"
            client.close()
            engine.send_signal(signal.SIGTERM)
            assert engine.wait(PATIENCE_S) == 0
            assert b"stopped" in engine.stderr.read()
        finally:
            engine.kill()


def hello(name: str) -> str:
    """What the engine of these tests has."""
    return f"hello {name}"


@pytest.mark.slow
def test_a_second_run_is_refused_or_waits(programs: Programs, folder: Path) -> None:
    first = programs.run([*COMMAND, "run", "app:queue"], cwd=folder)
    first.line("ready: ")

    refused = shell(folder, "run", "app:Box.jobs")
    assert (refused.returncode, refused.stdout) == (4, "")
    assert refused.stderr.splitlines()[-1].endswith("(store_held)")
    assert f"pid {first.pid}" in refused.stderr
    impatient = shell(folder, "run", "app", "--wait-for-store", "300ms")
    assert impatient.returncode == 4

    second = programs.run([*COMMAND, "run", "app:queue", "--wait-for-store"], cwd=folder)
    first.send(signal.SIGTERM)
    assert first.wait() == 0
    assert f"pid {second.pid}" in second.line("ready: ")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["missing:queue"], "there is no module missing"),
        (["app:nothing"], "app has no nothing"),
        (["app:hello"], "is a SyncTask, not an ActionQueue"),
        (["app", "--import", "missing"], "there is no module missing"),
        (["app", "--wait-for-store", "soon"], "--wait-for-store"),
        (["app", "--store", "other.db"], "leave --store out"),
    ],
)
def test_what_cannot_be_run_is_exit_2(folder: Path, words: list[str], problem: str) -> None:
    done = shell(folder, "run", *words)

    assert (done.returncode, done.stdout) == (2, "")
    assert problem in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (folder / "jobs.db").exists()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("import nowhere", "No module named 'nowhere'"),
        ("x = 1 / 0", "ZeroDivisionError: division by zero"),
        ("from actionqueue import ActionQueue\nqueue = ActionQueue('x.db', threads=0)", "at least 1"),
        ("def f(:", "SyntaxError"),
    ],
)
def test_a_module_that_fails_to_import_is_named_with_file_and_line(folder: Path, text: str, problem: str) -> None:
    (folder / "broken.py").write_text(f"{text}\n")

    done = shell(folder, "run", "broken:queue")

    assert done.returncode == 2
    assert problem in done.stderr
    assert done.stderr.count("\n") == 1
    assert "broken" in done.stderr


def test_a_module_is_looked_for_in_the_current_folder_first(programs: Programs, folder: Path) -> None:
    (folder / "inner").mkdir()
    (folder / "inner" / "jobs.py").write_text(APP.replace("jobs.db", "nested.db"))

    engine = programs.run([*COMMAND, "run", "inner.jobs:queue"], cwd=folder)

    assert "nested.db" in engine.line("ready: ")


# --- the process ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_json_on_stdout_is_pure_and_everything_else_on_stderr(folder: Path) -> None:
    with ActionQueue(folder / "jobs.db").running():
        pass

    for words in (["stats"], ["runs"], ["tasks"], ["verify"], ["pause"], ["top", "--once"], ["submit", "unknown"]):
        done = shell(folder, *words, "--json", "--store", "jobs.db")
        assert done.returncode == 0, done.stderr
        assert isinstance(json.loads(done.stdout), dict)
        assert done.stdout.count("\n") == 1


@pytest.mark.slow
def test_the_exit_codes_of_the_process(folder: Path) -> None:
    with ActionQueue(folder / "jobs.db").running():
        pass

    assert shell(folder, "--help").returncode == 0
    assert shell(folder, "stats").returncode == 2
    assert shell(folder, "show", "abcdef12", "--store", "jobs.db").returncode == 3
    assert shell(folder, "stats", "--store", "none.db").returncode == 4


def test_a_reader_that_stops_reading_is_no_error(folder: Path) -> None:
    queue = ActionQueue(folder / "jobs.db")

    @queue.task
    def hello(name: str) -> str:
        return name

    with queue.running():
        hello.options(delay="1h").submit_many([(f"{n}" * 50,) for n in range(900)])

    script = f"'{sys.executable}' -m actionqueue runs --limit 900 --store jobs.db | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, env=environment(), capture_output=True, text=True, timeout=60, check=False
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ID")
    assert done.stderr == ""


@pytest.mark.slow
def test_top_and_watch_go_on_until_interrupted(programs: Programs, folder: Path) -> None:
    with ActionQueue(folder / "jobs.db").running():
        pass

    for words in (["top", "--interval", "0.1"], ["runs", "--watch", "0.1"], ["top", "--interval", "0.1", "--json"]):
        program = programs.run([*COMMAND, *words, "--store", "jobs.db"], cwd=folder)
        program.line()
        program.line()
        program.send(signal.SIGINT)
        assert program.wait() in (0, 130)
        assert "Traceback" not in program.errors


def test_python_m_actionqueue_and_the_script_are_the_same(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert shell(folder, "--version").stdout == f"actionqueue {version()}\n"
    assert main(["--version"]) == 0


def version() -> str:
    from actionqueue import __version__

    return __version__
