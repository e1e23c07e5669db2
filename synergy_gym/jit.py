"""How this package compiles its kernels."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numba
from llvmlite import binding
from numba.core import types
from numba.core.ccallback import CFunc
from numba.core.compiler_lock import global_compiler_lock

from synergy_gym.jit_cache import SturdyCache, keep
from synergy_gym.jit_notice import compiling, notice, tell_trouble

_OPTIONS = {"error_model": "numpy", "boundscheck": False}


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile `function`, which Python and other kernels call, for numbers, arrays and records.

    `_nrt=False` drops the reference counts of array views, four fifths of the run time of a
    plain build. It is a private option of numba: a version without it gets the plain build,
    with equal results.
    """
    return _compile(function, kept=True)


def inner(function: Callable[..., Any]) -> Callable[..., Any]:
    """`kernel` for a function that only other kernels call: cheaper to compile.

    It is compiled with the first of its callers, and kept with them alone (tests call it, too).
    """
    return _compile(function, kept=False, no_cfunc_wrapper=True)


def hot(function: Callable[..., Any]) -> Callable[..., Any]:
    """`kernel` for a small function of an inner loop: always inlined into its caller."""
    return _compile(function, kept=True, forceinline=True)


class Shared(types.ExternalFunction):  # type: ignore[misc]
    """A kernel that is compiled once and entered by its address from all others.

    Others would link and optimise it again, with all that it calls. `load()` must have been called
    before the first of them runs.
    """

    def __init__(self, function: Callable[..., Any], signature: Any) -> None:
        super().__init__(f"{function.__module__}.{function.__qualname__}", signature)
        self._function = function
        self._loaded: Any = None

    def load(self, *, compiles: bool = True) -> bool:
        """Take it from the cache, or compile it, and make its address known.

        Args:
            compiles: false: a miss of the cache leaves it alone.

        Returns:
            Whether it is ready.
        """
        if self._loaded is None:
            with global_compiler_lock:  # of two threads the second would free the first one's code
                return self._loaded is not None or self._load(compiles)
        return True

    @property
    def kept(self) -> SturdyCache:
        """Where its machine code is kept."""
        cache: SturdyCache = self._compiler._cache
        return cache

    def _load(self, compiles: bool) -> bool:
        function = self._compiler
        code = function._cache.load_overload(function._sig, function._targetdescr.target_context)
        if code is not None:
            name = code.fndesc.llvm_cfunc_wrapper_name
            address = code.library.get_pointer_to_function(name)
        elif compiles:
            with compiling(function):
                function.compile()
            address = function.address
        else:
            return False
        binding.add_symbol(self.symbol, address)
        self._loaded = code or function  # the machine code lives as long as this
        return True

    @cached_property
    def _compiler(self) -> Any:
        plain = self.sig.args, self.sig.return_type
        function = CFunc(self._function, plain, {}, {**_OPTIONS, "_nrt": False})
        keep(function, tell_trouble)
        notice()
        return function


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


def _compile(function: Callable[..., Any], *, kept: bool, **options: bool) -> Callable[..., Any]:
    try:
        compiled: Any = numba.njit(**_OPTIONS, _nrt=False, **options)(function)
    except (KeyError, TypeError, NameError):
        compiled = numba.njit(**_OPTIONS, **options)(function)
    if kept:
        keep(compiled, tell_trouble)
        notice()
    return compiled  # type: ignore[no-any-return]
