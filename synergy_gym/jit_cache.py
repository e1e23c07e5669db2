"""Where machine code is kept, and how old it may be.

Numba keeps machine code beside the sources, or where these cannot be written in the user's cache
folder. Here a cache that is damaged, foreign or cannot be written costs a compilation, never a run.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numba

_ROOT = Path(__file__).resolve().parent
_COMPILES = re.compile(rb"from synergy_gym\.jit import|^(import|from) numba", re.MULTILINE)
_IMPORT = re.compile(r"^from synergy_gym\.([\w.]+) import (\([^)]*\)|.*)", re.MULTILINE)
_NAME = re.compile(r"\w+")


class SturdyFiles:
    """Numba's files of one function: errors of reading and writing are a miss.

    Args:
        files: numba's own.
    """

    def __init__(self, files: Any) -> None:
        self._files = files
        # Kernels are inlined across files: without this an edited callee would leave its callers
        # with old machine code.
        files._source_stamp = (files._source_stamp, source_hash())

    def load(self, key: Any) -> Any:
        """The entry of a signature, or `None`."""
        try:
            return self._files.load(key)
        except Exception:  # whatever reading a damaged file brings, unpickling it included
            return None

    def save(self, key: Any, data: Any) -> None:
        """Keep an entry, if possible."""
        try:
            self._files.save(key, data)
        except OSError:
            return
        except Exception:  # a damaged index
            self._start_anew(key, data)

    def _start_anew(self, key: Any, data: Any) -> None:
        try:
            self._files.flush()
            self._files.save(key, data)
        except OSError:
            return

    def flush(self) -> None:
        """Forget everything."""
        self._files.flush()


def make_sturdy(compiled: Any) -> None:
    """Have a function's cache know all sources, and survive damage."""
    kept: Any = getattr(compiled, "_cache", None)
    files: Any = getattr(kept, "_cache_file", None)
    if hasattr(files, "_source_stamp"):
        kept._cache_file = SturdyFiles(files)


def use_temporary_folder() -> None:
    """Keep machine code in the system's temporary folder, since nothing else can be written."""
    numba.config.CACHE_DIR = str(Path(tempfile.gettempdir()) / f"synergy-gym-{_user()}")


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name
        return "nobody"


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
