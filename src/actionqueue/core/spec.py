"""What a task is before it is submitted: plain data, validated whole.

Knows the fields, their limits and what is wrong with them; knows nothing of runs or state. Every limit is a named
constant with its unit, and a refusal names all problems at once, each with its field.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct, field

from actionqueue.core.errors import InvalidSubmission, LimitExceeded, PayloadTooLarge
from actionqueue.core.ids import NIL, TaskId
from actionqueue.core.instants import SUBMIT_INSTANT_MAX
from actionqueue.core.needs import KeyNeed, Limit, Rate, RateNeed, need_problems
from actionqueue.core.retry import ATTEMPTS_MAX, Backoff
from actionqueue.core.rules import Rule, rule_problems
from actionqueue.core.timetables import Cron, Repeat

PAYLOAD_BYTES_MAX = 1024 * 1024
"""Encoded arguments, in bytes."""

RESULT_BYTES_MAX = 1024 * 1024
"""An encoded result, in bytes (a handler may declare another bound)."""

NAME_CHARACTERS_MAX = 200
"""The name of a handler or a queue."""

KEY_CHARACTERS_MAX = 250
"""An idempotency key."""

TAGS_MAX = 20
"""Tags of one task."""

TAG_CHARACTERS_MAX = 100
"""A tag."""

METADATA_BYTES_MAX = 8 * 1024
"""The metadata of a task, encoded as JSON."""

DESCRIPTION_CHARACTERS_MAX = 1000
"""The description of a task."""

SUBMIT_MANY_MAX = 10_000
"""Tasks in one submission (one commit)."""

DEPENDENCIES_MAX = 10_000
"""Tasks that one task may depend on."""

OUTPUTS_MAX = 10_000
"""Places in the arguments of one task where results are put."""

PATH_STEPS_MAX = 100
"""How deep in the arguments such a place may lie."""

PRIORITY_MIN, PRIORITY_MAX = -(2**31), 2**31 - 1
DURATION_US_MAX = 100 * 366 * 86_400_000_000
DEFAULT_QUEUE = "default"


class Once(Struct, frozen=True, tag="once", array_like=True, gc=False):
    """One run: now, at ``at_us`` (microseconds since the epoch), or ``delay_us`` after submission; not both."""

    at_us: int | None = None
    delay_us: int | None = None


NOW = Once()
Policy = Once | Repeat | Cron


class OutputPlace(Struct, frozen=True, array_like=True, gc=False):
    """Where in a task's arguments the result of a task it depends on is put as it starts.

    ``path`` leads there from the arguments by name: names, keys and indexes. ``upstream`` is the index in
    ``Depends.on``; ``is_bytes`` says that the result is bytes rather than JSON.
    """

    path: tuple[str | int, ...]
    upstream: int
    is_bytes: bool = False


class Depends(Struct, frozen=True, array_like=True):
    """What a task waits for: that these tasks have ended, all their runs completed (``partial``: at least one).

    ``on_failure`` says what follows where one of them ends otherwise: ``cancel`` it, or ``run`` it all the same.
    """

    on: tuple[bytes, ...]
    on_failure: str = "cancel"
    partial: bool = False
    outputs: tuple[OutputPlace, ...] = ()


class BatchHead(Struct, frozen=True, array_like=True):
    """What tasks that are submitted together are known by: an id, perhaps a name, and the task that follows them all."""

    id: bytes
    name: str = ""
    callback: bytes | None = None


class TaskConstraints(Struct, frozen=True):
    """How a task's runs are tried. Written out it means one attempt; handlers declare three by default.

    ``timeout_us`` and ``expires_us`` (the deadline to start, after submission) are microseconds > 0. ``timeout_us``
    and ``backoff`` left unset are read from the registered handler at each start. ``concurrency_key`` (capacity 1),
    ``limits`` and ``rates`` name keys as they are, without templates; ``hold`` lists the states over which keys are kept.
    """

    max_attempts: int = 1
    timeout_us: int | None = None
    backoff: Backoff | None = None
    expires_us: int | None = None
    queue: str = DEFAULT_QUEUE
    concurrency_key: str | None = None
    limits: tuple[Limit, ...] = ()
    rates: tuple[Rate, ...] = ()
    hold: tuple[str, ...] = ()


class TaskMetadata(Struct, frozen=True):
    """What describes a task: tags, priority (larger first), a description, and any JSON under text keys."""

    tags: tuple[str, ...] = ()
    priority: int = 0
    description: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)


class TaskSpec(Struct, frozen=True, kw_only=True):
    """Durable intent, in its low-level form: opaque bytes, explicit policy and constraints.

    >>> TaskSpec(handler="resize", payload=b"{}").constraints.max_attempts
    1
    """

    handler: str
    payload: bytes = b"{}"
    content_type: str = "application/json"
    policy: Policy = NOW
    constraints: TaskConstraints = TaskConstraints()
    metadata: TaskMetadata = TaskMetadata()
    id: TaskId | None = None
    idempotency_key: str | None = None
    idempotency_lifetime_us: int | None = None
    depends_on: tuple[TaskId, ...] = ()
    on_upstream_failure: str = "cancel"
    allow_partial: bool = False


class Submission(Struct, array_like=True):
    """One task as it is sent to the engine: ids chosen, arguments encoded, what was left unset still None.

    ``delay_us`` and ``at_us`` exclude each other. ``content`` is the digest that an idempotency key compares.
    ``payload_digest`` is computed by the sender, so that the bytes are hashed off the writer's thread.
    """

    task_id: bytes
    run_id: bytes
    handler: str
    body: bytes
    payload_digest: bytes
    queue: str | None = None
    priority: int | None = None
    max_attempts: int | None = None
    at_us: int | None = None
    delay_us: int | None = None
    options: TaskOptions | None = None
    key: str | None = None
    key_lifetime_us: int | None = None
    content: bytes | None = None
    task_id_given: bool = False
    expires_us: int | None = None
    rule: Rule | None = None
    schedule_name: str = ""
    schedule_origin: str = ""
    depends: Depends | None = None


class TaskOptions(Struct, frozen=True, omit_defaults=True):
    """What few tasks have: kept apart so that the common task stays small."""

    timeout_us: int | None = None
    backoff: Backoff | None = None
    tags: tuple[str, ...] = ()
    metadata: dict[str, Any] | None = None
    description: str | None = None
    content_type: str | None = None
    limits: tuple[KeyNeed, ...] = ()
    rates: tuple[RateNeed, ...] = ()
    hold: tuple[str, ...] = ()


NO_OPTIONS = TaskOptions()


def name_problem(value: object) -> str | None:
    """What is wrong with the name of a handler or a queue."""
    return text_problem(value, NAME_CHARACTERS_MAX)


def text_problem(value: object, characters_max: int = NAME_CHARACTERS_MAX) -> str | None:
    """What is wrong with a name, key or tag, if anything."""
    if not isinstance(value, str) or not value:
        return "not a non-empty text"
    if len(value) > characters_max:
        return f"longer than {characters_max} characters"
    if any(ord(c) < 32 for c in value):
        return "has control characters"
    return _encoding_problem(value)


def _encoding_problem(value: str) -> str | None:
    try:
        value.encode()
    except UnicodeEncodeError:
        return "holds half a surrogate pair, which cannot be stored"
    return None


def _kind_problem(value: object, kind: Any, what: str) -> str | None:
    """A value of another kind would be recorded, and could not be read again."""
    return None if value is None or isinstance(value, kind) else f"not {what}"


def _id_problem(value: bytes) -> str | None:
    return "not 16 bytes, or nil" if len(value) != len(NIL) or value == NIL else None


def _whole_problem(value: object, low: int, high: int) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        return f"not a whole number from {low} to {high}"
    return None


def submission_problems(item: Submission) -> dict[str, str]:
    """Every problem of one submission that needs no state to see, by field."""
    problems: dict[str, str | None] = {
        "handler": text_problem(item.handler, NAME_CHARACTERS_MAX),
        "task_id": _id_problem(item.task_id),
        "run_id": _id_problem(item.run_id),
    }
    if item.queue is not None:
        problems["queue"] = text_problem(item.queue, NAME_CHARACTERS_MAX)
    if item.priority is not None:
        problems["priority"] = _whole_problem(item.priority, PRIORITY_MIN, PRIORITY_MAX)
    if item.max_attempts is not None:
        problems["max_attempts"] = _whole_problem(item.max_attempts, 1, ATTEMPTS_MAX)
    if item.at_us is not None or item.delay_us is not None:
        problems |= _instant_problems(item)
    if item.rule is not None:
        problems |= _schedule_problems(item, item.rule)
    if item.depends is not None:
        problems |= depends_problems(item.depends)
    if item.expires_us is not None:
        problems["expires"] = _whole_problem(item.expires_us, 1, DURATION_US_MAX)
    if item.key is not None:
        problems["idempotency_key"] = text_problem(item.key, KEY_CHARACTERS_MAX)
    if item.key_lifetime_us is not None:
        problems["idempotency_lifetime"] = (
            "given without idempotency_key"
            if item.key is None
            else _whole_problem(item.key_lifetime_us, 1, DURATION_US_MAX)
        )
    if item.options is not None:
        problems |= option_problems(item.options)
    return {name: problem for name, problem in problems.items() if problem is not None}


def _instant_problems(item: Submission) -> dict[str, str | None]:
    problems: dict[str, str | None] = {}
    if item.at_us is not None:
        problems["at"] = _whole_problem(item.at_us, 0, SUBMIT_INSTANT_MAX)
    if item.delay_us is not None:
        both = item.at_us is not None
        problems["delay"] = "given together with at" if both else _whole_problem(item.delay_us, 0, DURATION_US_MAX)
    return problems


def _schedule_problems(item: Submission, rule: Rule) -> dict[str, str | None]:
    problems: dict[str, str | None] = {**rule_problems(rule)}
    if item.depends is not None:
        problems["schedule"] = "given together with depends_on: what depends on others runs once, after them"
    if item.at_us is not None or item.delay_us is not None:
        problems["schedule"] = "given together with at or delay"
    if item.schedule_name:
        problems["name"] = text_problem(item.schedule_name)
    return problems


def depends_problems(depends: Depends) -> dict[str, str | None]:
    """What is wrong with dependencies, by field."""
    problems: dict[str, str | None] = {}
    on = depends.on
    if not on or len(on) > DEPENDENCIES_MAX:
        problems["depends_on"] = f"{len(on)} tasks; give 1 to {DEPENDENCIES_MAX}"
    elif len(set(on)) < len(on) or any(_id_problem(each) for each in on):
        problems["depends_on"] = "not ids of 16 bytes, each once"
    if depends.on_failure not in ("cancel", "run"):
        problems["on_upstream_failure"] = "give cancel or run"
    if len(depends.outputs) > OUTPUTS_MAX:
        problems["arguments"] = f"results are put into them in {len(depends.outputs)} places; {OUTPUTS_MAX} may be"
    elif any(not _is_place(each, len(on)) for each in depends.outputs):
        problems["arguments"] = "a result is put where no argument is"
    return problems


def _is_place(place: OutputPlace, upstreams: int) -> bool:
    steps = all(isinstance(step, str) or 0 <= step < PAYLOAD_BYTES_MAX for step in place.path)
    return steps and 0 < len(place.path) <= PATH_STEPS_MAX and 0 <= place.upstream < upstreams


def option_problems(options: TaskOptions) -> dict[str, str | None]:
    """Every problem of the rarer options, by field."""
    problems: dict[str, str | None] = {}
    if options.timeout_us is not None:
        problems["timeout"] = _whole_problem(options.timeout_us, 1, DURATION_US_MAX)
    problems["backoff"] = _kind_problem(options.backoff, Backoff, "fixed(…), exponential(…) or delays(…)")
    if len(options.tags) > TAGS_MAX:
        problems["tags"] = f"more than {TAGS_MAX}"
    for n, tag in enumerate(options.tags):
        problems[f"tags[{n}]"] = text_problem(tag, TAG_CHARACTERS_MAX)
    problems["metadata"] = _kind_problem(options.metadata, dict, "a mapping from texts to JSON values")
    problems["description"] = _kind_problem(options.description, str, "a text")
    if isinstance(options.description, str) and len(options.description) > DESCRIPTION_CHARACTERS_MAX:
        problems["description"] = f"longer than {DESCRIPTION_CHARACTERS_MAX} characters"
    elif isinstance(options.description, str):
        problems["description"] = _encoding_problem(options.description)
    if options.content_type is not None:
        problems["content_type"] = text_problem(options.content_type, NAME_CHARACTERS_MAX)
    if options.limits or options.rates or options.hold:
        problems |= need_problems(options.limits, options.rates, options.hold)
    return problems


def validate(item: Submission, payload_bytes_max: int = PAYLOAD_BYTES_MAX) -> None:
    """Raise ``InvalidSubmission`` naming every problem, or ``PayloadTooLarge``; return when there is none."""
    if len(item.body) > payload_bytes_max:
        raise PayloadTooLarge(
            f"the arguments of {item.handler} take {len(item.body)} bytes; payload_bytes_max is {payload_bytes_max}. "
            "Store the data elsewhere and submit a reference to it.",
            limit="payload_bytes_max",
            maximum=payload_bytes_max,
            actual=len(item.body),
        )
    problems = submission_problems(item)
    if problems:
        listed = "; ".join(f"{name}: {problem}" for name, problem in problems.items())
        raise InvalidSubmission(f"the submission of {item.handler!r} is not valid: {listed}", problems=problems)


def check_count(count: int, maximum: int = SUBMIT_MANY_MAX) -> None:
    """Raise when one submission holds no task or too many."""
    if count > maximum:
        raise LimitExceeded(
            f"{count} tasks in one submission; submit_many_max is {maximum}. Submit them in parts.",
            limit="submit_many_max",
            maximum=maximum,
            actual=count,
        )


def policy_of(policy: object) -> tuple[Once, Rule | None]:
    """A policy as it is recorded: when its run is due, or the rule of its schedule. Raises ``InvalidSubmission``."""
    if isinstance(policy, Once):
        return policy, None
    if isinstance(policy, Repeat | Cron):
        return NOW, policy.rule()
    raise InvalidSubmission(
        "policy: give Once(…), Repeat(…) or Cron(…)", problems={"policy": f"is a {type(policy).__name__}"}
    )
