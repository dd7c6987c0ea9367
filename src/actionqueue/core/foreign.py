"""Commands that another process sent: what it cannot know is forgotten, what names nothing is refused.

Knows: which fields of commands are ids, and which are looked up by the engine. Must not know: what the commands mean;
whoever decides them looks at the rest.
"""

from __future__ import annotations

from copy import copy
from typing import Any

from actionqueue.core.errors import InvalidSubmission
from actionqueue.core.ids import NIL

ID_FIELDS = ("run_id", "task_id", "new_run_id", "id")
"""Fields that hold an id as bytes, in commands that have them."""
LOOKED_UP: dict[str, Any] = {
    "known": None, "known_state": None, "known_keys": {}, "known_tasks": {},
    "known_dependents": [],
}  # fmt: skip
"""Fields that the engine fills in from its store, and what is in them before."""


def admit(command: Any) -> InvalidSubmission | None:
    """Forget what only this engine may say in ``command``; the refusal, when an id in it is not one."""
    fields = command.__struct_fields__
    for name in LOOKED_UP.keys() & set(fields):
        empty = False if isinstance(getattr(command, name), bool) else LOOKED_UP[name]
        setattr(command, name, copy(empty))
    for name in ID_FIELDS:
        value = getattr(command, name, None) if name in fields else None
        if value is not None and len(value) != len(NIL):
            return InvalidSubmission(f"{name}: not an id of 16 bytes", problems={name: "not an id of 16 bytes"})
    return None
