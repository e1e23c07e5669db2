"""What the file of a submitted policy may contain; read as text, never run.

A policy computes a decision from the views that it is given. Its one file may import NumPy,
Numba, SciPy, the standard library's modules for computing, and what the policies of this
package import. Files, clocks, processes, frames and the rest of the gym are not for it.
This is a rule with a check, not a sandbox: running a stranger's file stays running a
stranger's file.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

MAX_BYTES = 1 << 20
"""Largest policy file, as for agents."""
LIBRARIES = frozenset({"numba", "numpy", "scipy"})
"""Libraries that a policy may import."""
COMPUTING = frozenset(
    {
        *("__future__", "abc", "array", "bisect", "cmath", "collections", "copy", "dataclasses"),
        *("decimal", "enum", "fractions", "functools", "heapq", "itertools", "math", "numbers"),
        *("operator", "statistics", "string", "types", "typing"),
    }
)
"""Modules of the standard library that a policy may import."""
ROOMS = frozenset({"types", "actions", "features", "observation", "latency", "jit", "policies"})
"""Parts of this package that a policy may import."""
NAMES = frozenset(
    {
        *("BatchDecision", "ClusterView", "EngineView", "RequestView"),
        *("EnginePolicy", "RouterPolicy", "engine_policy", "router_policy"),
    }
)
"""Names that a policy may import from `synergy_gym` itself."""
_CALLS = frozenset({"__import__", "breakpoint", "compile", "eval", "exec", "input", "open"})
_ATTRIBUTES = frozenset(
    {
        *("__builtins__", "__closure__", "__globals__", "__loader__", "__subclasses__"),
        *("__traceback__", "f_back", "f_globals", "f_locals", "gi_frame", "tb_frame"),
    }
)


def source_problems(path: Path, shown: str) -> list[str]:
    """What a policy's file does that it may not, one line each; empty: nothing.

    Args:
        path: the file.
        shown: how problems name it.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        return [f"{shown}: {size} bytes; a policy's file has at most {MAX_BYTES}"]
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as error:
        return [f"{shown}: is no Python file ({error}); correct it"]
    found = [(node, text) for node in _nodes(tree) for text in _problems(node)]
    return [f"{shown}, line {getattr(node, 'lineno', 0)}: {text}" for node, text in found]


def _nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Every node, without what runs only when the file is started as a program."""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "__name__ == '__main__'"):
            yield child
            yield from _nodes(child)


def _problems(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [text for alias in node.names if (text := _import_problem(alias.name, ()))]
    if isinstance(node, ast.ImportFrom):
        if node.level:
            return ["imports its neighbours; a submission is one file, move the code into it"]
        text = _import_problem(node.module or "", tuple(alias.name for alias in node.names))
        return [text] if text else []
    name = node.id if isinstance(node, ast.Name) else getattr(node, "attr", "")
    if name in (_CALLS if isinstance(node, ast.Name) else _ATTRIBUTES):
        return [f"uses {name!r}; a policy decides from its views alone, drop it"]
    return []


def _import_problem(module: str, names: tuple[str, ...]) -> str:
    top, *below = module.split(".")
    if top in LIBRARIES or top in COMPUTING:
        return ""
    if top != "synergy_gym":
        allowed = ", ".join(sorted(LIBRARIES | COMPUTING))
        return (
            f"imports {module!r}; a policy may import {allowed} and the parts of synergy_gym that "
            "policies use (a network: export it as an agent)"
        )
    wrong = below[:1] if below else [name for name in names or ("synergy_gym",)]
    wrong = [name for name in wrong if name not in (ROOMS if below else NAMES | ROOMS)]
    if not wrong:
        return ""
    return (
        f"imports {wrong[0]!r} of synergy_gym; a policy may import {', '.join(sorted(ROOMS))} and "
        f"the names {', '.join(sorted(NAMES))}; move the rest below `if __name__ == '__main__':`"
    )
