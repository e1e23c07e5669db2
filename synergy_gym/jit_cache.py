"""Where machine code is kept, and how old it may be.

Numba keeps machine code beside the sources, or where these cannot be written in the user's cache
folder; here the system's temporary folder comes last. What lies beside the sources is read in any
case: images of containers and shared installations bring it along. A cache that is damaged, foreign
or cannot be written costs a compilation, never a run.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import os
import pickle
import re
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import CompileResultCacheImpl, FunctionCache, InTreeCacheLocator

_ROOT = Path(__file__).resolve().parent
_COMPILES = re.compile(rb"from synergy_gym\.jit import|^(import|from) numba", re.MULTILINE)
_IMPORT = re.compile(r"^from synergy_gym\.([\w.]+) import (\([^)]*\)|.*)", re.MULTILINE)
_NAME = re.compile(r"\w+")
_PREFIX = "synergy-"  # numba itself would stumble over these files
_PROBE_BYTES = 1 << 18  # about the largest kernel
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH

OnTrouble = Callable[[str], None]
"""Is told why machine code could not be kept."""


class DamagedError(Exception):
    """A file is not what was written, or was made of other sources."""


class SturdyFiles:
    """The cache files of one function, in the place that numba gives them.

    Every file begins with a hash of its content and of the sources: machine code that was cut off,
    changed, or made by another numba or of other sources is never loaded, and thus cannot crash.

    Args:
        files: numba's own.
        stamp: what the machine code is made of.
        folders: where else to look for it.
    """

    def __init__(self, files: Any, stamp: tuple[str, str], folders: Sequence[Path] = ()) -> None:
        self._files = files
        self._stamp = "\n".join(stamp).encode()
        index = Path(files._index_path)
        self._index = index.with_name(_PREFIX + index.name)
        self._folders = (self._index.parent, *folders)

    def load(self, key: Any) -> Any:
        """The entry of a signature, or `None`."""
        for folder in self._folders:
            name = self._load_index(folder).get(key)
            if name is None:
                continue
            try:
                kept_key, data = pickle.loads(self._read(folder / name))
            except Exception:  # whatever reading a damaged or foreign file brings
                continue
            if kept_key == key:  # processes that write at once may take the same name
                return data
        return None

    def save(self, key: Any, data: Any) -> None:
        """Keep an entry.

        Raises:
            OSError: that is not possible.
        """
        names = self._load_index(self._index.parent)
        name = names.get(key)
        if name is None:
            taken = set(names.values())
            numbered = (_PREFIX + self._files._data_name(i) for i in itertools.count(1))
            name = next(one for one in numbered if one not in taken)
        # An index never speaks of what is not there yet.
        self._write(self._index.with_name(name), (key, data))
        self._write(self._index, {**names, key: name})

    def flush(self) -> None:
        """Forget everything."""
        self._write(self._index, {})

    def _load_index(self, folder: Path) -> dict[Any, str]:
        try:
            names: dict[Any, str] = pickle.loads(self._read(folder / self._index.name))
        except Exception:
            return {}
        return names

    def _read(self, path: Path) -> bytes:
        data = path.read_bytes()
        content = data[hashlib.sha256().digest_size :]
        if data != self._hash(content) + content:
            raise DamagedError(str(path))
        return content

    def _write(self, path: Path, what: Any) -> None:
        content = self._files._dump(what)
        with self._files._open_for_write(str(path)) as file:
            file.write(self._hash(content) + content)

    def _hash(self, content: bytes) -> bytes:
        return hashlib.sha256(self._stamp + content).digest()


class SturdyCache:
    """What numba asks for machine code and gives it to: whatever goes wrong is a miss.

    Args:
        kept: numba's own cache of a function.
        on_trouble: is told when an entry could not be kept.
    """

    def __init__(self, kept: Any, on_trouble: OnTrouble) -> None:
        self._kept = kept
        self._on_trouble = on_trouble

    @property
    def cache_path(self) -> str:
        """The folder."""
        return str(self._kept.cache_path)

    def load_overload(self, signature: Any, target: Any) -> Any:
        """Machine code of a signature, or `None`."""
        try:
            return self._kept.load_overload(signature, target)
        except Exception:
            return None

    def save_overload(self, signature: Any, code: Any) -> None:
        """Keep machine code, if possible."""
        try:
            self._kept.save_overload(signature, code)
        except Exception as error:
            self._on_trouble(_reason(error))

    def flush(self) -> None:
        """Forget everything."""
        self._kept.flush()

    def trouble(self) -> str:
        """Why nothing can be kept now; empty if it can."""
        try:
            os.makedirs(self.cache_path, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.cache_path) as file:
                file.write(bytes(_PROBE_BYTES))
        except OSError as error:
            return _reason(error)
        return ""


class _Beside(InTreeCacheLocator):  # type: ignore[misc]
    """The folder beside the sources, whether it can be written or not."""

    def ensure_cache_path(self) -> None:
        """Writing says what is wrong."""


class _BesideImpl(CompileResultCacheImpl):  # type: ignore[misc]
    _locator_classes = (_Beside,)


class _BesideCache(FunctionCache):  # type: ignore[misc]
    _impl_class = _BesideImpl


def keep(compiled: Any, on_trouble: OnTrouble) -> None:
    """Keep the machine code of a function between processes, wherever that is possible.

    Args:
        compiled: numba's function.
        on_trouble: is told when an entry could not be kept.
    """
    if not _enabled(compiled) and not (use_temporary_folder() and _enabled(compiled)):
        compiled._cache = _BesideCache(compiled.__wrapped__)
    kept = compiled._cache
    if hasattr(kept, "_cache_file"):
        kept._cache_file = _sturdy_files(kept)
    compiled._cache = SturdyCache(kept, on_trouble)


def _enabled(compiled: Any) -> bool:
    try:
        compiled.enable_caching()
    except RuntimeError:  # numba: no folder can be written
        return False
    return True


def _sturdy_files(kept: Any) -> SturdyFiles:
    files = kept._cache_file
    source = Path(inspect.getfile(kept._py_func))
    beside = source.resolve().parent / "__pycache__"
    try:
        own = _hash_of(source)
    except OSError:  # a notebook's cell
        own = str(files._source_stamp)
    # Kernels are inlined across files: without the hash of all sources an edited callee would leave
    # its callers with old machine code. Content counts, not the time of a file, which layers of
    # container images round.
    return SturdyFiles(files, (source_hash(), own), (beside,))


def use_temporary_folder() -> bool:
    """Keep machine code in the system's temporary folder, since nothing else can be written.

    Returns:
        Whether there is one that belongs to this user alone: machine code of others is not run.
    """
    folder = temporary_folder()
    if folder is None:
        return False
    numba.config.CACHE_DIR = str(folder)
    return True


def temporary_folder() -> Path | None:
    """A folder in the system's temporary one that belongs to this user alone, or `None`."""
    try:
        folder = Path(tempfile.gettempdir()) / f"synergy-gym-{_user()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return None
    if not stat.S_ISDIR(found.st_mode):
        return None
    if hasattr(os, "getuid") and (found.st_uid != os.getuid() or found.st_mode & _OTHERS_WRITE):
        return None
    return folder


