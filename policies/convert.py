"""Parameter values from text, by the type of the field that takes them."""

from __future__ import annotations

import math
import types
from typing import Any, Literal, Union, get_args, get_origin

_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def convert(text: str, hint: Any, where: str) -> Any:
    """`text` as a value of type `hint`: int, float, bool, str, Literal, or one of them | None.

    Args:
        text: what the user wrote.
        hint: the field's type.
        where: what the message names.

    Raises:
        ValueError: the text is no such value; the message names place, value and cure.
    """
    if get_origin(hint) in (Union, types.UnionType):
        return _optional(text, get_args(hint), where)
    if get_origin(hint) is Literal:
        return _literal(text, get_args(hint), where)
    if hint is bool:
        if text.lower() in _BOOLEANS:
            return _BOOLEANS[text.lower()]
        raise ValueError(f"{where}: {text!r} is not true or false")
    if hint in (int, float, str):
        return _scalar(text, hint, where)
    raise ValueError(f"{where}: its type {hint} cannot be written as text; pass an instance")


def _scalar(text: str, hint: Any, where: str) -> Any:
    try:
        value = hint(text)
    except ValueError:
        kind = "an integer" if hint is int else "a number"
        raise ValueError(f"{where}: {text!r} is not {kind}") from None
    if hint is float and not math.isfinite(value):
        raise ValueError(f"{where}: {text!r} is not finite")
    return value


def _optional(text: str, members: tuple[Any, ...], where: str) -> Any:
    if type(None) in members and text.lower() == "none":
        return None
    rest = [member for member in members if member is not type(None)]
    if len(rest) == 1:
        return convert(text, rest[0], where)
    raise ValueError(f"{where}: it takes one of several types; pass an instance")


def _literal(text: str, choices: tuple[Any, ...], where: str) -> Any:
    for choice in choices:
        if str(choice) == text:
            return choice
    raise ValueError(f"{where}: {text!r} is not one of {', '.join(map(str, choices))}")
