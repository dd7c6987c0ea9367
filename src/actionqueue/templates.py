"""Keys of limits and rates as templates over a task's arguments: checked at declaration, rendered at submission.

A template is text with ``{name}`` for the argument of that name (``{{`` and ``}}`` are braces); nothing else is in it, no
attribute, index or format. Arguments are shown as they are stored: texts as they are, numbers and truth values as JSON;
UUIDs, dates and enums are texts or numbers there. So a submission by name, which has only what is stored, gets the same
key as a typed call. Rendered by the caller, before anything is sent: the core takes keys as they come.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from string import Formatter
from typing import Any

from msgspec import Struct, json
from msgspec.structs import replace

from actionqueue.core.errors import InvalidSubmission
from actionqueue.core.needs import KeyNeed, Limit, Rate, RateNeed, key_need, need_problems, rate_need
from actionqueue.core.spec import NO_OPTIONS, TaskOptions

Parts = tuple[tuple[str, str | None], ...]
"""(text, the parameter shown after it), in order."""

_WHOLE = "limits=[Limit(…)]"


class Wanted(Struct, frozen=True):
    """The keys and rates that a decorator or ``options`` asks for, as templates, and the states to hold keys over."""

    limits: tuple[KeyNeed, ...] = ()
    rates: tuple[RateNeed, ...] = ()
    hold: tuple[str, ...] = ()
    has_key: bool = False
    """Whether the first of the limits was given as ``concurrency_key``."""

    def __bool__(self) -> bool:
        return bool(self.limits or self.rates or self.hold)


NOTHING_WANTED = Wanted()


def wanted(
    concurrency_key: str | None,
    limits: Iterable[Limit] | None,
    rate: Rate | Iterable[Rate] | None,
    hold: Iterable[str] | None,
    otherwise: Wanted = NOTHING_WANTED,
) -> Wanted:
    """What was given, where something was; raises ``InvalidSubmission``.

    ``concurrency_key`` and ``limits`` are one list: giving either replaces all that ``otherwise`` has of it.
    """
    found = otherwise
    if concurrency_key is not None or limits is not None:
        if concurrency_key is not None and not isinstance(concurrency_key, str):
            raise _wrong("concurrency_key", "not a text")
        key = () if concurrency_key is None else (KeyNeed(concurrency_key),)
        needs = tuple([key_need(each) for each in _listed(limits or (), Limit, "limits", _WHOLE)])
        found = replace(found, limits=(*key, *needs), has_key=bool(key))
    if rate is not None:
        rates = (rate,) if isinstance(rate, Rate) else rate
        found = replace(found, rates=tuple([rate_need(each) for each in _listed(rates, Rate, "rate", "rate=Rate(…)")]))
    if hold is not None:
        states = tuple(_listed(hold, str, "hold", 'hold=["retry_wait"]'))
        found = replace(found, hold=states)
    return found


def _listed(given: Any, kind: type, field: str, remedy: str) -> list[Any]:
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise _wrong(field, f"give {remedy}")
    found = list(given)
    if not all(isinstance(each, kind) for each in found):
        raise _wrong(field, f"give {remedy}")
    return found


def _wrong(field: str, problem: str) -> InvalidSubmission:
    return InvalidSubmission(f"{field}: {problem}", problems={field: problem})


class NeedTemplates:
    """What is wanted, taken apart, to be rendered for each submission.

    ``parameters`` are those of the handler (None: not known here, and not checked). Raises ``InvalidSubmission`` naming
    every problem with its field.

    >>> needs = NeedTemplates(Wanted(limits=(KeyNeed("customer:{id}"),)), ["id"], "send")
    >>> needs.options(NO_OPTIONS, {"id": 7}).limits[0].key
    'customer:7'
    """

    __slots__ = ("_handler", "_parts", "_wanted", "names")

    def __init__(self, wanted: Wanted, parameters: Collection[str] | None, handler: str) -> None:
        self._wanted = wanted
        self._handler = handler
        problems = {
            _field(wanted, field): problem
            for field, problem in need_problems(wanted.limits, wanted.rates, wanted.hold)
            if problem is not None
        }
        self._parts: dict[str, Parts] = {}
        names: list[str] = []
        for field, template in self._templates():
            parts = _parts_of(template)
            if isinstance(parts, str):
                problems.setdefault(field, parts)
                continue
            self._parts[field] = parts
            names += [name for _, name in parts if name is not None]
            unknown = [
                name for _, name in parts if name is not None and parameters is not None and name not in parameters
            ]
            if unknown:
                problems.setdefault(field, f"{', '.join(unknown)}: there is no such parameter")
        self.names = tuple(dict.fromkeys(names))
        """The parameters that are shown in some key."""
        self._refuse(problems)

    def _templates(self) -> Iterator[tuple[str, str]]:
        for n, need in enumerate(self._wanted.limits):
            yield _field(self._wanted, f"limits[{n}]"), need.key
        for n, rate in enumerate(self._wanted.rates):
            yield f"rate[{n}]", rate.key

    def _refuse(self, problems: dict[str, str]) -> None:
        if problems:
            listed = "; ".join(f"{field}: {problem}" for field, problem in problems.items())
            raise InvalidSubmission(f"{self._handler}: {listed}", problems=problems)

    def filled(self, options: TaskOptions | None, body: bytes) -> TaskOptions:
        """``options`` with the needs of a call with these encoded arguments."""
        return self.options(options or NO_OPTIONS, json.decode(body))

    def options(
        self, options: TaskOptions, values: Mapping[str, Any], defaults: Mapping[str, str] | None = None
    ) -> TaskOptions:
        """``options`` with the needs of a call with these arguments, by name, as they are stored.

        ``defaults`` says what is shown of those left out. Raises ``InvalidSubmission`` naming every problem.
        """
        problems: dict[str, str] = {}
        texts = {name: _shown(name, values, defaults or {}) for name in self.names}
        wrong = {name: problem for name, (text, problem) in texts.items() if text is None}
        keys: dict[str, str] = {}
        for field, parts in self._parts.items():
            missing = [wrong[name] for _, name in parts if name in wrong]
            if missing:
                problems[field] = "; ".join(missing)
            keys[field] = "".join(text + ("" if name is None else texts[name][0] or "") for text, name in parts)
        found = self._wanted
        limits = tuple(
            [KeyNeed(keys[_field(found, f"limits[{n}]")], each.capacity) for n, each in enumerate(found.limits)]
        )
        rates = tuple([
            RateNeed(keys[f"rate[{n}]"], each.count, each.per_us, each.burst) for n, each in enumerate(found.rates)
        ])  # fmt: skip
        for field, problem in need_problems(limits, rates, found.hold):
            if problem is not None:
                problems.setdefault(_field(found, field), problem)
        self._refuse(problems)
        return replace(options, limits=limits, rates=rates, hold=found.hold)


def _field(wanted: Wanted, field: str) -> str:
    """A field of a task's options as people wrote it."""
    if wanted.has_key and field.startswith("limits["):
        number, _, rest = field.removeprefix("limits[").partition("]")
        return f"concurrency_key{rest}" if number == "0" else f"limits[{int(number) - 1}]{rest}"
    return field.replace("rates", "rate", 1)


def _parts_of(template: str) -> Parts | str:
    """The template taken apart, or what is wrong with it."""
    try:
        parsed = list(Formatter().parse(template))
    except (ValueError, TypeError) as error:
        return f"is no template: {error}"
    for _, name, spec, conversion in parsed:
        if name is not None and (spec or conversion or not name.isidentifier()):
            return f"{{{name}}}: give the name of a parameter, without attribute, index or format"
    return tuple([(text, name) for text, name, _, _ in parsed])


def _shown(name: str, values: Mapping[str, Any], defaults: Mapping[str, str]) -> tuple[str | None, str]:
    """(what a key shows of an argument, or None; what is wrong then)."""
    if name not in values:
        return defaults.get(name), f"{name} is not given, and has no default that a key could show"
    text = scalar_text(values[name])
    what = "None" if values[name] is None else f"a {type(values[name]).__name__}"
    return text, f"{name} is {what}; a key shows texts, numbers and truth values"


def scalar_text(value: Any) -> str | None:
    """A stored value as a key shows it; None for what is no text, number or truth value."""
    if isinstance(value, str):
        return value
    return json.encode(value).decode() if isinstance(value, bool | int | float) else None
