"""``cancel``, ``retry``, ``pause``, ``resume``, ``prune``: commands for the engine, and what became of them.

With an engine on the store they wait for its answer; without one they are left in the inbox, which is said, and no
error.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import Any

from actionqueue.cli.opening import control, filters_of, find_id, find_task_id, instant, note_queued, open_store
from actionqueue.cli.render import counted, print_json, short_id
from actionqueue.cli.running import DONE, Misuse
from actionqueue.core.ids import RunId, TaskId
from actionqueue.core.plain import plain
from actionqueue.store_client import StoreClient

Outcome = dict[str, Any]


def cancel(options: Namespace) -> int:
    """Cancel runs and tasks named by id, or all runs that fit a filter."""

    def one(client: StoreClient, id: RunId | TaskId) -> Outcome:
        if isinstance(id, TaskId):
            count, queued = control(lambda: client.cancel_task(id, options.how))
            return {"task_id": id, "runs": count, "queued": queued}
        changed, queued = control(lambda: client.cancel_run(id, options.how))
        return {"run_id": id, "changed": changed, "queued": queued}

    def many(client: StoreClient, wanted: dict[str, Any]) -> int:
        return client.cancel_runs(how=options.how, dry_run=options.dry_run, **wanted)

    return _bulk(options, "cancel", one, many)


def retry(options: Namespace) -> int:
    """Retry runs named by id (of a task: its newest run), or all failed runs that fit a filter."""

    def one(client: StoreClient, id: RunId | TaskId) -> Outcome:
        run_id = id if isinstance(id, RunId) else _newest_run(client, id)
        new, queued = control(
            lambda: client.retry_run(run_id, with_dependents=options.with_dependents, fresh=options.fresh)
        )
        return {"run_id": run_id, "new_run_id": new, "queued": queued}

    def many(client: StoreClient, wanted: dict[str, Any]) -> int:
        if options.fresh:
            raise Misuse("--fresh goes with ids")
        return client.retry_runs(dry_run=options.dry_run, **wanted)

    if options.with_dependents and not options.ids:
        raise Misuse("--with-dependents goes with ids")
    return _bulk(options, "retry", one, many)


def depend(options: Namespace) -> int:
    """Let a task wait for others."""
    client = open_store(options)
    task_id = find_task_id(client, options.id)
    on = [find_task_id(client, each) for each in options.on]
    count, queued = control(lambda: client.add_dependencies(task_id, on))
    outcome = {"task_id": task_id, "depends_on": on, "added": count, "queued": queued}
    if not queued:
        _say(options, outcome, f"task {short_id(task_id)} waits for {counted(count or 0, 'task')} more")
    elif options.json:
        print_json(plain(outcome))
    note_queued(int(queued), client.store)
    return DONE


def _newest_run(client: StoreClient, id: TaskId) -> RunId:
    return client.runs(task=id, limit=1)[0].id


def _bulk(
    options: Namespace,
    verb: str,
    one: Callable[[StoreClient, RunId | TaskId], Outcome],
    many: Callable[[StoreClient, dict[str, Any]], int],
) -> int:
    client = open_store(options)
    wanted = filters_of(options, client)
    if bool(options.ids) == bool(wanted):
        raise Misuse(f"which runs? give ids or filters{', not both' if wanted else ''} (actionqueue {verb} --help)")
    if options.ids and options.limit is not None:
        raise Misuse("--limit goes with filters")
    if wanted:
        return _many(options, verb, client, wanted | ({} if options.limit is None else {"limit": options.limit}), many)
    ids = [find_id(client, text) for text in options.ids]  # all of them, before anything is done
    if options.dry_run:
        _say(options, {"dry_run": True, "count": len(ids)}, f"would {verb} {len(ids)}")
        return DONE
    outcomes = [one(client, id) for id in ids]
    if options.json:
        print_json(plain({"results": outcomes}))
    else:
        for outcome in outcomes:
            if not outcome["queued"]:
                print(_sentence(verb, outcome))
    note_queued(sum(outcome["queued"] for outcome in outcomes), client.store)
    return DONE


def _many(
    options: Namespace,
    verb: str,
    client: StoreClient,
    wanted: dict[str, Any],
    many: Callable[[StoreClient, dict[str, Any]], int],
) -> int:
    count, queued = control(lambda: many(client, wanted))
    outcome = {"dry_run": options.dry_run, "count": count or 0, "queued": queued}
    if not queued:
        doing = f"would {verb}" if options.dry_run else {"cancel": "canceled", "retry": "retried"}[verb]
        _say(options, outcome, f"{doing} {counted(count or 0, 'run')}")
    elif options.json:
        print_json(outcome)
    note_queued(queued, client.store)
    return DONE


def _sentence(verb: str, outcome: Outcome) -> str:
    if verb == "retry":
        return f"run {short_id(outcome['run_id'])} is retried as run {outcome['new_run_id']}"
    if "task_id" in outcome:
        return f"task {short_id(outcome['task_id'])}: {counted(outcome['runs'], 'run')} canceled"
    said = "canceled, or asked to stop where it runs" if outcome["changed"] else "was canceled already"
    return f"run {short_id(outcome['run_id'])}: {said}"


# --- pauses, the clock, history ---------------------------------------------------------------------------------


def pause(options: Namespace) -> int:
    """Start nothing of a scope."""
    return _scope(options, "paused", lambda client, scope: client.pause(**scope))


def resume(options: Namespace) -> int:
    """Lift a pause, or vouch for the clock."""
    if not options.clock:
        return _scope(options, "resumed", lambda client, scope: client.resume(**scope))
    client = open_store(options)
    _, queued = control(client.confirm_clock)
    _say(options, {"clock": "confirmed", "queued": queued}, None if queued else "the clock is confirmed")
    note_queued(queued, client.store)
    return DONE


def _scope(options: Namespace, done: str, act: Callable[[StoreClient, dict[str, str]], bool]) -> int:
    client = open_store(options)
    scope = {name: value for name in ("queue", "handler") if (value := getattr(options, name)) is not None}
    if options.task is not None:
        found = find_id(client, options.task)
        scope["task"] = str(client.get_run(found).task_id if isinstance(found, RunId) else found)
    changed, queued = control(lambda: act(client, scope))
    named = " ".join(f"{name} {value}" for name, value in scope.items()) or "the engine"
    already = f"{named} was {'paused already' if done == 'paused' else 'not paused'}"
    outcome = {"scope": named.removeprefix("the "), done: changed, "queued": queued}
    _say(options, outcome, None if queued else f"{named} is {done}" if changed else already)
    note_queued(queued, client.store)
    return DONE


def prune(options: Namespace) -> int:
    """Delete old tasks and the log's beginning."""
    if options.before is None and options.log_before is None:
        raise Misuse("prune what? give --before, --log-before, or both")
    client = open_store(options)
    before, log_before = (
        None if text is None else instant(text, name)
        for text, name in ((options.before, "--before"), (options.log_before, "--log-before"))
    )
    summary, queued = control(lambda: client.prune(before=before, log_before=log_before))
    tasks, commits = (0, 0) if summary is None else (summary.tasks, summary.commits)
    said = None if queued else f"deleted {counted(tasks, 'task')} and {counted(commits, 'commit')} of the log"
    _say(options, {"tasks": tasks, "commits": commits, "queued": queued}, said)
    note_queued(queued, client.store)
    return DONE


def _say(options: Namespace, outcome: Outcome, text: str | None) -> None:
    if options.json:
        print_json(outcome)
    elif text is not None:
        print(text)
