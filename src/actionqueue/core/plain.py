"""Records as plain values, as JSON has them, and back: ids as text, instants as RFC 3339 in UTC."""

from __future__ import annotations

from typing import Any, TypeVar
from uuid import UUID

import msgspec

from actionqueue.core.ids import Id

T = TypeVar("T")


def plain(value: Any) -> Any:
    """Records as plain values.

    >>> from actionqueue.core.ids import RunId
    >>> plain((RunId("018bcfe5-6800-7000-8000-000000000001"), 1))
    ('018bcfe5-6800-7000-8000-000000000001', 1)
    """
    return msgspec.to_builtins(value, enc_hook=_from_id)


def parsed(value: Any, kind: type[T]) -> T:
    """A record from plain values."""
    return msgspec.convert(value, kind, dec_hook=_to_id)


def _from_id(value: Any) -> Any:
    if isinstance(value, UUID):
        return str(value)
    raise NotImplementedError(type(value).__name__)


def _to_id(kind: type, value: Any) -> Any:
    if issubclass(kind, Id):
        return kind(value)
    raise NotImplementedError(kind.__name__)
