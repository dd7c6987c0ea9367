"""What a handler says to go on where it was: durable steps, sleeps, and waits for signals.

Knows: how these read in a handler, plain or async. Must not know: how they are kept (``executors/memory.py``).
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import msgspec

from actionqueue.core.awaiting import SIGNAL, SLEEP, WaitAsked
from actionqueue.core.awaiting import Signal as KeptSignal
from actionqueue.core.errors import SignalTimeout
from actionqueue.core.instants import parse_duration_us
from actionqueue.core.records import STEP
from actionqueue.core.spec import text_problem
from actionqueue.core.waits import TIMED_OUT, WaitRecord, wait_record
from actionqueue.executors.memory import Memory, memory_of
from actionqueue.executors.port import AttemptControl
from actionqueue.records import signal_of
from actionqueue.signature import decode_hook, encode_hook

_encode = msgspec.json.Encoder(enc_hook=encode_hook).encode
_MISSING: Any = ...


class Durable:
    """The part of ``Context`` that outlives an attempt."""

    __slots__ = ()
    _control: AttemptControl

    def step(self, name: str, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """The result of ``fn(*args, **kwargs)``, from the record of an earlier attempt if there is one.

        In an async handler await it; ``fn`` may be async there. The result (a JSON value, or what ``fn`` is annotated to
        return; at most 1 MiB encoded) is durable before this returns: no later attempt of the run, nor of a retry of
        it, calls ``fn`` again. A crash between its end and the record does, so ``fn`` is best given
        ``ctx.idempotency_token``. What ``fn`` raises is not recorded. Raises ``DuplicateStep`` for a name that was used
        before in this attempt, ``StepTooLarge``, ``LimitExceeded`` past 10,000 records.

        >>> from actionqueue import CONTEXT, ActionQueue, Context
        >>> queue = ActionQueue(":memory:")
        >>> @queue.task
        ... def order(item: str, *, ctx: Context = CONTEXT) -> str:
        ...     price = ctx.step("price", lambda: 42)
        ...     return f"{item} for {price}"
        """
        memory = memory_of(self._control)
        if self._is_async:
            return _astep(memory, name, fn, args, kwargs)
        found = memory.recall(name, STEP)
        if found is None:
            found = _encode(fn(*args, **kwargs))
            memory.record(name, found)
        return _decoded(found, fn)

    def sleep(self, duration: timedelta | float | str, *, name: str | None = None) -> Any:
        """Go on after ``duration`` (a timedelta, seconds, or text such as "3d"), without holding a worker.

        Ends the attempt; when the time has passed the handler is run again from its first line, and this returns at
        once. In an async handler await it.
        """
        after_us = parse_duration_us(duration, field="duration")
        return self._maybe_later(lambda: _sleep(memory_of(self._control), after_us, name))

    def receive(
        self,
        signal: str,
        *,
        key: str | int | None = None,
        timeout: timedelta | float | str | None = None,
        default: Any = _MISSING,
        name: str | None = None,
    ) -> Any:
        """The next ``Signal`` of that name and key (a number is taken as its text) that came to no earlier wait of the run.

        Ends the attempt unless the answer is recorded; when the signal comes the handler is run again from its first
        line, and this returns it at once. A signal that is kept from before serves too. In an async handler await it.
        After ``timeout`` (a timedelta, seconds, or text such as "3d", from the end of the attempt on) the wait is over:
        that is recorded, and this returns ``default``, or raises ``SignalTimeout`` without one. Such waits without a
        ``name`` are told apart by their order in the code.
        """
        address = signal, None if key is None else str(key)
        for what, value in zip(("signal", "key"), address, strict=True):
            if value is not None and (problem := text_problem(value)) is not None:
                raise ValueError(f"the {what} to wait for is {problem}")
        after_us = None if timeout is None else parse_duration_us(timeout, field="timeout")

        def receive() -> Any:
            memory = memory_of(self._control)
            identity = memory.name_of("receive", name)
            found = memory.recall(identity, SIGNAL)
            if found is None:
                memory.wait(WaitAsked(SIGNAL, identity, after_us, *address, memory.served(address)))
                raise AssertionError("a wait ends the attempt")
            return _received(wait_record(found), signal, default)

        return self._maybe_later(receive)

    @property
    def _is_async(self) -> bool:
        return self._control.assignment.runnable.is_async

    def _maybe_later(self, call: Callable[[], Any]) -> Any:
        """Now, or, in an async handler, when it is awaited."""
        return _later(call) if self._is_async else call()


async def _later(call: Callable[[], Any]) -> Any:
    return call()


async def _astep(
    memory: Memory, name: str, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    found = memory.recall(name, STEP)
    if found is None:
        value = fn(*args, **kwargs)
        if inspect.isawaitable(value):
            value = await value
        found = _encode(value)
        await memory.arecord(name, found)
    return _decoded(found, fn)


def _sleep(memory: Memory, after_us: int, name: str | None) -> None:
    identity = memory.name_of("sleep", name)
    if memory.recall(identity, SLEEP) is None:
        memory.wait(WaitAsked(SLEEP, identity, after_us))


def _received(record: WaitRecord, signal: str, default: Any) -> Any:
    if record.how == TIMED_OUT:
        if default is _MISSING:
            raise SignalTimeout(f"signal {signal!r} did not come in time", signal=signal)
        return default
    kept = KeptSignal(
        record.order, record.sent_at, record.id, record.signal, record.key, record.payload, record.by
    )  # fmt: skip
    return signal_of(kept)


def _decoded(body: bytes, fn: Callable[..., Any]) -> Any:
    """A result as its record has it, the first time too, so that the code sees the same each time."""
    kind: Any = Any
    try:
        kind = typing.get_type_hints(fn).get("return", Any)
        return msgspec.json.decode(body, type=kind, dec_hook=decode_hook)
    except (TypeError, NameError, AttributeError, ValueError, msgspec.ValidationError):
        return msgspec.json.decode(body)
