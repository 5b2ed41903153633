"""Whether the fields of a config have the types that its dataclasses declare."""

import dataclasses
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal


def misfits_of_type(section: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every field whose value does not have the declared type: its name, and a message."""
    hints = typing.get_type_hints(type(section))
    for f in dataclasses.fields(section):
        name, value, expected = prefix + f.name, getattr(section, f.name), hints[f.name]
        if dataclasses.is_dataclass(expected) and isinstance(value, typing.cast(type, expected)):
            yield from misfits_of_type(value, f"{name}.")
        elif not _fits(value, expected):
            yield name, f"{name} must be {type_name(expected)}, not {value!r}"


def _fits(value: Any, expected: Any) -> bool:
    origin, args = typing.get_origin(expected), typing.get_args(expected)
    if origin is Literal:
        return value in args
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, a) for a in args)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(v, args[0]) for v in value)
    if expected is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if expected is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, expected)


def type_name(expected: Any) -> str:
    """A field's type in words: `int or None`, `one of pre, post`."""
    origin, args = typing.get_origin(expected), typing.get_args(expected)
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_name(a) for a in args)
    if origin is tuple:
        return f"a list of {type_name(args[0])}"
    return "None" if expected is type(None) else expected.__name__
