"""Hashes of definitions and of all that they use."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from synergy_gym.behaviour.modules import Modules, Node, Target
from synergy_gym.behaviour.text import Writer


class Behaviour:
    """Hashes of definitions in some modules.

    Args:
        modules: file by module name.
        sources: source text by module name, for modules whose text lies elsewhere.
        boundary: modules and packages that count as their names: they compute no result.
    """

    def __init__(
        self,
        modules: Mapping[str, Path],
        sources: Mapping[str, bytes] = MappingProxyType({}),
        boundary: Iterable[str] = (),
    ) -> None:
        self._modules = Modules(modules, sources, boundary)
        self._writer = Writer(self._modules)
        self._hashes: dict[Node, str] = {}

    def of(self, targets: Iterable[Target]) -> str:
        """SHA-256 (hex) of some definitions; their order makes no difference.

        Raises:
            KeyError: a module or a name in it does not exist.
        """
        lines = []
        for module, name in targets:
            nodes = self._modules.resolve((module, name))
            if self._modules.get(module) is None or (name and not nodes):
                raise KeyError(f"there is no {module}:{name}")
            lines += [self._hash(node) for node in nodes]
        return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()

    def reached(self, targets: Iterable[Target]) -> set[Node]:
        """Statements that some definitions consist of or use, directly or not."""
        left = [node for target in targets for node in self._modules.resolve(target)]
        found: set[Node] = set()
        while left:
            node = left.pop()
            if node not in found:
                found.add(node)
                left += self._uses(node)
        return found

    def _uses(self, node: Node) -> list[Node]:
        """The statements that a statement refers to, its module's effects included."""
        text = self._writer.text(node)
        found = [other for target in text.targets for other in self._modules.resolve(target)]
        return found + self._modules.effects(node[0])

    def _hash(self, node: Node) -> str:
        if node not in self._hashes:
            for group in _components(node, self._uses, self._hashes):
                self._hash_group(group)
        return self._hashes[node]

    def _hash_group(self, group: Sequence[Node]) -> None:
        """Hash statements that use one another."""
        own = {node: self._provisional(node, frozenset(group)) for node in group}
        whole = hashlib.sha256("".join(sorted(own.values())).encode()).hexdigest()
        for node in group:
            text = own[node] if len(group) == 1 else own[node] + whole
            self._hashes[node] = hashlib.sha256(text.encode()).hexdigest()

    def _provisional(self, node: Node, group: frozenset[Node]) -> str:
        text = self._writer.text(node)
        lines = ["\n".join(text.parts)]
        for target in text.targets:
            nodes = self._modules.resolve(target)
            lines.append(" ".join("in turn" if n in group else self._hashes[n] for n in nodes))
        effects = self._modules.effects(node[0])
        lines += sorted("in turn" if n in group else self._hashes[n] for n in effects)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _components(root: Node, uses: Any, done: Mapping[Node, str]) -> Iterator[list[Node]]:
    """Tarjan's strongly connected components below `root`, what is used before who uses it."""
    index: dict[Node, int] = {}
    low: dict[Node, int] = {}
    stack: list[Node] = []
    waiting: set[Node] = set()
    work: list[tuple[Node, Iterator[Node]]] = []

    def open_node(node: Node) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        waiting.add(node)
        work.append((node, iter(uses(node))))

    open_node(root)
    while work:
        node, following = work[-1]
        for other in following:
            if other in done:
                continue
            if other not in index:
                open_node(other)
                break
            if other in waiting:
                low[node] = min(low[node], index[other])
        else:
            work.pop()
            if work:
                low[work[-1][0]] = min(low[work[-1][0]], low[node])
            if low[node] == index[node]:
                cut = stack.index(node)
                group, stack[cut:] = stack[cut:], []
                waiting.difference_update(group)
                yield group
