"""Every command and option, as one table of declarations. Imports argparse and nothing of the package.

A command is declared next to its options, with the function that does it as "module:function" of this package.
"""

from __future__ import annotations

import argparse
import os
import sys

TYPE_CHECKING = False  # typing itself takes long to import
if TYPE_CHECKING:
    from typing import Any, NoReturn, TypeAlias

    Commands: TypeAlias = argparse._SubParsersAction["Parser"]  # noqa: SLF001 - it has no public name

DESCRIPTION = "A durable task queue on one file: submit, run, watch and repair."
EPILOG = (
    "An id may be given by any unique ending of six characters or more. Instants are ISO 8601 with a zone "
    '("2026-11-24T09:00:00Z"), or an age ("15m", "2h": so long ago). '
    "Exit codes: 0 done, 1 failed, 2 usage, 3 refused, 4 store or connection."
)


class Parser(argparse.ArgumentParser):
    """Without abbreviations of options, which would break scripts when options are added."""

    def __init__(self, **settings: Any) -> None:
        settings.setdefault("allow_abbrev", False)
        super().__init__(**settings)

    def error(self, message: str) -> NoReturn:
        """Usage errors look like all others."""
        self.print_usage(sys.stderr)
        self.exit(2, f"error: {message} (usage)\n")


def parse(words: list[str]) -> tuple[str, argparse.Namespace]:
    """(the command's function, its options); raises ``SystemExit`` after ``--help`` and for what is not valid."""
    options = make_parser().parse_args(words)
    return options.function, options


def make_parser() -> Parser:
    """The parser of the whole command line."""
    parser = Parser(prog="actionqueue", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    parser.add_argument("--store", metavar="PATH", default=None, help="the store (default: $ACTIONQUEUE_STORE)")
    parser.add_argument("--json", action="store_true", help="stable JSON on stdout")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for declare in (_running, _submitting, _reading, _controlling, _keeping):
        declare(commands)
    return parser


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *args: object, **kwargs: object) -> None:
        from actionqueue.core.version import __version__

        print(f"actionqueue {__version__}")
        parser.exit(0)


def _command(commands: Commands, name: str, function: str, what: str) -> Parser:
    parser = commands.add_parser(name, help=what, description=what[:1].upper() + what[1:] + ".")
    parser.set_defaults(function=function)
    shared = parser.add_argument_group("shared")
    # given before the command or after it; left out here, the one given before must stand
    shared.add_argument(
        "--store", metavar="PATH", default=argparse.SUPPRESS, help="the store (default: $ACTIONQUEUE_STORE)"
    )
    shared.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="stable JSON on stdout")
    return parser


def _running(commands: Commands) -> None:
    _command(commands, "demo", "commands_run:demo", "see it work: a queue that is killed half way and loses nothing")
    run = _command(
        commands, "run", "commands_run:run", "run the queue of a program: be its engine until SIGTERM or SIGINT"
    )
    run.add_argument(
        "queue",
        metavar="MODULE[:QUEUE]",
        help='where the ActionQueue is, such as app.jobs:queue (":queue" is the default)',
    )
    run.add_argument(
        "--import",
        dest="imports",
        metavar="MODULE",
        action="append",
        default=[],
        help="import this too (it declares tasks); may be repeated",
    )
    run.add_argument(
        "--wait-for-store", metavar="DURATION", nargs="?", const=True, default=False,
        help="wait while another engine holds the store, for so long or (no DURATION) for ever",
    )  # fmt: skip


def _submitting(commands: Commands) -> None:
    submit = _command(commands, "submit", "commands_submit:submit", "submit a task by its handler's name")
    submit.add_argument("handler", metavar="HANDLER", help="the name it is registered under")
    submit.add_argument(
        "--args", metavar="JSON", default="{}", help='its arguments by name: \'{"name": "world"}\'; - reads stdin'
    )
    when = submit.add_mutually_exclusive_group()
    when.add_argument("--delay", metavar="DURATION", help='start after that long ("15m")')
    when.add_argument("--at", metavar="INSTANT", help="start at that instant")
    submit.add_argument("--queue", help="the queue (default: what the handler declares)")
    submit.add_argument("--priority", type=int, help="larger first")
    submit.add_argument("--key", help="idempotency key: the same key and content submit one task")
    submit.add_argument("--tag", action="append", default=[], help="a tag; may be repeated")
    submit.add_argument("--expires", metavar="DURATION", help="cancel it when it has not started by then")
    submit.add_argument("--max-attempts", type=int, metavar="N", help="how often it is tried at most")
    submit.add_argument(
        "--after", metavar="ID", action="append", default=[], help="start when this task has completed; may be repeated"
    )
    submit.add_argument(
        "--on-upstream-failure", choices=("cancel", "run"), default="cancel",
        help="what follows where such a task does not complete (default: cancel)",
    )  # fmt: skip
    submit.add_argument(
        "--wait", metavar="DURATION", nargs="?", const=True, default=None,
        help="wait for its result and print it, for so long or (no DURATION) for ever",
    )  # fmt: skip


