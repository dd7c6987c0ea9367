"""A registered function as executors run it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from actionqueue.context import Context
from actionqueue.executors.port import Assignment, AttemptControl, Misfit
from actionqueue.signature import Signature


class Handler:
    """One function under one name. Implements ``executors.port.Runnable``."""

    __slots__ = (
        "function", "is_async", "locator", "name", "no_retry_on", "resources_factory", "result_bytes_max", "signature",
    )  # fmt: skip

    def __init__(
        self,
        function: Callable[..., Any],
        name: str,
        *,
        no_retry_on: tuple[type[BaseException], ...],
        result_bytes_max: int,
        resources_factory: Callable[[], Any] | None,
    ) -> None:
        self.function = function
        self.name = name
        self.is_async = inspect.iscoroutinefunction(function)
        self.signature = Signature(function, name, Context)
        self.no_retry_on = no_retry_on
        self.result_bytes_max = result_bytes_max
        self.resources_factory = resources_factory
        self.locator = f"{function.__module__}:{function.__qualname__}"

    def bind(self, assignment: Assignment, control: AttemptControl) -> Callable[[], Any]:
        """Decode the arguments; the answer calls the function. Raises ``Misfit``."""
        try:
            args, kwargs = self.signature.decode(assignment.payload)
        except Exception as error:
            raise Misfit(f"the stored arguments do not fit {self.name}: {error}") from error
        function = self.function
        context_name = self.signature.context_name
        if context_name is not None:
            kwargs = {**kwargs, context_name: Context(control, control.resources)}
        if kwargs:
            return lambda: function(*args, **kwargs)
        return lambda: function(*args)

    def encode(self, value: Any) -> bytes | None:
        """The result as bytes."""
        return self.signature.encode_result(value)

    def same_source(self, other: Handler) -> bool:
        """Whether ``other`` is a newer version of the same function (a notebook cell run again, a reload)."""
        return self.locator == other.locator
