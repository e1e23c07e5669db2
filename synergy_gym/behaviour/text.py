"""Definitions as text that does not depend on where or how they are written."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from synergy_gym.behaviour.modules import (
    SCOPES,
    Module,
    Modules,
    Node,
    Target,
    binds,
    own_nodes,
    says_nothing,
)

_SILENT = frozenset({"ctx", "type_comment", "type_ignores", "kind", "type_params"})
_HINTS = frozenset({"annotation", "returns"})


@dataclass
class Text:
    """A definition as text, and what it refers to in order of appearance."""

    parts: list[str] = field(default_factory=list)
    targets: dict[Target, int] = field(default_factory=dict)

    def refer(self, target: Target) -> None:
        """Write a place for the hash of a target."""
        self.parts.append(f"<{self.targets.setdefault(target, len(self.targets))}>")


class Writer:
    """Writes statements of modules as text.

    Args:
        modules: where they stand.
    """

    def __init__(self, modules: Modules) -> None:
        self._modules = modules
        self._texts: dict[Node, Text] = {}

    def text(self, node: Node) -> Text:
        """A statement as text."""
        if node not in self._texts:
            module = self._modules.get(node[0])
            assert module is not None
            text = Text()
            statement = module.statements[node[1]]
            if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
                self._write_fields(statement, text, module, {}, frozenset({"name"}))
            else:
                self._write(statement, text, module, {})
            self._texts[node] = text
        return self._texts[node]

    def _write(self, value: Any, text: Text, module: Module, local: Mapping[str, Any]) -> None:
        """Write a syntax tree.

        Args:
            value: a node, a list or a constant.
            text: where it goes.
            module: where it stands.
            local: names of the enclosing functions; what one of them imports is its target.
        """
        if isinstance(value, list):
            text.parts.append("[")
            for item in value:
                if not (isinstance(item, ast.stmt) and says_nothing(item)):
                    self._write(item, text, module, local)
            text.parts.append("]")
        elif isinstance(value, ast.Name):
            self._write_name(value.id, text, module, local)
        elif isinstance(value, ast.Attribute) and self._write_attribute(value, text, module, local):
            pass
        elif isinstance(value, ast.AST):
            self._write_fields(value, text, module, local, frozenset())
        elif isinstance(value, str) and self._is_module(value):
            name, _, wanted = value.partition(":")
            text.refer((name, wanted))
        elif isinstance(value, str) and (data := self._modules.data_file_hash(value, module)):
            text.parts.append(f"file {data}")
        else:
            text.parts.append(repr(value))

    def _is_module(self, value: str) -> bool:
        """Whether a string is the dotted name of a module, or `module:name`."""
        return "." in value and self._modules.is_ours(value.partition(":")[0])

    def _write_fields(
        self,
        node: ast.AST,
        text: Text,
        module: Module,
        local: Mapping[str, Any],
        without: frozenset[str],
    ) -> None:
        text.parts.append(type(node).__name__)
        is_hint = local or isinstance(node, ast.arg | ast.FunctionDef | ast.AsyncFunctionDef)
        if isinstance(node, SCOPES):
            local = {**local, **self._names_of(node, module)}
        elif isinstance(node, ast.ClassDef):
            local = {**local, "__class__": None} if local else local
        for name in node._fields:
            value = getattr(node, name, None)
            if name in _HINTS and is_hint:
                self._write_hint(value, text, module, local)
            elif name not in _SILENT and name not in without:
                self._write(value, text, module, local)

    def _write_hint(
        self, hint: ast.expr | None, text: Text, module: Module, local: Mapping[str, Any]
    ) -> None:
        """Refer to the classes that an annotation names: methods of an argument are theirs."""
        for node in ast.walk(hint) if hint is not None else ():
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                self._write_hint(_parsed(node.value), text, module, local)
            elif isinstance(node, ast.Name):
                what = self._meaning(node.id, module, local)
                if isinstance(what, tuple) and self._modules.resolve(what):
                    text.refer(what)

    def _names_of(self, scope: ast.AST, module: Module) -> dict[str, Any]:
        """Names that a function binds; those that it imports, with what they are."""
        names: dict[str, Any] = {"__function__": None}
        globally: set[str] = set()
        for inner in own_nodes(scope):
            inside: dict[str, Target] = {}
            outside: dict[str, str] = {}
            self._modules.enter_import(module, inner, inside, outside)
            names |= {**inside, **outside}
            if isinstance(inner, ast.Global):
                globally |= set(inner.names)
            else:
                names |= dict.fromkeys(binds(inner))
        return {name: what for name, what in names.items() if name not in globally}

    def _write_name(self, name: str, text: Text, module: Module, local: Mapping[str, Any]) -> None:
        what = self._meaning(name, module, local)
        if isinstance(what, tuple):
            self._refer(what, text)
        else:
            text.parts.append(what)

    def _refer(self, target: Target, text: Text) -> None:
        nodes = self._modules.resolve(target)
        if nodes:
            text.refer(target)
        else:  # a boundary, or something that is no definition
            text.parts.append(f"{target[1] or target[0].rpartition('.')[2]}")

    def _meaning(self, name: str, module: Module, local: Mapping[str, Any]) -> Target | str:
        """What a name stands for: a target, or text."""
        if name in local:
            what = local[name]
            return name if what is None else what
        if name in module.definitions:
            return module.name, name
        if name in module.imports:
            return module.imports[name]
        return module.outside.get(name, name)

    def _write_attribute(
        self, node: ast.Attribute, text: Text, module: Module, local: Mapping[str, Any]
    ) -> bool:
        """Write `module.name` as what it is; False where it is an attribute of a value."""
        chain = [node.attr]
        value = node.value
        while isinstance(value, ast.Attribute):
            chain.insert(0, value.attr)
            value = value.value
        if not isinstance(value, ast.Name):
            return False
        what = self._meaning(value.id, module, local)
        if isinstance(what, str):
            return False
        while chain and not what[1] and self._modules.is_ours(what[0]):
            deeper = f"{what[0]}.{chain[0]}"
            what = (deeper, "") if self._modules.is_module(deeper) else (what[0], chain[0])
            chain.pop(0)
        self._refer(what, text)
        text.parts += [f".{name}" for name in chain]
        return True


def _parsed(hint: str) -> ast.expr | None:
    try:
        return ast.parse(hint, mode="eval").body
    except SyntaxError:  # a literal
        return None
