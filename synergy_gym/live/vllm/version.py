"""Where vLLM is imported, after its environment is set and before its version is trusted."""

from __future__ import annotations

import importlib
import logging
import os
import random
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import synergy_gym

SUPPORTED: tuple[str, ...] = ("0.32",)
"""Releases whose scheduler is held against the simulator (tests/parity)."""

ENVIRONMENT: Mapping[str, str] = MappingProxyType(
    {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        # oneDNN compiles a kernel per number of tokens and keeps 1024 by default, fewer than a
        # small model needs for steps of up to 512 tokens: every other step would compile again.
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16384",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
)
"""Defaults for offline, local engines; a variable that is already set wins."""

_SCHEDULER_ATTRIBUTES = (
    "max_num_scheduled_tokens",
    "max_num_active_reqs",
    "max_num_running_reqs",
    "running",
    "waiting",
    "kv_holding_waiting",
    "requests",
    "current_step",
    "scheduler_config",
    "kv_cache_manager",
    "block_size",
)


def python_path() -> str:
    """`PYTHONPATH` with which a child process loads this very package."""
    root = str(Path(synergy_gym.__file__).resolve().parents[1])
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join([root, *(path for path in known if path not in ("", root))])


class VllmUnavailableError(RuntimeError):
    """vLLM is absent, broken, or a release that this version does not steer."""


def prepare_environment(*, in_process: bool = False) -> None:
    """Set `ENVIRONMENT` where it is unset; vLLM reads it once, when it is first imported.

    Args:
        in_process: keep the engine core in the calling process, as stepping it needs, and let
            vLLM speak of errors only (it warns of its scheduler class and of speed at each start).
    """
    wanted = dict(ENVIRONMENT)
    if in_process:
        wanted |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
    for name, value in wanted.items():
        os.environ.setdefault(name, value)


def load_vllm(*, in_process: bool = False) -> Any:
    """The module `vllm`, usable and of a supported release.

    The global random state of the caller is left as it was.

    Raises:
        VllmUnavailableError: it is not installed, does not import, or is another release.
    """
    prepare_environment(in_process=in_process)
    state = random.getstate()
    logging.getLogger("torch._library.triton").setLevel(logging.ERROR)  # on a CPU there is none
    try:
        vllm = _imported()
    except (ImportError, OSError, RuntimeError) as error:
        raise VllmUnavailableError(
            f"vLLM cannot be imported ({type(error).__name__}: {error}); on a machine without a "
            "GPU run `make vllm`, with one `pip install 'synergy-gym[vllm]'`"
        ) from error
    finally:
        random.setstate(state)
    survive_kernel_scan()
    version = str(vllm.__version__)
    if not version.startswith(tuple(f"{release}." for release in SUPPORTED)):
        raise VllmUnavailableError(
            f"vLLM {version} is installed; the live engines steer {', '.join(SUPPORTED)}.x, whose "
            "scheduler they are tested against; install one of these"
        )
    return vllm


def _imported() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about itself
        import vllm

        vllm.LLMEngine  # noqa: B018 - loaded on access; a broken install fails only here
    return vllm


def survive_kernel_scan() -> None:
    """Let an engine start on a CPU in a process that has loaded numba.

    vLLM 0.32.0 looks at `vars(x).get("kernel")` of everything in every module. llvmlite's library
    object answers any attribute, `__dict__` too, with a C function that has no `get`.
    """
    wrapper = importlib.import_module("llvmlite.binding.ffi")._lib_fn_wrapper
    if not hasattr(wrapper, "get"):
        wrapper.get = lambda self, name, default=None: default


def check_scheduler(scheduler: Any) -> None:
    """Refuse a scheduler object that lacks what steering reads or writes.

    Raises:
        VllmUnavailableError: attributes are missing; they are named.
    """
    missing = [name for name in _SCHEDULER_ATTRIBUTES if not hasattr(scheduler, name)]
    config = getattr(scheduler, "scheduler_config", None)
    if config is not None and not hasattr(config, "long_prefill_token_threshold"):
        missing.append("scheduler_config.long_prefill_token_threshold")
    if missing:
        raise VllmUnavailableError(
            f"{type(scheduler).__name__} has no {', '.join(missing)}; the live engines steer the "
            f"V1 scheduler of vLLM {', '.join(SUPPORTED)}.x"
        )
