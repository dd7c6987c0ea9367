"""Results put into arguments: what a task that takes the outputs of others is started with.

Read as the task starts, once what it waited for is durable: from the run that completed where that was lately, else by the
rows of the upstream task. A result is spliced in as it is stored (JSON, not decoded and encoded again), bytes as base64,
which is how JSON arguments carry them. One that is not there (the upstream failed, and the task runs all the same; or it
returned nothing) is null.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from msgspec import Raw, json

from actionqueue.core.errors import PayloadTooLarge, StoreDamaged, UnknownTask
from actionqueue.core.ids import TaskId
from actionqueue.core.spec import Depends, OutputPlace
from actionqueue.core.state import COMPLETED, Output
from actionqueue.engine import lookups
from actionqueue.engine.work import Joining
from actionqueue.store.codec import digest
from actionqueue.store.port import Reader

JOINED_BYTES_MAX = 64 * 1024 * 1024
"""Arguments of one task with the results put into them, in bytes."""


def read_results(reader: Reader, joining: Joining) -> dict[bytes, bytes | None]:
    """The stored results of what the task takes outputs from, by task. Raises ``StoreDamaged``, and
    ``UnknownTask`` for one that was pruned."""
    on = joining.depends.on
    upstreams = {on[place.upstream] for place in joining.depends.outputs}
    found: dict[bytes, bytes | None] = {}
    wanted: dict[bytes, tuple[bytes, Output]] = {}
    for upstream in sorted(upstreams):
        if upstream in joining.lately:
            run_id, output = joining.lately[upstream]
            found[upstream] = None
            if output is not None:
                wanted[upstream] = run_id, output
        else:
            ended = lookups.ended(reader, upstream)
            if ended is None:
                raise UnknownTask(f"the result of task {TaskId(bytes=upstream)} is needed, and was pruned")
            found[upstream] = ended.body if ended.state == COMPLETED else None
    bodies = reader.blobs([run_id for run_id, _ in wanted.values()]) if wanted else {}
    for upstream, (run_id, output) in wanted.items():
        body = bodies.get(run_id)
        if body is None or digest(body) != output.digest:
            raise StoreDamaged(
                "a stored result does not match its digest: bytes of the store changed on disk",
                place=f"blobs {run_id.hex()}",
            )
        found[upstream] = body
    return found


def join(payload: bytes, depends: Depends, results: Mapping[bytes, bytes | None]) -> bytes:
    """The arguments with the results in their places. Raises ``PayloadTooLarge``."""
    size = len(payload) + sum(len(results[depends.on[place.upstream]] or b"") for place in depends.outputs)
    if size > JOINED_BYTES_MAX:
        raise PayloadTooLarge(
            f"the arguments take {size} bytes with the results of what the task depends on; joined_bytes_max is "
            f"{JOINED_BYTES_MAX}. Return references to the data instead.",
            limit="joined_bytes_max",
            maximum=JOINED_BYTES_MAX,
            actual=size,
        )
    arguments = json.decode(payload)
    for place in depends.outputs:
        _put(arguments, place, results[depends.on[place.upstream]])
    return json.encode(arguments)


def _put(arguments: Any, place: OutputPlace, body: bytes | None) -> None:
    here = arguments
    for step in place.path[:-1]:
        here = here[step]
    value: Any = None
    if body is not None:
        value = base64.b64encode(body).decode() if place.is_bytes else Raw(body)
    here[place.path[-1]] = value
