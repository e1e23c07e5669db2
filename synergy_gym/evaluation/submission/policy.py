"""The policies of a submission: found by what the user named, copied into its folder.

What plays is the copy, so that the folder holds what its rows were made with. A copy is called
after the policy's name in the tables, which keeps the files of many submissions apart.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from synergy_gym.evaluation.submission.source import source_problems
from synergy_gym.policies.agent_file import AGENT_PREFIX, load_agent, packaged_agents
from synergy_gym.policies.base import Layer, Policy
from synergy_gym.policies.registry import (
    describe,
    engine_policies,
    make_engine_policy,
    make_router_policy,
    router_policies,
)

POLICY_FOLDER = "policy"
"""Where a submission keeps the files of its policies."""
MAKERS = {"engine": make_engine_policy, "router": make_router_policy}
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}")


@dataclass(frozen=True)
class Entry:
    """One policy of a submission.

    Attributes:
        layer: what it decides for.
        name: how tables name it.
        spec: what builds it: relative to the folder where `own`, else a registered policy.
        own: whether the submission brings it.
    """

    layer: Layer
    name: str
    spec: str
    own: bool


@dataclass(frozen=True)
class _Source:
    """A file, and what follows it in a specification."""

    path: Path
    prefix: str
    suffix: str


def adopt(text: str, layer: Layer, folder: Path, name: str = "") -> Entry:
    """Copy the policy that `text` names into `folder` and check that it can be built.

    Args:
        text: `file.py:Class`, `package.module:Class`, `agent:file.npz`, parameters after a
            further colon; or a registered policy, which is not copied.
        layer: what it has to decide for.
        folder: of the submission; made when missing.
        name: what tables call it; by default the registered name, the agent's name or the
            name of the class in kebab case.

    Raises:
        ValueError: there is no such policy, it is none of the layer, its file may not be
            submitted, or its name is taken.
    """
    source = _find(text)
    if source is None:
        MAKERS[layer](text)
        return Entry(layer, text, text, False)
    name = name or _own_name(source, layer)
    kept = PurePosixPath(POLICY_FOLDER, re.sub(r"[-.]", "_", name) + source.path.suffix)
    _check_name(name, folder / kept)
    _copy(source.path, folder / kept)
    entry = Entry(layer, name, f"{source.prefix}{kept}{source.suffix}", True)
    build(folder, entry)
    return entry


def build(folder: Path, entry: Entry) -> Policy:
    """The policy of an entry. Runs its code.

    Raises:
        ValueError: it cannot be loaded or decides for the other layer.
    """
    spec = spec_in(folder, entry.spec) if entry.own else entry.spec
    return MAKERS[entry.layer](spec)


def spec_in(folder: Path, text: str) -> str:
    """The specification `policy/file.py:Class` or `agent:policy/file.npz` with its full path.

    Raises:
        ValueError: the text names no plain file in `folder`/policy.
    """
    prefix, path, suffix = split_spec(text)
    return f"{prefix}{policy_file(folder, path).resolve()}{suffix}"


@contextmanager
def private_copy(folder: Path, files: Mapping[str, str]) -> Iterator[Path]:
    """A folder with a submission's policies and nothing else, for as long as they run.

    Nothing that lies beside them, such as machine code that numba once kept, runs in their place,
    and running them leaves nothing in the submission.

    Args:
        folder: of the submission.
        files: SHA-256 by relative path, as its manifest has them.

    Raises:
        ValueError: a file is missing or is not the manifest's.
    """
    with TemporaryDirectory(prefix="synergy-gym-") as name:
        home = Path(name).resolve()
        (home / POLICY_FOLDER).mkdir()
        for path, digest in files.items():
            content = policy_file(folder, path).read_bytes()
            if hashlib.sha256(content).hexdigest() != digest:
                raise ValueError(
                    f"{folder / path}: SHA-256 is not the manifest's; restore the file"
                )
            (home / path).write_bytes(content)
        try:
            yield home
        finally:
            _forget(home)


def _forget(folder: Path) -> None:
    """Unload the modules of a folder that goes away."""
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "/").is_relative_to(folder):
            del sys.modules[name]


def split_spec(text: str) -> tuple[str, str, str]:
    """`agent:` or nothing, the path, and what follows it from its colon on."""
    if text.startswith(f"{AGENT_PREFIX}:"):
        return f"{AGENT_PREFIX}:", text.removeprefix(f"{AGENT_PREFIX}:"), ""
    path, colon, rest = text.partition(":")
    return "", path, colon + rest


def policy_file(folder: Path, path: str) -> Path:
    """The file at a relative path of a submission; refuses every path but `policy/NAME`.

    Raises:
        ValueError: an absolute path, one that leaves the folder, a link, or no file.
    """
    parts = PurePosixPath(path).parts
    plain = len(parts) == 2 and parts[0] == POLICY_FOLDER and "\\" not in path
    if not plain or parts[1] in ("..", ".") or "/".join(parts) != path:
        raise ValueError(
            f"{path!r} is no file of the submission's own folder; write {POLICY_FOLDER}/NAME"
        )
    found = folder / path
    if found.is_symlink() or found.parent.is_symlink():
        raise ValueError(f"{path} is a symbolic link; a submission holds its files itself")
    if not found.is_file():
        raise ValueError(f"{path} is missing; restore it or submit again")
    return found


def is_registered(layer: Layer, spec: str) -> bool:
    """Whether a specification names a policy of this installation; loads no foreign file."""
    prefix, head, suffix = split_spec(spec)
    if prefix:
        return head in packaged_agents(layer)
    first = suffix[1:].partition(":")[0]
    if first and "=" not in first:
        return False
    try:
        describe(head, layer)
    except ValueError:
        return False
    return True


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _find(text: str) -> _Source | None:
    """The file behind a specification; `None` for a registered policy."""
    prefix, head, suffix = split_spec(text)
    if prefix:
        return _Source(Path(head), prefix, "") if head.endswith(".npz") else None
    first = suffix[1:].partition(":")[0]
    if not first or "=" in first:
        return None
    if head.endswith(".py"):
        return _Source(_existing(Path(head), text), "", suffix)
    return _Source(_module_file(head, text), "", suffix)


def _existing(path: Path, text: str) -> Path:
    if not path.is_file():
        raise ValueError(f"policy {text!r}: no file {path}; check the path")
    return path


def _module_file(module: str, text: str) -> Path:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError) as error:
        raise ValueError(f"policy {text!r}: cannot find {module!r} ({error})") from error
    origin = None if spec is None else spec.origin
    if origin is None or not origin.endswith(".py"):
        raise ValueError(
            f"policy {text!r}: no Python file of module {module!r}; install it, or write "
            "folder/file.py:Class"
        )
    return Path(origin)


def _own_name(source: _Source, layer: Layer) -> str:
    """The agent's name, or that of the class in kebab case."""
    if source.prefix:
        return load_agent(source.path, layer).name
    name = source.suffix[1:].partition(":")[0].replace(".", "-")
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower().replace("_", "-")


def _check_name(name: str, kept: Path) -> None:
    """Refuse a name that tables know already, unless by this very file."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"name {name!r}: use up to 64 letters, digits, '.', '_' and '-'")
    kinds: dict[Layer, list[str]] = {"engine": engine_policies(), "router": router_policies()}
    taken = [kind for kind, names in kinds.items() if name in names]
    if any(Path(describe(name, kind).source) != kept.resolve() for kind in taken):
        raise ValueError(f"{name!r} is a registered policy; give yours another --name")


def _copy(source: Path, target: Path) -> None:
    problems = source_problems(source, str(source)) if source.suffix == ".py" else []
    if problems:
        raise ValueError("; ".join(problems))
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_symlink() or (target.is_file() and file_sha256(target) != file_sha256(source)):
        raise ValueError(
            f"{target} holds other contents than {source}; rows of two policies do not mix, "
            "choose another --out or remove the folder"
        )
    shutil.copyfile(source, target)
