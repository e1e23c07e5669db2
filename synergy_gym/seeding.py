"""Independent random streams of one episode seed.

Every consumer draws from its own stream, so two policies that use different amounts of
randomness still meet the same traffic (invariant 9).
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

_STREAMS = {"arrivals": 1, "lengths": 2, "content": 3, "noise": 4, "policy": 5}


def stream(seed: int, name: str, index: int = 0) -> np.random.Generator:
    """The generator of stream `name` (arrivals, lengths, content, noise, policy).

    `index` separates members of one stream, for example engines.
    """
    return np.random.Generator(np.random.PCG64(_sequence(seed, name, index)))


def policy_stream(seed: int, engine: int | None = None) -> np.random.Generator:
    """The generator of the router policy, or of the policy of engine `engine`.

    Environments and evaluation both ask here, so that a policy that draws decides alike in both.
    It draws what `stream` draws, but is opaque: `bit_generator.seed_seq`, which `spawn` uses, is
    made of a hash and does not name the seed.
    """
    drawn: Any = stream(seed, "policy", 0 if engine is None else 1 + engine).bit_generator.state
    digest = hashlib.sha256(repr(drawn).encode()).digest()
    opaque = np.random.PCG64(np.random.SeedSequence(int.from_bytes(digest, "big")))
    opaque.state = drawn
    return np.random.Generator(opaque)


def stream_seed(seed: int, name: str, index: int = 0) -> int:
    """A 62-bit integer seed drawn from the same stream tree."""
    return int(_sequence(seed, name, index).generate_state(1, np.uint64)[0] >> np.uint64(2))


def _sequence(seed: int, name: str, index: int) -> np.random.SeedSequence:
    if name not in _STREAMS:
        raise ValueError(f"unknown random stream {name!r}; choose one of {sorted(_STREAMS)}")
    return np.random.SeedSequence(entropy=seed, spawn_key=(_STREAMS[name], index))
