"""Modules as their statements: which names they bind, and what their imports are."""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.util import resolve_name
from pathlib import Path
from types import MappingProxyType

PACKAGE = "synergy_gym"
_PURE = ("dataclasses.", "functools.", "contextlib.", "typing.", "enum.", "abc.", "numba.")
"""Decorators from here enter nothing into a table: an unused definition under them is no effect."""
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
SCOPES = (*_FUNCTIONS, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)

_FILE_NAME = re.compile(r"[\w-]+\.(csv|json|toml)")

Target = tuple[str, str]
"""A module of this package and a name in it; an empty name is the whole module."""
Node = tuple[str, int]
"""A module and the position of a statement in it."""


@cache
def package_modules() -> Mapping[str, Path]:
    """Every module of this package and its file, wherever its folders lie."""
    import synergy_gym

    found: dict[str, Path] = {}
    root = Path(synergy_gym.__file__).parent
    folders = [(PACKAGE, root)]
    if not (root / "policies").is_dir():  # a checkout
        folders += [(f"{PACKAGE}.{name}", root.parent / name) for name in ("envs", "policies")]
    for package, folder in folders:
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join((package, *parts)).removesuffix(".__init__")
            found[name] = path
    return MappingProxyType(found)


@dataclass
class Module:
    """The statements of a module, and what its names are.

    Attributes:
        name: as it is imported.
        statements: of its top level; they are named by their position.
        is_package: its file is an `__init__.py`.
        definitions: positions of the statements that bind a name.
        imports: names of other of these modules, or in them.
        outside: names of other packages, as they are called there.
        effects: positions of statements that count with every definition of the module.
    """

    name: str
    statements: list[ast.stmt]
    is_package: bool = False
    definitions: dict[str, list[int]] = field(default_factory=dict)
    imports: dict[str, Target] = field(default_factory=dict)
    outside: dict[str, str] = field(default_factory=dict)
    effects: list[int] = field(default_factory=list)


