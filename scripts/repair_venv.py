"""Make pip forget packages whose installation was cut off, so that it installs them again.

An interrupted pip leaves packages half unpacked. Where their metadata is there already, the next
`pip install` takes them for installed. pip writes `INSTALLER` into a package's metadata last: what
lacks it was cut off. Names of such packages go to stderr.

    .venv/bin/python scripts/repair_venv.py
"""

from __future__ import annotations

import shutil
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path


def cut_off(site: Path) -> list[Path]:
    """Metadata folders in `site` of packages whose installation never ended."""
    folders = sorted(site.glob("*.dist-info"))
    return [folder for folder in folders if not (folder / "INSTALLER").is_file()]


def leftovers(site: Path) -> list[Path]:
    """What an interrupted upgrade or removal had put aside: pip renames it to `~...`."""
    return sorted(site.glob("~*"))


def forget(paths: Iterable[Path]) -> None:
    """Delete these files and folders, saying so."""
    for path in paths:
        print(f"cut off, to be installed again: {path.name}", file=sys.stderr)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def main() -> int:
    """Repair the environment that this interpreter belongs to; a system's own is left alone."""
    if sys.prefix == sys.base_prefix:
        print(f"{sys.prefix} is not a virtual environment; left alone", file=sys.stderr)
        return 1
    for site in {Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")}:
        forget([*cut_off(site), *leftovers(site)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
