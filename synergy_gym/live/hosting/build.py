"""Builds the host of a policy from the environment of a vLLM server."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

from synergy_gym.live.hosting.decision_file import DecisionFile
from synergy_gym.live.hosting.host import PolicyHost, StepListener
from synergy_gym.live.hosting.rehearsal import rehearse
from synergy_gym.live.hosting.state_push import StatePush
from synergy_gym.live.hosting.steering import Steering, spec_of
from synergy_gym.live.router.push import PushSender
from synergy_gym.live.vllm.settings import HostSettings
from synergy_gym.seeding import policy_stream


def host_from_environment(scheduler: Any) -> PolicyHost:
    """The host that the `SYNERGY_GYM_*` variables ask for (`host_settings`).

    Raises:
        ValueError: a variable is missing or wrong; it says which.
        VllmUnavailableError: a vLLM whose scheduler cannot be steered.
    """
    log_to_stderr()
    settings = HostSettings.from_environment(os.environ)
    rank = int(scheduler.vllm_config.parallel_config.data_parallel_index)
    name = settings.engine or "vllm"
    return host(scheduler, settings, name if rank == 0 else f"{name}-{rank}")


def host(scheduler: Any, settings: HostSettings, name: str) -> PolicyHost:
    """A host around `scheduler`.

    Raises:
        ValueError: a setting is wrong.
        VllmUnavailableError: a vLLM whose scheduler cannot be steered.
    """
    policy, slos = settings.make_policy(), settings.make_slos()
    steering = Steering(scheduler, spec=spec_of(scheduler, name), slos=slos)
    spec = steering.spec
    listeners: list[StepListener] = []
    if settings.decisions:
        listeners.append(DecisionFile(Path(settings.decisions), name, policy, spec, slos))
    push = None
    if settings.push:
        push = StatePush(PushSender(settings.push, name, kv_blocks=spec.kv_blocks))
        listeners.append(push)
    rehearse(policy, spec, slos)
    rng = policy_stream(settings.make_seed(), 0)
    made = PolicyHost(policy, steering, rng=rng, name=name, listeners=listeners)
    if push is not None:
        push.start(made)
    return made


def log_to_stderr() -> None:
    """Let the messages of this package show: a server sets up only vLLM's own loggers."""
    package = logging.getLogger("synergy_gym")
    if package.handlers or logging.getLogger().handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s %(asctime)s [synergy-gym] %(message)s"))
    package.addHandler(handler)
    logging.getLogger("synergy_gym.live").setLevel(logging.INFO)  # policies tell too much
