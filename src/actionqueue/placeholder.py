"""``handle.output``: what stands in arguments for a result that is not there yet.

Typed as the result itself, so that passing it on type-checks; anything else that is done with it raises ``NotYetAResult``.
``take_out`` finds the placeholders in arguments and says where the results go.

Knows: the placeholder, and how it is taken out of arguments. Must not know: how results get there; ``engine/outputs.py``.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import msgspec

from actionqueue.core.errors import NotYetAResult
from actionqueue.core.ids import TaskId
from actionqueue.core.spec import OutputPlace


class Placeholder:
    """The result that a task will have. Made by ``handle.output``."""

    __slots__ = ("_is_bytes", "_task_id")

    def __init__(self, task_id: bytes, *, is_bytes: bool) -> None:
        self._task_id = task_id
        self._is_bytes = is_bytes

    def __repr__(self) -> str:
        return f"<output of task {TaskId(bytes=self._task_id)}>"

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):  # what copying, pickling and inspecting look for
            raise AttributeError(name)
        raise refusal(self)


def refusal(placeholder: object, what: str = "it can be passed on as an argument, and no more") -> NotYetAResult:
    """The error about a placeholder that is used as if it were the result."""
    return NotYetAResult(f"{placeholder!r} is not there yet; {what} (result() waits for it)")


def _refuse(self: Placeholder, *args: object) -> NoReturn:
    raise refusal(self)


for _name in (
    "str", "bool", "len", "iter", "next", "getitem", "setitem", "contains", "call", "int", "float", "index", "bytes",
    "format", "eq", "ne", "lt", "le", "gt", "ge", "add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv",
    "floordiv", "mod", "neg", "pos", "abs", "and", "or", "xor", "invert", "await", "enter", "aenter", "aiter", "hash",
):  # fmt: skip
    setattr(Placeholder, f"__{_name}__", _refuse)


class Found(msgspec.Struct):
    """Arguments without their placeholders: plain values with None in those places, and where each was."""

    values: dict[str, Any]
    on: list[bytes]
    """The tasks whose results are taken, each once."""
    places: list[OutputPlace]

    @property
    def names(self) -> set[str]:
        """The parameters that have a placeholder in them."""
        return {str(place.path[0]) for place in self.places}


class Joined(bytes):
    """Encoded arguments, with where results are put into them as their task starts."""

    found: Found


def take_out(values: Mapping[str, Any], encode_hook: Callable[[Any], Any]) -> Found:
    """Find the placeholders in arguments: in lists, tuples, values of mappings, fields of dataclasses and structs.

    Raises what msgspec raises where the arguments are not JSON.
    """
    mark = f"\0{secrets.token_hex(8)}:"
    placeholders: list[Placeholder] = []

    def hook(value: Any) -> Any:
        if isinstance(value, Placeholder):
            placeholders.append(value)
            return f"{mark}{len(placeholders) - 1}"
        return encode_hook(value)

    plain = msgspec.to_builtins(dict(values), enc_hook=hook, str_keys=True)
    on: dict[bytes, int] = {}
    places: list[OutputPlace] = []

    def walk(here: Any, path: tuple[str | int, ...]) -> Any:
        if isinstance(here, str) and here.startswith(mark):
            found = placeholders[int(here.removeprefix(mark))]
            upstream = on.setdefault(found._task_id, len(on))  # noqa: SLF001 - of this module
            places.append(OutputPlace(path, upstream, found._is_bytes))  # noqa: SLF001
            return None
        if isinstance(here, dict):
            return {key: walk(value, (*path, key)) for key, value in here.items()}
        if isinstance(here, list | tuple):
            return [walk(value, (*path, n)) for n, value in enumerate(here)]
        return here

    return Found(walk(plain, ()), list(on), places)