def _reading(commands: Commands) -> None:
    tasks = _command(commands, "tasks", "commands_read:tasks", "list tasks, newest first")
    _filters(tasks, "task", "handler", "queue", "key", "since", "until")
    _paged(tasks)
    _past(tasks)
    runs = _command(commands, "runs", "commands_read:runs", "list runs, newest first")
    _filters(runs, *FILTERS)
    _paged(runs)
    _past(runs)
    runs.add_argument(
        "--refused", action="store_true", help="list the commands of other processes that were refused instead"
    )
    runs.add_argument("--watch", metavar="SECONDS", nargs="?", type=float, const=2.0, help="list again and again")
    show = _command(
        commands, "show", "commands_show:show", "show a run or a task: attempts, history, arguments, result"
    )
    show.add_argument("id", metavar="ID", help="of a run or a task")
    _past(show)
    batch = _command(commands, "batch", "commands_batch:batch", "show a batch: its runs counted by state")
    batch.add_argument("id", metavar="ID", help="the batch's whole id; cancel and retry it with --batch ID")
    batches = _command(commands, "batches", "commands_batch:batches", "list batches, newest first")
    batches.add_argument("--limit", type=int, default=100, metavar="N", help="at most so many, 1 to 1000")
    explain = _command(
        commands, "explain", "commands_why:explain", "say why a run is not running, and what would release it"
    )
    explain.add_argument("id", metavar="ID", help="of a run, or of a task: its newest live run")
    limits = _command(
        commands,
        "limits",
        "commands_why:limits",
        "list what bounds how much runs at once, what is waited for most first",
    )
    limits.add_argument("--kind", choices=("key", "rate", "queue", "handler", "executor"), help="only of this kind")
    limits.add_argument("--name", help="only of this name")
    limits.add_argument("--limit", type=int, default=100, metavar="N", help="at most so many, 1 to 1000 (default: 100)")
    forecast = _command(
        commands,
        "forecast",
        "commands_ahead:forecast",
        "say what will happen: exactly where it is known, else estimated",
    )
    ahead = forecast.add_mutually_exclusive_group()
    ahead.add_argument("--hours", type=float, default=24.0, metavar="N", help="how far ahead (default: 24)")
    ahead.add_argument("--until", metavar="INSTANT", help='until that instant; or for a duration ("30m")')
    forecast.add_argument(
        "--what-if", action="append", default=[], metavar="CHANGE",
        help='what if this were so: "concurrency=8", "queue mail=4", "limit KEY=3", "pause queue mail", "resume"; may be '
        "repeated",
    )  # fmt: skip
    _command(commands, "stats", "commands_read:stats", "count runs by state, and say who the engine is")
    top = _command(commands, "top", "top:top", "watch the queue live")
    top.add_argument("--once", action="store_true", help="print one frame and end")
    top.add_argument("--interval", metavar="SECONDS", type=float, default=1.0, help="between two frames (default: 1)")


