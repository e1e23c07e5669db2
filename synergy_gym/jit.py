"""How this package compiles its kernels."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numba
from llvmlite import binding
from numba.core import types
from numba.core.ccallback import CFunc

_OPTIONS = {"error_model": "numpy", "boundscheck": False}
_ROOT = Path(__file__).resolve().parent
_COMPILES = re.compile(rb"from synergy_gym\.jit import|^(import|from) numba", re.MULTILINE)
_IMPORT = re.compile(r"^from synergy_gym\.([\w.]+) import (\([^)]*\)|.*)", re.MULTILINE)
_NAME = re.compile(r"\w+")


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile `function`, which Python and other kernels call, for numbers, arrays and records.

    `_nrt=False` drops the reference counts of array views, four fifths of the run time of a
    plain build. It is a private option of numba: a version without it gets the plain build,
    with equal results.
    """
    return _compile(function, cache=True)


def inner(function: Callable[..., Any]) -> Callable[..., Any]:
    """`kernel` for a function that only other kernels call: a fifth cheaper to compile.

    It is compiled with the first of its callers, and kept with them alone.
    """
    return _compile(function, cache=False, no_cpython_wrapper=True, no_cfunc_wrapper=True)


def hot(function: Callable[..., Any]) -> Callable[..., Any]:
    """`kernel` for a small function of an inner loop: always inlined into its caller."""
    return _compile(function, cache=True, forceinline=True)


class Shared(types.ExternalFunction):  # type: ignore[misc]
    """A kernel that is compiled once and entered by its address from all others.

    Others would link and optimise it again, with all that it calls. `load()` must have been called
    before the first of them runs.
    """

    def __init__(self, function: Callable[..., Any], signature: Any) -> None:
        super().__init__(f"{function.__module__}.{function.__qualname__}", signature)
        self._function = function
        self._loaded: Any = None

    def load(self) -> None:
        """Compile it, or take it from the cache, and make its address known."""
        if self._loaded is None:
            plain = self.sig.args, self.sig.return_type
            compiled: Any = CFunc(self._function, plain, {}, {**_OPTIONS, "_nrt": False})
            compiled.enable_caching()
            _watch_all_sources(compiled)
            compiled.compile()
            binding.add_symbol(self.symbol, compiled.address)
            self._loaded = compiled


def shared(signature: Any) -> Callable[[Callable[..., Any]], Shared]:
    """Make a function a `Shared` kernel of this signature, such as `int64(int64)`."""
    return lambda function: Shared(function, signature)


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


def _compile(function: Callable[..., Any], **options: bool) -> Callable[..., Any]:
    try:
        compiled: Any = numba.njit(**_OPTIONS, _nrt=False, **options)(function)
    except (KeyError, TypeError, NameError):
        compiled = numba.njit(**_OPTIONS, **options)(function)
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
    """Every source that compiles something, and those whose constants it takes."""
    # In a checkout `envs` and `policies` lie beside the package, else inside it.
    beside = _ROOT.parent if (_ROOT.parent / "envs").is_dir() else _ROOT
    folders = {"envs": beside / "envs", "policies": beside / "policies"}
    files = [*_ROOT.rglob("*.py"), *(file for at in folders.values() for file in at.rglob("*.py"))]
    pending = [file for file in files if re.search(_COMPILES, file.read_bytes())]
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
