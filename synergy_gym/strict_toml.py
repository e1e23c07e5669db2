"""Strict TOML files: a mistake is an error that names the file, the key and the cure.

Unknown keys are refused, every key of a physical quantity ends in its unit, and a key that
differs from a known one only in its unit (`horizon_ms`, `horizon`) is answered with the
right key instead of a bare "unknown".
"""

from __future__ import annotations

import difflib
import re
import reprlib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

UNITS = ("ns", "us", "ms", "s", "min", "h", "rps", "gib", "gb", "mib", "blocks", "tokens", "bytes")

_Tables = tuple[str | int, ...]


class Table(BaseModel):
    """Base of every table: unknown keys refused, no silent conversion, immutable."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


T = TypeVar("T", bound=Table)


def read_toml(path: Path, schema: type[T], error: type[ValueError]) -> T:
    """Read `path` as `schema`.

    Raises:
        error: the file is missing, is not TOML, or breaks the schema; the message has one
            line `FILE: KEY: problem; cure` per mistake.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as cause:
        raise error(f"{path}: cannot be read ({cause.strerror}); check the path") from cause
    try:
        return schema.model_validate(_frozen(tomllib.loads(text)))
    except tomllib.TOMLDecodeError as cause:
        raise error(f"{path}: not valid TOML: {cause}; see https://toml.io") from cause
    except ValidationError as cause:
        raise error("\n".join(_explain(path, schema, cause))) from cause


def _frozen(value: Any) -> Any:
    """Arrays become tuples, which is what immutable tables hold."""
    if isinstance(value, list):
        return tuple(_frozen(item) for item in value)
    if isinstance(value, dict):
        return {key: _frozen(item) for key, item in value.items()}
    return value


def _explain(path: Path, schema: type[Table], cause: ValidationError) -> list[str]:
    """One line per mistake; what merely follows from another mistake is left out."""
    errors = cause.errors()
    unknown = [item for item in errors if item["type"] == "extra_forbidden"]
    lines, suggested = [], set()
    for item in unknown:
        where = item["loc"]
        known = _keys_at(schema, where[:-1])
        guess = suggest(str(where[-1]), known)
        suggested.add((*where[:-1], guess))
        cure = f"use `{guess}`" if guess else f"known keys: {', '.join(known)}"
        lines.append(f"{path}: {dotted(where)}: unknown key; {cure}")
    for item in errors:
        where = item["loc"]
        follows = item["type"] == "too_short" and any(_inside(o["loc"], where) for o in errors)
        if item not in unknown and where not in suggested and not follows:
            lines.append(f"{path}: {_mistake(schema, item)}")
    return lines


def _mistake(schema: type[Table], item: Mapping[str, Any]) -> str:
    where = item["loc"]
    if item["type"] == "value_error":
        message = str(item["ctx"]["error"])
        names_key = re.match(r"[a-z][\w.\[\]]*: ", message) is not None
        return dotted(where) + ("." if names_key else ": ") + message if where else message
    if item["type"] == "missing":
        return f"{dotted(where)}: missing; add {_describe(schema, where)}"
    problem = item["msg"][0].lower() + item["msg"][1:]
    given = reprlib.repr(item["input"])
    return f"{dotted(where)}: is {given}: {problem}; give {_describe(schema, where)}"


def _inside(where: _Tables, table: _Tables) -> bool:
    return len(where) > len(table) and where[: len(table)] == table


def dotted(where: _Tables) -> str:
    """`("engine", 0, "kv")` as `engine[0].kv`."""
    text = ""
    for part in where:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text or "(top level)"


def suggest(key: str, known: list[str]) -> str | None:
    """The known key that `key` was probably meant to be, or `None`.

    A key with the same stem and another (or no) unit wins over one that is spelt alike.
    """
    same_stem = [name for name in known if _stem(name) == _stem(key)]
    close = same_stem or difflib.get_close_matches(key, known, n=1, cutoff=0.7)
    return close[0] if close else None


def _stem(key: str) -> str:
    stem, _, unit = key.rpartition("_")
    return stem if stem and unit in UNITS else key


def _table_at(schema: type[Table], where: _Tables) -> type[Table] | None:
    """The table class that holds `where`, found by walking the annotations."""
    table: type[Table] | None = schema
    for part in where:
        if isinstance(part, int) or table is None:
            continue
        field = table.model_fields.get(part)
        table = _inner_table(field.annotation) if field is not None else None
    return table


def _keys_at(schema: type[Table], where: _Tables) -> list[str]:
    table = _table_at(schema, where)
    return list(table.model_fields) if table is not None else []


def _inner_table(annotation: Any) -> type[Table] | None:
    if isinstance(annotation, type) and issubclass(annotation, Table):
        return annotation
    for part in get_args(annotation):
        found = _inner_table(part)
        if found is not None:
            return found
    return None


def _describe(schema: type[Table], where: _Tables) -> str:
    """What a key expects, from its field's description."""
    names = [part for part in where if not isinstance(part, int)]
    table = _table_at(schema, tuple(names[:-1]))
    field = table.model_fields.get(names[-1]) if table is not None and names else None
    described = field.description if field is not None else None
    return described or f"`{names[-1] if names else 'it'}`"
