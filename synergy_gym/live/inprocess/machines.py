"""The vLLM engines of this process, kept between episodes.

Starting an engine takes seconds, and vLLM cannot take one down completely (its process group,
its settings and its allocations belong to the process). So engines are made once per
configuration and lent to one episode after the other. The holder is one object per process,
because what it holds is: two holders would only start twice as many engines.
"""

from __future__ import annotations

import functools
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from synergy_gym.live.backend import LiveOptions
from synergy_gym.live.inprocess.machine import Machine
from synergy_gym.live.inprocess.machine_config import MachineConfig
from synergy_gym.live.vllm.tiny_model import SIZES, write_model
from synergy_gym.types import EngineSpec

LOGGER = logging.getLogger(__name__)
SHORTEST_MODEL = 4096
"""Positions of a generated model, unless the scenario needs more."""


class EngineHouse:
    """Lends engines of this process, each to one episode at a time.

    Args:
        most_idle: idle engines that are kept; beyond it the one idle for longest is let go.
    """

    def __init__(self, most_idle: int = 16) -> None:
        self.started = 0
        """Engines started so far."""
        self._most_idle = most_idle
        self._idle: list[Machine] = []
        self._models: tempfile.TemporaryDirectory[str] | None = None

    def configuration(self, spec: EngineSpec, options: LiveOptions) -> MachineConfig:
        """What an engine with the limits of `spec` is built from."""
        return MachineConfig.of(
            spec,
            self.model_folder(options.model, spec.max_model_len),
            dtype=options.dtype,
            load_format=options.load_format,
            threads=options.threads,
            engine_args=options.engine_args,
        )

    def model_folder(self, model: str, max_model_len: int) -> Path:
        """The folder of a model: the one that was named, or one written for a size."""
        if model not in SIZES:
            return Path(model).expanduser().resolve()
        if self._models is None:
            self._models = tempfile.TemporaryDirectory(prefix="synergy-gym-models-")
        longest = max(max_model_len, SHORTEST_MODEL)
        folder = Path(self._models.name) / f"{model}-{longest}"
        return folder if folder.exists() else write_model(folder, model, longest)

    def lease(self, configurations: Sequence[MachineConfig]) -> list[Machine]:
        """Engines of these configurations, empty; started where none is idle."""
        lent: list[Machine] = []
        try:
            for configuration in configurations:
                lent.append(self._find(configuration))
        except BaseException:
            self.give_back(lent)
            raise
        return lent

    def give_back(self, machines: Sequence[Machine]) -> None:
        """Take engines back for the next episode; broken ones are let go."""
        for machine in machines:
            if machine.broken:
                LOGGER.warning("an engine failed in a step and is not used again")
            else:
                self._idle.append(machine)
        del self._idle[: max(len(self._idle) - self._most_idle, 0)]

    def _find(self, configuration: MachineConfig) -> Machine:
        for machine in reversed(self._idle):
            if machine.config == configuration:
                self._idle.remove(machine)
                return machine
        self.started += 1
        LOGGER.info("starting vLLM engine %d of this process", self.started)
        return Machine(configuration)


def engine_house() -> EngineHouse:
    """The holder of this process; a forked child has one of its own."""
    return _house_of(os.getpid())


@functools.lru_cache(maxsize=1)
def _house_of(pid: int) -> EngineHouse:
    return EngineHouse()