def _user() -> str:
    return str(os.getuid()) if hasattr(os, "getuid") else "user"


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"


@cache
def _hash_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@cache
def source_hash() -> str:
    """Hash of all sources that machine code is made of."""
    digest = hashlib.sha256(numba.__version__.encode())
    for path in sorted(kernel_files()):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def kernel_files() -> set[Path]:
    """Every source that compiles something, and those whose constants it takes."""
    # In a checkout `envs` and `policies` lie beside the package, else inside it.
    beside = _ROOT if (_ROOT / "envs").is_dir() else _ROOT.parent
    folders = {"envs": beside / "envs", "policies": beside / "policies"}
    files = [*_ROOT.rglob("*.py"), *(file for at in folders.values() for file in at.rglob("*.py"))]
    pending = [file for file in files if re.search(_COMPILES, _content(file))]
    found: set[Path] = set()
    while pending:
        file = pending.pop()
        if file not in found:
            found.add(file)
            pending += _constant_files(_content(file).decode(errors="replace"), folders)
    return found


def _content(file: Path) -> bytes:
    """Of a source; editors leave links to nowhere beside it."""
    try:
        return file.read_bytes()
    except OSError:
        return b""


def _constant_files(source: str, folders: Mapping[str, Path]) -> Iterator[Path]:
    """Files of this package from which a source imports a constant (a name in capitals)."""
    for module, names in _IMPORT.findall(source):
        if any(name.isupper() for name in _NAME.findall(names)):
            first, *rest = module.split(".")
            file = folders.get(first, _ROOT / first).joinpath(*rest).with_suffix(".py")
            if file.is_file():
                yield file
