"""Policies by name: registration, construction from text, descriptions.

A specification is a name (`round-robin`), a name with parameters
(`sarathi-512:chunk_tokens=256`), a member of a family (`static-384`), a class anywhere
(`package.module:Class` or `folder/file.py:Class`, parameters after a second colon), a trained
agent (`agent:NAME` or `agent:FILE.npz`), a class, or an instance.
Files in `engine/` and `router/` are found by themselves; another distribution adds policies
with an entry point of the group `synergy_gym.policies` that names the module to import, once it is
installed (an unpacked one in the current folder is not).
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import os
import pkgutil
import re
import sys
import warnings
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar, get_type_hints

from synergy_gym.policies.agent_file import AGENT_PREFIX, packaged_agents
from synergy_gym.policies.base import (
    SOURCE_VARIABLE,
    EnginePolicy,
    Layer,
    Policy,
    RouterPolicy,
    default_of,
    parameter_fields,
)
from synergy_gym.policies.convert import convert

ENTRY_POINTS = "synergy_gym.policies"
PLUG_INS_VARIABLE = "SYNERGY_GYM_PLUGINS"
"""Environment variable; "0" leaves all plug-ins out."""

P = TypeVar("P", bound=Policy)
E = TypeVar("E", bound=type[EnginePolicy])
R = TypeVar("R", bound=type[RouterPolicy])


@dataclass(frozen=True, slots=True)
class PolicyInfo:
    """What `describe` tells about a registered policy.

    Attributes:
        name: its name; `static-N` for a family.
        kind: "engine" or "router".
        summary: first line of the class docstring.
        reference: docstring of its file, which names paper or system.
        information: information classes that it reads, sorted.
        parameters: default by parameter name (`None` where it must be given); without the one
            that the name of a family's member sets.
        source: file that defines it.
    """

    name: str
    kind: Layer
    summary: str
    reference: str
    information: tuple[str, ...]
    parameters: dict[str, Any]
    source: str


class _Registry(Generic[P]):
    """Classes of one kind by name."""

    def __init__(self, kind: Layer, base: type[P], classes: frozenset[str]) -> None:
        self.kind: Layer = kind
        self.base = base
        self.classes = classes
        self.entries: dict[str, type[P]] = {}
        self.examples: dict[str, tuple[int, ...]] = {}

    def add(self, cls: type[P], name: str, information: frozenset[str], family: str) -> None:
        self._check(cls, name, information, family)
        cls.name, cls.information, cls.family = name, information, family
        self.entries[name] = cls

    def _check(self, cls: type[P], name: str, information: frozenset[str], family: str) -> None:
        where = f"{self.kind} policy {name!r} ({cls.__module__}.{cls.__qualname__})"
        if not (isinstance(cls, type) and issubclass(cls, self.base)):
            raise TypeError(f"{where} must be a subclass of {self.base.__name__}")
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
            raise ValueError(f"{where}: use letters, digits, '.', '_' and '-' in the name")
        if family and not name.endswith("-N"):
            raise ValueError(f"{where}: the name of a family ends with '-N'")
        if unknown := information - self.classes:
            raise ValueError(
                f"{where} declares the information classes {sorted(unknown)}; a policy of this "
                f"kind can read {sorted(self.classes)}"
            )
        known = self.entries.get(name)
        if known and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"{where}: {known.__module__} has registered this name already")

    def names(self) -> list[str]:
        load_all()
        result: list[str] = []
        for name, cls in self.entries.items():
            members = self.examples.get(name, ())
            result += [_member(name, n) for n in members] if cls.family else [name]
        return sorted(result)

    def find(self, name: str) -> tuple[type[P], dict[str, Any]]:
        """Class and preset parameters of a registered name or family member."""
        load_all()
        if name in self.entries and not self.entries[name].family:
            return self.entries[name], {}
        prefix, _, number = name.rpartition("-")
        cls = self.entries.get(f"{prefix}-N")
        if cls is not None and cls.family and re.fullmatch(r"\d+", number):
            return cls, {cls.family: int(number)}
        raise ValueError(self._unknown(name))

    def _unknown(self, name: str) -> str:
        families = [entry for entry, cls in self.entries.items() if cls.family]
        known = self.names()
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        if any(name in other.entries for other in (_ENGINE, _ROUTER) if other is not self):
            other_kind = "router" if self.kind == "engine" else "engine"
            hint = f"it is a policy of the {other_kind}s, pass it there. "
        if name in packaged_agents():
            hint = f"a trained agent is written {AGENT_PREFIX}:{name}. "
        more = f" (in {', '.join(families)} N is any number)" if families else ""
        return f"unknown {self.kind} policy {name!r}; {hint}Known: {', '.join(known)}{more}"

    def make(self, spec: str | P | type[P]) -> P:
        if isinstance(spec, self.base):
            return spec
        if isinstance(spec, type) and issubclass(spec, self.base):
            return _build(spec, spec.name or spec.__qualname__, {})
        if not isinstance(spec, str):
            raise TypeError(
                f"an {self.kind} policy is a name, a subclass of {self.base.__name__} or an "
                f"instance of one; got {spec!r}"
            )
        head, *rest = spec.split(":")
        if head == AGENT_PREFIX:
            policy: P = self.agent_class()(":".join(rest))
            return policy
        preset: dict[str, Any] = {}
        if rest and "=" not in rest[0]:
            cls = self._import(head, rest.pop(0), spec)
        else:
            cls, preset = self.find(head)
        return _build(cls, head, preset | _parse(cls, head, ":".join(rest)))

    def agent_class(self) -> Any:
        """The class of trained agents of this kind; it takes a file."""
        from synergy_gym.policies import learned

        return learned.LearnedEngine if self.kind == "engine" else learned.LearnedRouter

    def _import(self, module: str, name: str, spec: str) -> type[P]:
        try:
            found = functools.reduce(getattr, name.split("."), _module(module))
        except (ImportError, AttributeError, ValueError, OSError, SyntaxError) as error:
            raise ValueError(
                f"{self.kind} policy {spec!r}: cannot load {name!r} from {module!r} ({error}); "
                "write package.module:Class, file.py:Class, or name:key=value for parameters"
            ) from error
        if not (isinstance(found, type) and issubclass(found, self.base)):
            raise ValueError(f"{spec!r} is {found!r}, not a subclass of {self.base.__name__}")
        return found


def _module(name: str) -> ModuleType:
    """The module of that name, or of that file.

    A file is read once, and what was read runs: byte code beside it (`__pycache__`) need not be
    the file's, and is neither read nor written.
    """
    if not name.endswith(".py"):
        return importlib.import_module(name)
    path = Path(name).resolve()
    known = sys.modules.get(path.stem)
    if known is not None and getattr(known, "__file__", None) == str(path):
        return known
    if known is not None:
        raise ImportError(f"a module {path.stem!r} is loaded already; rename the file")
    source = path.read_bytes()
    code = compile(source, str(path), "exec", dont_inherit=True)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    vars(module)[SOURCE_VARIABLE] = source
    try:
        exec(code, vars(module))
    except BaseException:
        del sys.modules[path.stem]
        raise
    return module


_ENGINE: _Registry[EnginePolicy] = _Registry("engine", EnginePolicy, frozenset({"engine"}))
_ROUTER: _Registry[RouterPolicy] = _Registry(
    "router", RouterPolicy, frozenset({"router", "pushed", "scraped", "oracle"})
)


def _member(family: str, number: int) -> str:
    return f"{family.removesuffix('N')}{number}"


def _information(value: str | Iterable[str]) -> frozenset[str]:
    return frozenset([value] if isinstance(value, str) else value)


def engine_policy(
    name: str,
    information: str | Iterable[str] = "engine",
    *,
    family: str = "",
    examples: tuple[int, ...] = (),
) -> Callable[[E], E]:
    """Class decorator that registers an engine policy.

    Args:
        name: its name; ends with `-N` for a family such as `static-N`.
        information: what it reads; an engine policy can read class `engine` only.
        family: the integer field that N sets.
        examples: the N of a family that lists show and leaderboards play.

    Raises:
        ValueError: name taken or malformed, or an unknown information class.
    """

    def register(cls: E) -> E:
        _ENGINE.add(cls, name, _information(information), family)
        _ENGINE.examples[name] = examples
        return cls

    return register


def router_policy(name: str, information: str | Iterable[str] = "router") -> Callable[[R], R]:
    """Class decorator that registers a router policy.

    Args:
        name: its name.
        information: the classes that it reads, of `router`, `pushed`, `scraped`, `oracle`;
            views refuse everything else.

    Raises:
        ValueError: name taken or malformed, or an unknown information class.
    """

    def register(cls: R) -> R:
        _ROUTER.add(cls, name, _information(information), "")
        return cls

    return register


def make_engine_policy(spec: str | EnginePolicy | type[EnginePolicy]) -> EnginePolicy:
    """An engine policy from a specification (see the module); an instance is returned as it is.

    Raises:
        ValueError: unknown name or parameter, or a value that does not convert.
        TypeError: neither text nor an engine policy.
    """
    return _ENGINE.make(spec)


def make_router_policy(spec: str | RouterPolicy | type[RouterPolicy]) -> RouterPolicy:
    """A router policy from a specification (see the module); an instance is returned as it is.

    Raises:
        ValueError: unknown name or parameter, or a value that does not convert.
        TypeError: neither text nor a router policy.
    """
    return _ROUTER.make(spec)


def engine_policies() -> list[str]:
    """Names of the registered engine policies, sorted; families by their examples."""
    return _ENGINE.names()


def router_policies() -> list[str]:
    """Names of the registered router policies, sorted."""
    return _ROUTER.names()


def describe(name: str, kind: Layer | None = None) -> PolicyInfo:
    """What a registered policy or a trained agent is, reads and takes.

    Args:
        name: a name, a member of a family (`static-256`), the family (`static-N`), or an agent
            (`agent:NAME`, `agent:FILE.npz`).
        kind: needed when an engine and a router policy share the name.

    Raises:
        ValueError: unknown name, or one that needs `kind`.
    """
    prefix, colon, file = name.partition(":")
    if colon and prefix == AGENT_PREFIX:
        return _agent_info(file, kind)
    load_all()
    registries: list[_Registry[Any]] = [r for r in (_ENGINE, _ROUTER) if kind in (None, r.kind)]
    found = [(r.kind, cls) for r in registries if (cls := _lookup(r, name)) is not None]
    if len(found) > 1:
        raise ValueError(
            f"{name!r} is an engine and a router policy; pass kind='engine' or kind='router'"
        )
    if not found:
        raise ValueError(" / ".join(registry._unknown(name) for registry in registries))
    return _info(*found[0])


def _agent_info(file: str, kind: Layer | None) -> PolicyInfo:
    from synergy_gym.policies import agent_card, agent_file

    agent = agent_file.load_agent(file, kind)
    registry: _Registry[Any] = _ENGINE if agent.kind == "engine" else _ROUTER
    return PolicyInfo(
        name=f"{AGENT_PREFIX}:{file}",
        kind=agent.kind,
        summary=agent_card.summary(agent),
        reference=agent_card.read_card(file),
        information=tuple(sorted(registry.agent_class().information)),
        parameters={},
        source=str(agent_file.find_agent(file)),
    )


def _lookup(registry: _Registry[Any], name: str) -> type[Policy] | None:
    try:
        return registry.entries.get(name) or registry.find(name)[0]
    except ValueError:
        return None


def _info(kind: Layer, cls: type[Policy]) -> PolicyInfo:
    own = [item for item in parameter_fields(cls) if item.name != cls.family]
    defaults = {item.name: default_of(item) for item in own}
    return PolicyInfo(
        name=cls.name,
        kind=kind,
        summary=(inspect.getdoc(cls) or "").split("\n")[0],
        reference=inspect.getdoc(sys.modules[cls.__module__]) or "",
        information=tuple(sorted(cls.information)),
        parameters={key: None if v is MISSING else v for key, v in defaults.items()},
        source=inspect.getsourcefile(cls) or "",
    )


def _parse(cls: type[Policy], name: str, text: str) -> dict[str, Any]:
    """Parameters from `key=value,key=value`, converted to the types of the fields."""
    if not text:
        return {}
    hints = get_type_hints(cls)
    known = [item.name for item in parameter_fields(cls) if item.name != cls.family]
    values: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if key not in known or not equals:
            raise ValueError(
                f"policy {name!r} has no parameter {key!r}; "
                + (f"valid: {', '.join(known)}, written key=value" if known else "it takes none")
            )
        values[key] = convert(value, hints[key], f"policy {name!r}, parameter {key!r}")
    return values


def _build(cls: type[P], name: str, values: dict[str, Any]) -> P:
    missing = [
        item.name
        for item in parameter_fields(cls)
        if default_of(item) is MISSING and item.name not in values
    ]
    if missing:
        raise ValueError(f"policy {name!r} needs {', '.join(f'{key}=...' for key in missing)}")
    return cls(**values)


@functools.cache
def load_all() -> None:
    """Import every policy file of this package and every plug-in, once per process."""
    for package in ("synergy_gym.policies.engine", "synergy_gym.policies.router"):
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
            importlib.import_module(f"{package}.{module.name}")
    for entry in _plug_ins():
        try:
            entry.load()
        except Exception as error:  # one broken plug-in must not take every policy away
            warnings.warn(
                f"policy plug-in {entry.name!r} ({entry.value}) is left out, it fails to load: "
                f"{type(error).__name__}: {error}",
                RuntimeWarning,
                stacklevel=2,
            )


def _plug_ins() -> list[importlib.metadata.EntryPoint]:
    """Entry points of installed distributions; none with `SYNERGY_GYM_PLUGINS=0`.

    The current folder is often on Python's path, and nobody has installed what lies there.
    """
    if os.environ.get(PLUG_INS_VARIABLE) == "0":
        return []
    here = os.path.realpath(os.curdir)
    places = [place for place in sys.path if os.path.realpath(place or os.curdir) != here]
    found = importlib.metadata.distributions(path=places)
    entries = (entry for one in found for entry in one.entry_points.select(group=ENTRY_POINTS))
    return list(dict.fromkeys(entries))
