"""Submitting by a handler's name, without its function at hand: from the command line, over HTTP.

What is left unset stays unset in the submission: the engine fills it in from the handler's last declaration. Only keys
are filled in here, since they are made of the arguments, which the core does not read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from msgspec import json, msgpack

from actionqueue.core.errors import InvalidArguments, InvalidSubmission
from actionqueue.core.ids import TaskId, fresh_id_bytes
from actionqueue.core.instants import instant_us, parse_duration_us
from actionqueue.core.spec import NO_OPTIONS, Depends, Submission, TaskOptions, validate
from actionqueue.core.state import Declaration
from actionqueue.depending import upstream_ids
from actionqueue.store.codec import digest
from actionqueue.templates import NeedTemplates, Wanted

_canonical = json.Encoder(order="deterministic").encode
_packed = msgpack.Encoder(order="deterministic").encode


def submission_by_name(
    handler: str,
    arguments: Mapping[str, Any],
    *,
    declared: Declaration | None = None,
    at: datetime | None = None,
    delay: timedelta | float | str | None = None,
    queue: str | None = None,
    priority: int | None = None,
    max_attempts: int | None = None,
    expires: timedelta | float | str | None = None,
    idempotency_key: str | None = None,
    tags: Iterable[str] = (),
    depends_on: Iterable[TaskId | UUID | str] = (),
    on_upstream_failure: Literal["cancel", "run"] = "cancel",
) -> Submission:
    """A task of the handler with that name, its arguments by name as JSON values; not submitted yet.

    Raises ``InvalidSubmission`` naming every problem, ``InvalidArguments`` when they do not fit what the handler
    ``declared`` (its last declaration, if there is one), ``PayloadTooLarge``.
    """
    if at is not None and delay is not None:
        raise InvalidSubmission("give at or delay, not both", problems={"delay": "given together with at"})
    if declared is not None:
        _check_names(handler, arguments, declared.signature)
    try:
        body = json.encode(arguments)
    except (TypeError, ValueError) as error:
        raise InvalidArguments(
            f"the arguments of {handler!r} are not JSON: {error}", problems={"args": str(error)}
        ) from error
    tags = tuple(tags)
    options = TaskOptions(tags=tags) if tags else None
    if declared is not None and (wanted := Wanted(declared.limits, declared.rates, declared.hold)):
        needs = NeedTemplates(wanted, None, handler)
        options = needs.options(options or NO_OPTIONS, json.decode(body), declared.defaults)
    item = Submission(
        fresh_id_bytes(),
        fresh_id_bytes(),
        handler,
        body,
        digest(body),
        queue,
        priority,
        max_attempts,
        None if at is None else instant_us(at, field="at"),
        None if delay is None else parse_duration_us(delay, field="delay"),
        options,
        idempotency_key,
        expires_us=None if expires is None else parse_duration_us(expires, field="expires"),
    )
    upstreams = upstream_ids(depends_on)
    if upstreams:
        item.depends = Depends(upstreams, on_upstream_failure)
    if idempotency_key is not None:
        policy = json.encode([item.at_us, item.delay_us])
        waits = () if item.depends is None else (_packed(item.depends),)
        item.content = digest(b"\0".join((handler.encode(), _canonical(arguments), policy, *waits)))
    validate(item)
    return item


def _check_names(handler: str, arguments: Mapping[str, Any], signature: str) -> None:
    """Whether these are the handler's parameters: a declaration lists their names, optional ones with a mark."""
    marked = [name for name in signature.split(", ") if name]
    required = [name for name in marked if not name.endswith("?")]
    known = {name.rstrip("?") for name in marked}
    problems = {name: "is missing" for name in required if name not in arguments}
    problems |= {name: "is no parameter" for name in arguments if name not in known}
    if problems:
        listed = "; ".join(f"{name} {problem}" for name, problem in problems.items())
        takes = ", ".join(marked) or "no arguments"
        raise InvalidArguments(f"{handler}: {listed}; it takes: {takes}", problems=problems)
