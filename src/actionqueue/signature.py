"""A function's parameters as a wire format: arguments to JSON and back, checked against the annotations.

Arguments are stored by name as JSON. They are encoded and decoded once at submission, so what a handler will get is
exactly what was checked. Annotations may be anything msgspec knows (standard types, dataclasses, msgspec structs) and,
when pydantic is installed, its models. An unannotated parameter takes any JSON value.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from actionqueue.core.errors import InvalidArguments, InvalidSubmission
from actionqueue.placeholder import Joined, Placeholder, take_out
from actionqueue.templates import scalar_text

_EMPTY = inspect.Parameter.empty


class _HasPlaceholder(Exception):
    """Among the arguments is the output of a task, which is not there yet."""


def encode_hook(value: Any) -> Any:
    """What msgspec does not know: pydantic models."""
    if isinstance(value, Placeholder):
        raise _HasPlaceholder
    dump = getattr(value, "model_dump", None)
    if dump is not None:
        return dump(mode="json")
    raise NotImplementedError(f"{type(value).__qualname__} cannot be encoded as JSON")


def decode_hook(kind: type, value: Any) -> Any:
    """The way back for those."""
    validate = getattr(kind, "model_validate", None)
    if validate is not None:
        return validate(value)
    if isinstance(value, kind):
        return value
    raise NotImplementedError(f"{kind.__qualname__} cannot be decoded from JSON")


_UNFIT = (msgspec.MsgspecError, TypeError, ValueError, NotImplementedError, RecursionError, OverflowError)
"""What encoding and checking raise where arguments do not fit."""
_encode = msgspec.json.Encoder(enc_hook=encode_hook).encode
_encode_canonical = msgspec.json.Encoder(enc_hook=encode_hook, order="deterministic").encode


class Signature:
    """One function's parameters and result.

    Raises ``InvalidSubmission`` at declaration for ``*args``, ``**kwargs`` and positional-only parameters.
    """

    __slots__ = (
        "_args_decoder", "_defaults", "_keyword_only", "_kinds", "_names", "_positional", "_result_decoder", "context_name",
        "name", "required", "returns_bytes",
    )  # fmt: skip

    def __init__(self, function: Callable[..., Any], name: str, context_type: type) -> None:
        self.name = name
        hints = _hints(function)
        self.context_name: str | None = None
        self._names: list[str] = []
        self._positional: list[str] = []
        self._keyword_only: list[str] = []
        self._defaults: dict[str, Any] = {}
        fields: list[tuple[str, Any]] = []
        for parameter in _parameters(function, name):
            annotation = hints.get(parameter.name, Any)
            if annotation is context_type:
                self.context_name = parameter.name
                continue
            self._check_kind(parameter)
            target = self._keyword_only if parameter.kind is parameter.KEYWORD_ONLY else self._positional
            target.append(parameter.name)
            self._names.append(parameter.name)
            if parameter.default is not _EMPTY:
                self._defaults[parameter.name] = parameter.default
            fields.append((parameter.name, annotation))
        self._kinds = dict(fields)
        self.required = [each for each in self._names if each not in self._defaults]
        self._args_decoder = self._make_decoder(fields)
        returns = hints.get("return", Any)
        self.returns_bytes = returns is bytes
        self._result_decoder = _result_decoder(returns)

    def _check_kind(self, parameter: inspect.Parameter) -> None:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise InvalidSubmission(
                f"{self.name}: parameter {parameter} cannot be stored by name; give it a name of its own, or take a "
                "list or dict",
                problems={parameter.name: "cannot be stored by name"},
            )

    def _make_decoder(self, fields: list[tuple[str, Any]]) -> msgspec.json.Decoder[Any]:
        try:
            struct = msgspec.defstruct(
                "Arguments",
                [self._field(name, kind) for name, kind in fields],
                kw_only=True,
                forbid_unknown_fields=True,
            )
            return msgspec.json.Decoder(struct, dec_hook=decode_hook, strict=True)
        except (TypeError, ValueError, NameError) as error:
            raise InvalidSubmission(
                f"{self.name}: an annotation is not one that can be stored as JSON: {error}",
                problems={"annotations": str(error)},
            ) from error

    def _field(self, name: str, kind: Any) -> tuple[str, Any, Any]:
        """A parameter with a default may be missing in what an older version stored; then the default applies."""
        if name in self._defaults:
            return (
                f"p_{name}",
                kind | msgspec.UnsetType if kind is not Any else kind,
                msgspec.field(name=name, default=msgspec.UNSET),
            )
        return f"p_{name}", kind, msgspec.field(name=name)

    def encode(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
        """The arguments as JSON, checked; raises ``InvalidArguments`` naming every problem."""
        values = self._by_name(args, kwargs)
        try:
            body = _encode(values)
            self._args_decoder.decode(body)
        except _HasPlaceholder:
            return self._encode_joined(values)
        except _UNFIT as error:
            raise self._misfit(str(error)) from error
        return body

    def _encode_joined(self, values: dict[str, Any]) -> Joined:
        """Arguments with outputs of tasks among them: those parameters are checked as the task starts."""
        try:
            found = take_out(values, encode_hook)
            for name in found.values.keys() - found.names:
                msgspec.json.decode(_encode(found.values[name]), type=self._kinds[name], dec_hook=decode_hook)
            joined = Joined(_encode(found.values))
        except _UNFIT as error:
            raise self._misfit(str(error)) from error
        joined.found = found
        return joined

    def canonical(self, body: bytes) -> bytes:
        """The same arguments in one spelling, for comparing contents."""
        return _encode_canonical(msgspec.json.decode(body))

    def _by_name(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        positional = self._positional
        if len(args) > len(positional):
            raise self._misfit(f"takes {len(positional)} positional arguments, {len(args)} were given")
        if not kwargs and len(args) == len(self._names) == len(positional):
            return dict(zip(positional, args, strict=True))
        given = dict(zip(positional, args, strict=False))
        for name, value in kwargs.items():
            if name in given:
                raise self._misfit(f"{name} was given twice")
            given[name] = value
        values: dict[str, Any] = {}
        problems: list[str] = []
        for name in self._names:
            if name in given:
                values[name] = given.pop(name)
            elif name in self._defaults:
                values[name] = self._defaults[name]
            else:
                problems.append(f"{name} is missing")
        for name in given:
            if name == self.context_name:
                problems.append(f"{name} is injected by the engine and cannot be given")
            else:
                problems.append(f"there is no parameter {name}")
        if problems:
            raise self._misfit("; ".join(problems))
        return values

    def _misfit(self, what: str) -> InvalidArguments:
        return InvalidArguments(f"the arguments do not fit {self.name}: {what}", problems={"arguments": what})

    def decode(self, body: bytes) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Stored arguments as (positional, keyword-only) for the call; raises msgspec's errors when they do not fit."""
        struct = self._args_decoder.decode(body)
        values = msgspec.structs.astuple(struct)
        if self._defaults and any(value is msgspec.UNSET for value in values):
            values = tuple(
                self._defaults[name] if value is msgspec.UNSET else value
                for name, value in zip(self._names, values, strict=True)
            )
        if not self._keyword_only:
            return values, {}
        count = len(self._positional)
        return values[:count], dict(zip(self._keyword_only, values[count:], strict=True))

    def encode_result(self, value: Any) -> bytes | None:
        """A result as stored bytes; None for ``None``."""
        if value is None:
            return None
        if self.returns_bytes and isinstance(value, bytes):
            return value
        return _encode(value)

    def decode_result(self, body: bytes | None) -> Any:
        """The way back, by the return annotation; by plain JSON where the handler did not keep to it."""
        if body is None:
            return None
        if self.returns_bytes:
            return body
        try:
            return self._result_decoder.decode(body)
        except msgspec.ValidationError:
            return msgspec.json.decode(body)

    @property
    def names(self) -> list[str]:
        """The parameters that are stored, in order."""
        return self._names

    def default_text(self, name: str) -> str | None:
        """What a key shows of the default of a parameter; None where it has none, or none that a key can show."""
        if name not in self._defaults:
            return None
        try:
            return scalar_text(msgspec.json.decode(_encode(self._defaults[name])))
        except (msgspec.MsgspecError, TypeError, ValueError, NotImplementedError):
            return None

    def describe(self) -> str:
        """Parameter names with a mark on the optional ones: what a declaration records."""
        return ", ".join(name if name in self.required else f"{name}?" for name in self._names)


def _parameters(function: Callable[..., Any], name: str) -> Iterable[inspect.Parameter]:
    try:
        return inspect.signature(function).parameters.values()
    except (ValueError, TypeError) as error:
        raise InvalidSubmission(
            f"{name}: its parameters cannot be found out ({error}); write a function that calls it",
            problems={"function": str(error)},
        ) from error


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError, AttributeError):
        # a name that exists only for type checkers: take the annotations that can be resolved
        found: dict[str, Any] = {}
        for name, annotation in getattr(function, "__annotations__", {}).items():
            if isinstance(annotation, str):
                try:
                    found[name] = eval(annotation, getattr(function, "__globals__", {}))
                except Exception:
                    continue
            else:
                found[name] = annotation
        return found


def _result_decoder(returns: Any) -> msgspec.json.Decoder[Any]:
    kind = type(None) if returns is None else returns
    if kind is type(None) or kind is typing.NoReturn:
        kind = Any
    try:
        return msgspec.json.Decoder(kind, dec_hook=decode_hook)
    except (TypeError, ValueError):
        return msgspec.json.Decoder(Any)
