"""What vLLM changes in the process that hosts it, and what is put back."""

from __future__ import annotations

import os
import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


@contextmanager
def undisturbed(threads: int) -> Iterator[None]:
    """Start an engine with `threads` threads and leave the host as it was, where that can be.

    Put back: the random states of Python, NumPy and torch (vLLM seeds them),
    `torch.set_num_threads` (vLLM makes it a no-op) and `sys.excepthook`. What stays changed: the
    number of torch threads; torch's default process group; the factory of log records; and
    `gc.freeze()` (what lives when an engine starts is not looked at by the cycle collector any
    more, which keeps its pauses out of the steps).
    """
    import torch

    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    setter, hook = torch.set_num_threads, sys.excepthook
    setter(threads)
    # vLLM seeds NumPy's global state, so that is what has to be kept.
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        with warnings.catch_warnings():
            for remark in (FutureWarning, DeprecationWarning):  # torch's, on vLLM's account
                warnings.simplefilter("ignore", remark)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])
        torch.set_num_threads, sys.excepthook = setter, hook
        setter(threads)
