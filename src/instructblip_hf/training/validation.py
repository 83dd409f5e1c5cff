"""Checks a mapping, as it comes out of a YAML file, against the fields of a dataclass, and names every problem."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the closest known name, or all of a few known names, or nothing."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; allowed are: {', '.join(known)}" if len(known) <= 12 else ""


def check_mapping(
    cls: type, mapping: Any, where: str, forbidden: Mapping[str, str] | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Keyword arguments for a dataclass out of a mapping, and every problem found on the way.

    Args:
        cls (`type`): The dataclass.
        mapping (`Any`): What the file holds at this place; anything but a mapping is a problem.
        where (`str`): Its place in the file, like ``"model"``, put before each problem.
        forbidden (`Mapping[str, str]`, *optional*): Fields that may not be given, with the reason.

    Returns:
        The values that fit, and one line a problem: unknown key, missing key, wrong type.
    """
    if not isinstance(mapping, Mapping):
        return {}, [f"{where}: must be a mapping of keys to values, not {_kind(mapping)}"]
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    values: dict[str, Any] = {}
    problems: list[str] = []
    for key, value in mapping.items():
        place = f"{where}.{key}"
        if forbidden and key in forbidden:
            problems.append(f"{place}: {forbidden[key]}")
        elif key not in fields:
            problems.append(f"{place}: unknown key{did_you_mean(str(key), fields)}")
        else:
            try:
                values[key] = fit(value, hints[key])
            except TypeError as error:
                problems.append(f"{place}: {error}")
    for name, item in fields.items():
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if required and name not in mapping:
            problems.append(f"{where}.{name}: missing")
    return values, problems


def build(cls: type, mapping: Any, where: str) -> tuple[Any, list[str]]:
    """An instance of a dataclass out of a mapping, or `None` and every problem, `__post_init__`'s included."""
    values, problems = check_mapping(cls, mapping, where)
    if problems:
        return None, problems
    try:
        return cls(**values), []
    except ValueError as error:
        return None, [f"{where}: {error}"]


def fit(value: Any, hint: Any) -> Any:
    """The value, if it has the annotated type; numbers written as ``1e-5``, a string to YAML, become numbers.

    Raises:
        TypeError: If the value does not fit, saying what is expected.
    """
    options = _options(hint)
    if isinstance(value, dict):
        value = _fit_items(value, options)
    if isinstance(value, str) and float in options and str not in options:
        # YAML 1.1 reads 1e-5 as a string, for want of a dot.
        with contextlib.suppress(ValueError):
            value = float(value)
    if value is False and any("no" in _values(option) for option in options):
        value = "no"  # which YAML 1.1 reads as false
    if not _fits(value, hint):
        raise TypeError(f"must be {_describe(hint)}, not {_kind(value)}")
    if isinstance(value, int) and not isinstance(value, bool) and float in options and int not in options:
        return float(value)
    return value


def _fit_items(mapping: dict[Any, Any], options: list[Any]) -> dict[Any, Any]:
    """The mapping with each value fitted, where the annotation is a plain mapping of one kind of values."""
    kinds = [typing.get_args(option) for option in options if typing.get_origin(option) is dict]
    if len(kinds) != 1 or Any in kinds[0]:
        return mapping
    fitted = {}
    for key, item in mapping.items():
        if not _fits(key, kinds[0][0]):
            raise TypeError(f"has the key {key!r}; keys must be {_describe(kinds[0][0])}")
        try:
            fitted[key] = fit(item, kinds[0][1])
        except TypeError as error:
            raise TypeError(f"{key}: {error}") from error
    return fitted


def _options(hint: Any) -> list[Any]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [option for part in typing.get_args(hint) for option in _options(part)]
    return [hint]


def _fits(value: Any, hint: Any) -> bool:
    return any(_fits_one(value, option) for option in _options(hint))


def _fits_one(value: Any, hint: Any) -> bool:
    if hint is Any:
        return True
    if hint is type(None) or hint is None:
        return value is None
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is str:
        return isinstance(value, str)
    origin = typing.get_origin(hint) or hint
    arguments = typing.get_args(hint)
    if origin is typing.Literal:
        return value in arguments
    if origin is list:
        return isinstance(value, list) and (not arguments or all(_fits(item, arguments[0]) for item in value))
    if origin is dict:
        if not isinstance(value, dict):
            return False
        return not arguments or all(_fits(k, arguments[0]) and _fits(v, arguments[1]) for k, v in value.items())
    if isinstance(origin, type) and issubclass(origin, Enum):
        return isinstance(value, str)
    return False


def _values(hint: Any) -> list[Any]:
    """The values of an enumeration; of anything else none."""
    return [member.value for member in hint] if isinstance(hint, type) and issubclass(hint, Enum) else []


def _describe(hint: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "null"}
    parts = []
    for option in _options(hint):
        origin = typing.get_origin(option) or option
        if option in names:
            parts.append(names[option])
        elif origin is list:
            inner = typing.get_args(option)
            parts.append("a list" + (f" of {_plural(inner[0])}" if inner else ""))
        elif origin is dict:
            parts.append("a mapping")
        elif origin is typing.Literal:
            parts.append("one of " + ", ".join(map(repr, typing.get_args(option))))
        elif isinstance(origin, type) and issubclass(origin, Enum):
            parts.append("one of " + ", ".join(map(str, _values(origin))))
    return " or ".join(dict.fromkeys(parts))


def _plural(hint: Any) -> str:
    return {str: "texts", int: "whole numbers", float: "numbers"}.get(hint, "values")


def _kind(value: Any) -> str:
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return f"{str(value).lower()}"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list):
        return f"the list {value!r}"
    return f"{value!r}"
