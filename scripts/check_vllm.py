"""Whether the vLLM of this environment can be used; the last step of `make vllm`.

Arguments are packages that must be absent:

    .venv/bin/python scripts/check_vllm.py torchvision torchaudio
"""

from __future__ import annotations

import importlib
import importlib.util
import sys

from synergy_gym.live.vllm.version import load_vllm

NEEDED = ("vllm.v1.core.sched.scheduler", "httpx", "prometheus_client", "starlette", "uvicorn")


def main(unwanted: list[str]) -> int:
    """Import the engine and what the extra live adds; 1 with the reason when that fails."""
    present = [name for name in unwanted if importlib.util.find_spec(name)]
    if present:
        print(
            f"error: {', '.join(present)} should be gone; remove .venv and try again",
            file=sys.stderr,
        )
        return 1
    try:
        vllm = load_vllm()
        for name in NEEDED:
            importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:
        print(
            f"error: vLLM is installed but cannot be used: {error}; remove .venv and try again",
            file=sys.stderr,
        )
        return 1
    print(f"vLLM {vllm.__version__} is ready", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