class Modules:
    """Modules that are looked into, each parsed once.

    Args:
        files: file by module name.
        sources: source text by module name, for modules whose text lies elsewhere.
        boundary: modules and packages that are not looked into.
    """

    def __init__(
        self,
        files: Mapping[str, Path],
        sources: Mapping[str, bytes] = MappingProxyType({}),
        boundary: Iterable[str] = (),
    ) -> None:
        self._files = dict(files)
        self._sources = dict(sources)
        self._boundary = tuple(boundary)
        self._modules: dict[str, Module] = {}

    def get(self, name: str) -> Module | None:
        """A module by its name, or `None`."""
        if name in self._modules:
            return self._modules[name]
        if name in self._sources:
            source, path = self._sources[name], None
        elif name in self._files:
            path = self._files[name]
            source = path.read_bytes()
        else:
            return None
        is_package = path is not None and path.name == "__init__.py"
        module = Module(name, ast.parse(source).body, is_package)
        self._modules[name] = module
        for position, statement in enumerate(module.statements):
            self._enter(module, position, statement)
        return module

    def _enter(self, module: Module, position: int, statement: ast.stmt) -> None:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            self.enter_import(module, statement, module.imports, module.outside)
            return
        if _is_docstring(statement):
            return
        names = [] if _is_for_types(statement) else sorted(set(_bound(statement)))
        for name in names:
            module.definitions.setdefault(name, []).append(position)
        decorators = getattr(statement, "decorator_list", ())
        is_silent = bool(names) or _is_for_types(statement)
        if not is_silent or any(self._enters(module, one) for one in decorators):
            module.effects.append(position)
        for inner in ast.walk(statement):  # an import inside `if` or `try` at the top
            if not isinstance(statement, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
                self.enter_import(module, inner, module.imports, module.outside)

    def _enters(self, module: Module, decorator: ast.expr) -> bool:
        """Whether a decorator may enter what it decorates somewhere: it is another package's."""
        called = decorator.func if isinstance(decorator, ast.Call) else decorator
        root = called
        while isinstance(root, ast.Attribute):
            root = root.value
        outside = module.outside.get(root.id) if isinstance(root, ast.Name) else None
        if outside is None:
            return False
        full = f"{outside}{ast.unparse(called)[len(ast.unparse(root)) :]}"
        return full not in ("numba.extending.intrinsic",) and (
            full.startswith("numba.core.")
            or full.startswith("numba.extending.")
            or not full.startswith(_PURE)
        )

    def enter_import(
        self,
        module: Module,
        statement: ast.AST,
        inside: dict[str, Target],
        outside: dict[str, str],
    ) -> None:
        """Enter what an import statement binds: names of these modules, and of others."""
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                name = alias.asname or alias.name.split(".")[0]
                whole = alias.name if alias.asname else name
                if self.is_ours(whole):
                    inside[name] = (whole, "")
                else:
                    outside[name] = whole
        elif isinstance(statement, ast.ImportFrom):
            base = statement.module or ""
            if statement.level:
                package = module.name if module.is_package else module.name.rpartition(".")[0]
                base = resolve_name("." * statement.level + base, package)
            for alias in statement.names:
                name = alias.asname or alias.name
                if f"{base}.{alias.name}" in self._files:
                    inside[name] = (f"{base}.{alias.name}", "")
                elif self.is_ours(base):
                    inside[name] = (base, alias.name)
                else:
                    outside[name] = f"{base}.{alias.name}"

    def is_ours(self, module: str) -> bool:
        """Whether a module is one of these."""
        return module in self._files or module in self._sources

    def resolve(self, target: Target) -> list[Node]:
        """Where a target is defined, through whatever re-exports it."""
        name, wanted = target
        module = self.get(name)
        if module is None or self._is_beyond(name):
            return []
        if not wanted:
            kept = {p for positions in module.definitions.values() for p in positions}
            return [(name, p) for p in sorted({*kept, *module.effects})]
        if wanted in module.definitions:
            return [(name, p) for p in module.definitions[wanted]]
        if wanted in module.imports and module.imports[wanted] != target:
            return self.resolve(module.imports[wanted])
        if f"{name}.{wanted}" in self._files:
            return self.resolve((f"{name}.{wanted}", ""))
        return [(name, p) for p in module.definitions.get("__getattr__", ())]

    def effects(self, name: str) -> list[Node]:
        """Statements of a module that bind no name, or enter what they decorate somewhere."""
        module = self.get(name)
        return [] if module is None else [(name, p) for p in module.effects]

    def is_module(self, name: str) -> bool:
        """Whether a file is known under this name."""
        return name in self._files

    def _is_beyond(self, module: str) -> bool:
        return any(module == name or module.startswith(f"{name}.") for name in self._boundary)

    def data_file_hash(self, name: str, module: Module) -> str:
        """Hash of the data file of this name beside a module; empty where there is none."""
        path = self._files.get(module.name)
        if path is None or not _FILE_NAME.fullmatch(name):
            return ""
        file = path.parent / name
        return hashed_file(file) if file.is_file() else ""


def _is_docstring(statement: ast.stmt) -> bool:
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def _is_for_types(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test)


def says_nothing(statement: ast.stmt) -> bool:
    """Whether a statement is an import or a docstring."""
    return isinstance(statement, ast.Import | ast.ImportFrom) or _is_docstring(statement)


def binds(node: ast.AST) -> list[str]:
    """Names that one node binds, without what is in it."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store | ast.Del):
        return [node.id]
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.arg):
        return [node.arg]
    if isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
        return [node.name]
    return []


def own_nodes(scope: ast.AST) -> Iterator[ast.AST]:
    """Nodes of a function, not those of functions inside it."""
    for child in ast.iter_child_nodes(scope):
        yield child
        if not isinstance(child, (*SCOPES, ast.ClassDef)):
            yield from own_nodes(child)


def _bound(statement: ast.stmt) -> Iterator[str]:
    """Names that a statement of a module binds."""
    yield from binds(statement)
    if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        for node in own_nodes(statement):
            yield from binds(node)


def hashed_file(path: Path) -> str:
    """SHA-256 (hex) of a data file; line ends make no difference to text."""
    data = path.read_bytes()
    text = path.suffix in {".csv", ".json", ".toml"}
    return hashlib.sha256(data.replace(b"\r\n", b"\n") if text else data).hexdigest()
