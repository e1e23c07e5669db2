"""Decide again without a world: a policy's tapes are played to it in a process of its own.

There is no simulator, no traffic, no seed and no clock of an episode in that process; only the
views that the policy had, and its generator. Whoever decided by anything else decides otherwise.
"""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from synergy_gym.evaluation.conduct.verdict import Verdict, one_line
from synergy_gym.evaluation.conduct.watch import Tape, answers
from synergy_gym.policies.registry import make_engine_policy, make_router_policy

CHECK = "alone"
MAKERS = {"engine": make_engine_policy, "router": make_router_policy}


def decides_alone(policy: Any, layer: str, tapes: list[Tape], limit_s: float = 600.0) -> Verdict:
    """Whether a policy decides as on its tapes when it has nothing but the views.

    Args:
        policy: specification; or a class or instance that can be pickled.
        layer: "engine" or "router".
        tapes: of an episode.
        limit_s: after which the process is ended.

    Raises:
        ValueError: the policy is neither text nor can it be pickled.
    """
    blank = [replace(tape, answers=[], wall_s=[]) for tape in tapes]
    try:
        order = pickle.dumps(sys.path) + pickle.dumps((layer, policy, blank))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{policy!r} cannot be sent to another process ({error}); name it by text, "
            "file.py:Class or package.module:Class"
        ) from error
    command = [sys.executable, "-P", "-c", _program()]
    try:
        done = subprocess.run(
            command, input=order, capture_output=True, timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired:
        return Verdict(CHECK, False, f"no answers within {limit_s:.0f} s without a world")
    if done.returncode:
        last = (done.stderr.decode(errors="replace").strip().splitlines() or ["?"])[-1]
        reason = one_line(f"fails where there is no world: {last}")
        return Verdict(CHECK, False, f"{reason}; decide from the views alone")
    return _compared(tapes, done.stdout.decode().splitlines())


def _program() -> str:
    root = str(Path(__file__).resolve().parents[3])
    return f"import sys; sys.path.insert(0, {root!r}); from {__name__} import main; main()"


def main() -> None:
    """In the process: read policy and tapes, write one line of JSON per decision."""
    source, out = sys.stdin.buffer, sys.stdout
    sys.stdout = sys.stderr  # a policy may print
    sys.path[:] = pickle.load(source)
    layer, policy, tapes = pickle.load(source)
    for tape in tapes:
        for answer in answers(copy.deepcopy(MAKERS[layer](policy)), tape):
            print(_text(answer), file=out)


def _text(answer: Any) -> str:
    return json.dumps(answer, default=str)


def _compared(tapes: list[Tape], found: list[str]) -> Verdict:
    wanted = [_text(answer) for tape in tapes for answer in tape.answers]
    for at, (one, other) in enumerate(zip(wanted, found, strict=False)):
        if one != other:
            text = f"decision {at} was {one}, and {other} where nothing but the views was there"
            return Verdict(CHECK, False, f"{one_line(text)}; decide from the views alone")
    same = len(wanted) == len(found) and bool(wanted)
    reason = f"{len(found)} of {len(wanted)} decisions are the same from the views alone"
    return Verdict(CHECK, same, reason, {"decisions": len(wanted)})
