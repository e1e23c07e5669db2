"""Run mypy on what ships: install the package into a folder and check it there.

`envs/` and `policies/` are `synergy_gym.envs` and `synergy_gym.policies` only once installed.

    python scripts/typecheck.py
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "typecheck"
SOURCES = ("synergy_gym", "envs", "policies", "pyproject.toml", "README.md", "LICENSE")


def copy_sources(target: Path) -> Path:
    """Copy everything that the build reads, so that leftovers of earlier builds cannot ship."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(
                source, target / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
            )
        else:
            shutil.copy2(source, target / name)
    return target


def install(source: Path, site: Path) -> None:
    """Install the copy into the folder `site`, without dependencies."""
    shutil.rmtree(site, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "-qq", "install", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--target", str(site), str(source)], check=True)


def main() -> int:
    """Install, check, and return mypy's exit code."""
    site = BUILD / "site"
    install(copy_sources(BUILD / "source"), site)
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")]
    cache = ["--cache-dir", str(ROOT / ".mypy_cache" / "shipped")]
    return subprocess.run([*command, *cache, "-p", "synergy_gym"], cwd=site).returncode


if __name__ == "__main__":
    sys.exit(main())
