"""How this package compiles its kernels."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numba

_OPTIONS = {"cache": True, "error_model": "numpy", "boundscheck": False}
_ROOT = Path(__file__).resolve().parent
_IMPORT = re.compile(r"^from synergy_gym\.([\w.]+) import (\([^)]*\)|.*)", re.MULTILINE)
_NAME = re.compile(r"\w+")


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile `function` for flat arrays and integer offsets.

    `_nrt=False` drops the reference counts of array views, four fifths of the run time of a
    plain build. It is a private option of numba: a version without it gets the plain build,
    with equal results.
    """
    return _compile(function)


def hot(function: Callable[..., Any]) -> Callable[..., Any]:
    """`kernel` for a small function of an inner loop: always inlined into its caller."""
    return _compile(function, forceinline=True)


def direct(compiled: Callable[..., Any]) -> Callable[..., Any]:
    """The machine-code entry of a kernel that has been called once, without type dispatch.

    Only for calls whose argument types never change. Falls back to `compiled` itself where
    numba does not show the entry.
    """
    overloads = list(getattr(compiled, "overloads", {}).values())
    if len(overloads) != 1:
        return compiled
    entry: Callable[..., Any] = getattr(overloads[0], "entry_point", None) or compiled
    return entry


def _compile(function: Callable[..., Any], **extra: bool) -> Callable[..., Any]:
    try:
        compiled: Any = numba.njit(**_OPTIONS, _nrt=False, **extra)(function)
    except (KeyError, TypeError, NameError):
        compiled = numba.njit(**_OPTIONS, **extra)(function)
    _watch_all_sources(compiled)
    return compiled  # type: ignore[no-any-return]


def _watch_all_sources(compiled: Any) -> None:
    """Make numba's cache depend on every kernel source, not only on the function's own file.

    Kernels are inlined across files: without this an edited callee would leave its callers
    with old machine code.
    """
    files: Any = getattr(getattr(compiled, "_cache", None), "_cache_file", None)
    if hasattr(files, "_source_stamp"):
        files._source_stamp = (files._source_stamp, _source_hash())


@cache
def _source_hash() -> str:
    digest = hashlib.sha256(numba.__version__.encode())
    for path in sorted(_kernel_files()):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _kernel_files() -> set[Path]:
    """Every source that compiles something with this file, and those whose constants it takes."""
    # In a checkout `envs` and `policies` lie beside the package, else inside it.
    beside = _ROOT.parent if (_ROOT.parent / "envs").is_dir() else _ROOT
    folders = {"envs": beside / "envs", "policies": beside / "policies"}
    files = [*_ROOT.rglob("*.py"), *(file for at in folders.values() for file in at.rglob("*.py"))]
    pending = [Path(__file__), *(file for file in files if b"synergy_gym.jit" in file.read_bytes())]
    found: set[Path] = set()
    while pending:
        file = pending.pop()
        if file not in found:
            found.add(file)
            pending += _constant_files(file.read_text(encoding="utf-8"), folders)
    return found


def _constant_files(source: str, folders: Mapping[str, Path]) -> Iterator[Path]:
    """Files of this package from which a source imports a constant (a name in capitals)."""
    for module, names in _IMPORT.findall(source):
        if any(name.isupper() for name in _NAME.findall(names)):
            first, *rest = module.split(".")
            file = folders.get(first, _ROOT / first).joinpath(*rest).with_suffix(".py")
            if file.is_file():
                yield file
