"""JSON that another hand may have written becomes dataclasses, or a TypeError: readers can rely on the types."""

import sys
from types import UnionType
from typing import Any, TypeGuard, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")


def typed(cls: type[T], **values: Any) -> T:
    """An instance of a dataclass.

    Raises:
        TypeError: A value is missing, unknown, or not of its field's type.
    """
    made = cls(**values)
    for name, hint in get_type_hints(cls).items():
        checked(getattr(made, name), hint, name)
    return made


def checked(value: Any, hint: Any, name: str) -> Any:
    """The value, if it is of a type.

    Raises:
        TypeError: It is not; the message has the name.
    """
    if not _fits(value, hint):
        raise TypeError(f"{name}: {value!r} is no {hint}")
    return value


def is_finite_number(value: object) -> TypeGuard[int | float]:
    """Whether it is a number, neither NaN nor infinite, nor too large for a float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _fits(value: Any, hint: Any) -> bool:
    if hint is Any:
        return True
    origin, parts = get_origin(hint), get_args(hint)
    if origin is UnionType:
        return any(_fits(value, part) for part in parts)
    if origin is list:
        return isinstance(value, list) and all(_fits(each, parts[0]) for each in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(each, parts[1]) for each in value.values())
    return isinstance(value, float | int) if hint is float else isinstance(value, hint)
