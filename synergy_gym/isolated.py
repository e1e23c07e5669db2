"""The program that `isolation.py` starts; worker processes run it before their work, too.

Everywhere it loads the very package that it lies in, wherever else Python would find one. Plug-ins
are left out, as every policy that a board can name comes with the package.
"""

import importlib.util
import os
import sys
from pathlib import Path


def load_package() -> None:
    """Import `synergy_gym` from beside this file."""
    init = Path(__file__).resolve().with_name("__init__.py")
    spec = importlib.util.spec_from_file_location(
        "synergy_gym", init, submodule_search_locations=[str(init.parent)]
    )
    assert spec is not None
    assert spec.loader is not None
    package = sys.modules["synergy_gym"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)


def run(folder: str, command: str, *arguments: str) -> None:
    """Run a command; `folder` is where its relative paths start."""
    os.environ["SYNERGY_GYM_PLUGINS"] = "0"
    from synergy_gym.cli.app import main

    main([command, "--from", folder, *arguments])


if __name__ in ("__main__", "__mp_main__"):
    load_package()
if __name__ == "__main__":
    run(*sys.argv[1:])
