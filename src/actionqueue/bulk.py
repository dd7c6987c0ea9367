"""Many runs at once: listing them page by page, and canceling or retrying whatever fits a filter.

The commands of a page are sent together, and each is decided for itself: a run that ended meanwhile is passed over, not
an error.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Unpack

from actionqueue.core.errors import ActionQueueError, Conflict, NoEngine, NotFound
from actionqueue.core.run import RunState
from actionqueue.filters import Filter, RunFilters, check_limit
from actionqueue.operate import How, Operating
from actionqueue.operations import Operation, Script, awaiting_script, blocking_script, together
from actionqueue.reading import read_runs
from actionqueue.records import RunRecord
from actionqueue.store.port import Reader

PAGE_RUNS = 500
BULK_MAX = 1_000_000_000
LIVE = tuple(state.value for state in RunState if not state.is_terminal)


class BulkOperating(Operating):
    """The bulk reads and controls of ``ActionQueue``."""

    def iter_runs(self, **wanted: Unpack[RunFilters]) -> Iterator[RunRecord]:
        """All runs that fit the filter (see ``runs``), page by page, newest first."""
        while True:
            page = self.runs(**wanted)
            yield from page
            if page.next_cursor is None:
                return
            wanted["cursor"] = page.next_cursor

    async def aiter_runs(self, **wanted: Unpack[RunFilters]) -> AsyncIterator[RunRecord]:
        """The same, for ``async for``."""
        while True:
            page = await self.aruns(**wanted)
            for record in page:
                yield record
            if page.next_cursor is None:
                return
            wanted["cursor"] = page.next_cursor

    def _script_cancel_runs(
        self, /, *, how: How = "cancel", dry_run: bool = False, **wanted: Unpack[RunFilters]
    ) -> Script[int]:
        """Cancel every live run that fits the filter (see ``runs``; ``limit`` bounds how many); how many that were.

        ``dry_run`` only counts. Raises ``NoEngine`` when no engine decides: the commands wait in the inbox.
        """
        return self._each({**wanted}, LIVE, dry_run, lambda record: self._op_cancel_run(record.id, how), _any)

    def _script_retry_runs(self, /, *, dry_run: bool = False, **wanted: Unpack[RunFilters]) -> Script[int]:
        """Retry every failed run (or canceled: ``state="canceled"``) that fits the filter; how many that were.

        A run that was retried already is passed over: only the newest of each chain of retries counts.
        ``dry_run`` only counts. Raises ``NoEngine`` when no engine decides: the commands wait in the inbox.
        """
        return self._each({**wanted}, ("failed",), dry_run, lambda record: self._op_retry_run(record.id), _is_newest)

    def _each(
        self,
        wanted: dict[str, Any],
        states: tuple[str, ...],
        dry_run: bool,  # noqa: FBT001 - private, passed on
        act: Callable[[RunRecord], Operation[Any]],
        may: Callable[[Reader, RunRecord], bool],
    ) -> Script[int]:
        most = wanted.pop("limit", None)
        if most is not None:
            check_limit(most, BULK_MAX)
        wanted = {"state": states, **{name: value for name, value in wanted.items() if value is not None}}
        done = queued = 0
        more = True
        while more and (most is None or done + queued < most):
            records, cursor = yield self._page(wanted, may)
            more = cursor is not None
            wanted["cursor"] = cursor
            if most is not None:
                records = records[: most - done - queued]
            if dry_run:
                done += len(records)
                continue
            replies: list[Any] = yield together([act(record) for record in records])
            for reply in replies:
                queued += _is_queued(reply)
                done += not isinstance(reply, ActionQueueError) and reply is not False
        if queued:
            raise NoEngine(
                f"no engine has decided {queued} of the commands; they wait in the inbox until one does",
                queued=queued,
                done=done,
            )
        return done

    def _page(
        self, wanted: dict[str, Any], may: Callable[[Reader, RunRecord], bool]
    ) -> Operation[tuple[list[RunRecord], str | None]]:
        asked = Filter({**wanted, "limit": PAGE_RUNS}).run_filter()

        def question(reader: Reader) -> tuple[list[RunRecord], str | None]:
            page = read_runs(reader, asked)
            return [record for record in page if may(reader, record)], page.next_cursor

        return self._read(question)

    cancel_runs = blocking_script(_script_cancel_runs)
    acancel_runs = awaiting_script(_script_cancel_runs)
    retry_runs = blocking_script(_script_retry_runs)
    aretry_runs = awaiting_script(_script_retry_runs)


def _any(reader: Reader, record: RunRecord) -> bool:
    del reader, record
    return True


def _is_newest(reader: Reader, record: RunRecord) -> bool:
    """Whether nothing was retried in its place."""
    return all(row[19] != record.id.bytes for row in reader.runs_of(record.task_id.bytes))


def _is_queued(reply: Any) -> bool:
    """Whether the command waits for an engine. Raises what is neither that nor a run that changed meanwhile."""
    if isinstance(reply, NoEngine) and reply.facts.get("queued"):
        return True
    if isinstance(reply, ActionQueueError) and not isinstance(reply, Conflict | NotFound):
        raise reply
    return False
