"""The package: what it is made of, what an import costs, and that a wheel works anywhere."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MAPPING: dict[str, str] = PYPROJECT["tool"]["setuptools"]["package-dir"]
HEAVY = (
    *("torch", "stable_baselines3", "sb3_contrib", "vllm", "ray", "pandas", "matplotlib"),
    *("numba", "scipy", "pydantic", "typer", "rich", "pooch"),
)
MODULE_OF = {"pillow": "PIL", "prometheus-client": "prometheus_client"}


def run_python(code: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": "", **env},
        capture_output=True,
        text=True,
        check=False,
    )


def packages_in_tree() -> Iterator[tuple[str, Path]]:
    """Every folder with Python files, by the name that the mapping gives it."""
    for package, folder in MAPPING.items():
        for path in sorted({file.parent for file in (ROOT / folder).rglob("*.py")}):
            parts = path.relative_to(ROOT / folder).parts
            yield ".".join((package, *parts)), path


def test_the_package_list_equals_the_tree() -> None:
    found = dict(packages_in_tree())
    assert sorted(found) == sorted(PYPROJECT["tool"]["setuptools"]["packages"])
    assert [name for name, path in found.items() if not (path / "__init__.py").is_file()] == []


def test_every_imported_distribution_is_declared() -> None:
    extras = PYPROJECT["project"]["optional-dependencies"]
    lines = PYPROJECT["project"]["dependencies"] + [
        line for name in extras for line in extras[name]
    ]
    names = {re.split(r"[\[<>=]", line)[0].lower() for line in lines}
    declared = {MODULE_OF.get(name, name.replace("-", "_")) for name in names}
    imported = {name for _, path in packages_in_tree() for name in third_party(path)}
    assert imported - declared - {"synergy_gym"} == set()


def third_party(folder: Path) -> set[str]:
    nodes = [n for file in folder.glob("*.py") for n in ast.walk(ast.parse(file.read_text()))]
    names = {alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names}
    names |= {str(n.module) for n in nodes if isinstance(n, ast.ImportFrom) and n.level == 0}
    return {name.split(".")[0] for name in names} - sys.stdlib_module_names


def test_version_is_the_same_everywhere() -> None:
    import synergy_gym

    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {synergy_gym.__version__}\n" in citation
    assert f"## [{synergy_gym.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_import_loads_nothing_heavy(tmp_path: Path) -> None:
    code = f"import sys, synergy_gym; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    result = run_python(code, tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []


def test_every_public_name_resolves() -> None:
    import synergy_gym

    for name in synergy_gym.__all__:
        assert getattr(synergy_gym, name) is not None
    assert set(synergy_gym.__all__) <= set(dir(synergy_gym))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        synergy_gym.nonsense  # noqa: B018


def test_environments_are_registered() -> None:
    import gymnasium

    import synergy_gym  # noqa: F401

    for name in ("EngineBatching", "ClusterRouting", "CrossLayer"):
        for version in ("v0", "v1"):
            spec = gymnasium.spec(f"SynergyGym/{name}-{version}")
            assert not spec.order_enforce
            assert spec.disable_env_checker


@pytest.mark.parametrize("package", ["envs", "policies"])
@pytest.mark.parametrize("before", ["", "import synergy_gym; "])
def test_a_second_copy_cannot_be_imported(package: str, before: str) -> None:
    result = run_python(f"{before}import {package}", ROOT)
    assert result.returncode != 0
    assert f"import this package as `synergy_gym.{package}`" in result.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the sources; needs no network."""
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        from typecheck import copy_sources
    finally:
        sys.path.pop(0)
    folder = tmp_path_factory.mktemp("wheel")
    source = copy_sources(folder / "source")
    options = ["-q", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(source)], check=True)
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_tree(wheel: Path) -> None:
    expected = set()
    for package, folder in MAPPING.items():
        for file in (ROOT / folder).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                expected.add(
                    "/".join((package.replace(".", "/"), *file.relative_to(ROOT / folder).parts))
                )
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == expected


@pytest.mark.slow
@pytest.mark.parametrize("place", ["elsewhere", "root"])
def test_the_wheel_works_from_any_folder(wheel: Path, tmp_path: Path, place: str) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = (
        "import gymnasium, synergy_gym, synergy_gym.envs, synergy_gym.policies as p;"
        "print(synergy_gym.__file__, len(synergy_gym.list_scenarios()) > 0, p.__name__);"
        "print(type(gymnasium.make('SynergyGym/EngineBatching-v1').unwrapped).__module__)"
    )
    result = run_python(code, ROOT if place == "root" else Path("/"), PYTHONPATH=str(site))
    assert result.returncode == 0, result.stderr
    owner = ROOT if place == "root" else site  # the current folder comes first on the path
    lines = result.stdout.splitlines()
    assert lines[0] == f"{owner}/synergy_gym/__init__.py True synergy_gym.policies"
    assert lines[1] == "synergy_gym.envs.engine_batching"