def _controlling(commands: Commands) -> None:
    cancel = _command(commands, "cancel", "commands_control:cancel", "cancel runs or tasks, by id or by filter")
    _bulk(cancel)
    cancel.add_argument(
        "--how", choices=("cancel", "kill", "abandon"), default="cancel",
        help="ask running code to stop (default), end it by force, or drop the grant whatever it does",
    )  # fmt: skip
    retry = _command(commands, "retry", "commands_control:retry", "retry failed (or canceled) runs, by id or by filter")
    _bulk(retry)
    retry.add_argument("--fresh", action="store_true", help="forget what steps and waits recorded, of runs named by id")
    retry.add_argument(
        "--with-dependents", action="store_true", help="and what was canceled because it did not complete (by id)"
    )
    depend = _command(commands, "depend", "commands_control:depend", "let a task that has not started wait for others")
    depend.add_argument("id", metavar="TASK", help="the task that is to wait")
    depend.add_argument("on", metavar="ID", nargs="+", help="a task that it is to wait for")
    for name, what in (
        ("pause", "start nothing of a queue, of a handler, of a task, or of all"),
        ("resume", "lift a pause"),
    ):
        parser = _command(commands, name, f"commands_control:{name}", what)
        scope = parser.add_mutually_exclusive_group()
        scope.add_argument("--queue", metavar="NAME", help="only this queue")
        scope.add_argument("--handler", metavar="NAME", help="only this handler")
        scope.add_argument("--task", metavar="ID", help="only this task")
        if name == "resume":
            scope.add_argument("--clock", action="store_true", help="vouch for the clock after it was set")
    signal = _command(commands, "signal", "commands_signal:signal", "send a signal to the runs that wait for it")
    signal.add_argument("name", metavar="NAME", help="of the signal")
    signal.add_argument("--key", metavar="KEY", help="only to those that wait for this key (default: for none)")
    signal.add_argument("--payload", metavar="JSON", help="what to tell them (default: null)")
    signal.add_argument("--id", metavar="TEXT", help="sent twice under one id it is one signal")
    signal.add_argument("--by", metavar="WHO", help="who is recorded as its sender (default: you)")
    signals = _command(commands, "signals", "commands_signal:signals", "list the signals that are kept, newest first")
    signals.add_argument("--name", metavar="NAME", help="of this name")
    signals.add_argument("--key", metavar="KEY", help="of this key")
    signals.add_argument(
        "--limit", type=int, default=None, metavar="N", help="at most so many, 1 to 1000 (default: 100)"
    )
    schedules = _command(
        commands, "schedules", "commands_why:schedules", "list schedules, or have one run now, fill a range, or end"
    )
    schedules.add_argument(
        "action", nargs="?", choices=("trigger", "backfill", "retire"), metavar="ACTION",
        help="trigger (run it now), backfill (a run for each time in a range), retire (end it); none: list them",
    )  # fmt: skip
    schedules.add_argument("name", nargs="?", metavar="NAME", help="of the schedule; or its task's id")
    schedules.add_argument("--ended", action="store_true", help="list those that are over, too")
    schedules.add_argument("--since", metavar="INSTANT", help="the range to backfill: from this instant on; or an age")
    schedules.add_argument("--until", metavar="INSTANT", help="and before this one; or an age")
    prune = _command(
        commands, "prune", "commands_control:prune", "delete what finished long ago, and the log's beginning"
    )
    prune.add_argument("--before", metavar="INSTANT", help='tasks finished before it; or an age ("30d")')
    prune.add_argument("--log-before", metavar="INSTANT", help='log before it; or an age ("7d")')


def _keeping(commands: Commands) -> None:
    _command(
        commands,
        "verify",
        "commands_keep:verify",
        "check every byte of the store, and that its log leads to its tables",
    )
    audit = _command(
        commands,
        "audit",
        "commands_proof:audit",
        "account for every task: the runs it implies, has, and how they ended",
    )
    _filters(audit, "since", "until")
    audit.add_argument("--quiet", action="store_true", help="only what is not consistent, and the sums")
    export = _command(commands, "export", "commands_proof:export", "write the log as JSON lines on stdout")
    _filters(export, "since", "until")
    export.add_argument("--redact", action="store_true", help="without names, keys, messages and other texts of yours")
    backup = _command(commands, "backup", "commands_keep:backup", "copy the store to a new file while it is in use")
    backup.add_argument("path", metavar="PATH", help="the new file")
    restore = _command(
        commands, "restore", "commands_keep:restore", "make the store what a backup holds; it opens paused"
    )
    restore.add_argument("backup", metavar="BACKUP", help="the backup, which stays as it is")
    restore.add_argument("--force", action="store_true", help="move a store that is there aside")


FILTERS = ("state", "task", "handler", "queue", "tag", "key", "batch", "since", "until", "error", "text")
_FILTER_HELP = {
    "state": "in this state; may be repeated",
    "task": "of this task (an id)",
    "handler": "of this handler",
    "queue": "of this queue",
    "tag": "with this tag",
    "key": "with this idempotency key",
    "batch": "of this batch (its whole id)",
    "since": "created at this instant or later; or an age",
    "until": "created before this instant; or an age",
    "error": "that failed with this kind of error",
    "text": "with this text in the error or the handler's name (needs --since)",
}


def _filters(parser: Parser, *names: str) -> None:
    group = parser.add_argument_group("filters (all must hold)")
    for name in names:
        group.add_argument(f"--{name}", action="append" if name == "state" else "store", help=_FILTER_HELP[name])


def _paged(parser: Parser) -> None:
    parser.add_argument(
        "--limit",
        type=int,
        default=None,
        metavar="N",
        help="at most so many, 1 to 1000 (default: 100, 20 on a terminal)",
    )
    parser.add_argument("--cursor", metavar="ID", help="go on after this one (next_cursor of a page)")


def _past(parser: Parser) -> None:
    parser.add_argument(
        "--at", metavar="INSTANT", help="as it was at that instant, as far back as the log reaches; or an age"
    )


def _bulk(parser: Parser) -> None:
    parser.add_argument("ids", metavar="ID", nargs="*", help="of runs or tasks")
    _filters(parser, *FILTERS)
    parser.add_argument("--limit", type=int, default=None, metavar="N", help="at most so many (default: all that fit)")
    parser.add_argument("--dry-run", action="store_true", help="only count")


def store_of(options: argparse.Namespace) -> str | None:
    """The store that was named, on the command line or in the environment."""
    return options.store or os.environ.get("ACTIONQUEUE_STORE") or None
