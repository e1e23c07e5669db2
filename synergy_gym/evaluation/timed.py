"""The timed variant: a policy pays for its decisions on the simulated clock.

Measured decision times differ from run to run, so rows would not be reproducible with them.
Charged is therefore a constant per policy, the same in every run (`decision_times.csv`, measured
once; its `source` column says where), which the manifest records. The model:

- An engine's step is longer by the constant of its engine policy: the engine waits for the
  decision before every step. The constant is part of the step's fixed cost and of its floor, so it
  shares in the step's noise and slowdowns.
- A request reaches its engine later by the constant of the router policy, and so does every retry.
  The router sees the world as it is then. Requests do not queue before the router.
- Latencies, objectives and timeouts count from the moment when the client sent the request.

A rule that the simulator carries out in compiled code costs nothing, and a constant of 0 changes
nothing: the episode has the same log hash as without a charge.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from synergy_gym.arrays import FS_PER_MS
from synergy_gym.latency.clock import FLOOR_NS
from synergy_gym.seats import Observer
from synergy_gym.types import NS_PER_S, RequestRecords

DECISION_TIMES = Path(__file__).with_name("decision_times.csv")
"""Columns layer, policy, decision_us, source."""
FS_PER_S = 1000 * FS_PER_MS


@dataclass(frozen=True, slots=True)
class Charge:
    """Seconds that a decision of each layer costs.

    Raises:
        ValueError: a negative or endless one.
    """

    engine_s: float = 0.0
    router_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("engine_s", "router_s"):
            value = getattr(self, name)
            if not (np.isfinite(value) and value >= 0):
                raise ValueError(f"charge {name} is {value}; give finite seconds >= 0")

    @property
    def router_ns(self) -> int:
        """The router's constant in nanoseconds."""
        return round(self.router_s * NS_PER_S)


class Charging(Observer):
    """Makes decisions take time.

    Args:
        charge: what they cost.
    """

    asks_router = True

    def __init__(self, charge: Charge) -> None:
        self.charge = charge
        self._late_ns = 0

    def prepared(self, episode: dict[str, Any]) -> dict[str, Any]:
        """Steps are longer, and requests come later to the engines."""
        self._late_ns = 0 if episode.get("auto_route") else self.charge.router_ns
        return _charged(episode, self.charge.engine_s, self._late_ns)

    def scored(self, records: RequestRecords) -> RequestRecords:
        """Requests arrive when they were sent."""
        return replace(records, arrival_ns=records.arrival_ns - self._late_ns)


def _charged(episode: dict[str, Any], engine_s: float, late_ns: int) -> dict[str, Any]:
    """The arguments of a simulator whose steps are longer and whose requests come later."""
    client, traffic, late_s = episode["client"], episode["workload"], late_ns / NS_PER_S
    clocks = [np.array(clock) for clock in episode["clocks"]]
    for clock in clocks:
        clock[0] += round(engine_s * FS_PER_S)
        clock[FLOOR_NS] += round(engine_s * NS_PER_S)
    if late_ns:
        # Patience is counted from the (late) arrival, and a retry is routed again.
        timeout_s = max(client.timeout_s - late_s, 1 / NS_PER_S) if client.timeout_s else 0.0
        client = replace(client, timeout_s=timeout_s, backoff_s=client.backoff_s + late_s)
        traffic = replace(traffic, arrival_ns=traffic.arrival_ns + late_ns)
    return {**episode, "clocks": clocks, "client": client, "workload": traffic}


def decision_times(path: Path | None = None) -> dict[str, dict[str, float]]:
    """Seconds per decision, by layer and policy.

    Args:
        path: a CSV file with the columns of `DECISION_TIMES`; that one by default.

    Raises:
        ValueError: a column is missing, or a value is no number >= 0; names file and line.
    """
    file = DECISION_TIMES if path is None else path
    found: dict[str, dict[str, float]] = {"engine": {}, "router": {}}
    with file.open(encoding="utf-8", newline="") as lines:
        for number, row in enumerate(csv.DictReader(lines), start=2):
            where = f"{file}:{number}"
            if row.get("layer") not in found or not row.get("policy") or not row.get("source"):
                raise ValueError(
                    f"{where}: needs layer (engine or router), policy, decision_us and source"
                )
            found[str(row["layer"])][str(row["policy"])] = _seconds(row.get("decision_us"), where)
    return found


def _seconds(text: str | None, where: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = -1.0
    if not (np.isfinite(value) and value >= 0):
        raise ValueError(f"{where}: decision_us is {text!r}; give microseconds >= 0")
    return value / 1e6


def charge_of(times: Mapping[str, Mapping[str, float]], engine: str, router: str) -> Charge:
    """What the decisions of a pair of policies cost.

    Raises:
        ValueError: no time is known for one of them; says how to give it.
    """
    for layer, policy in (("engine", engine), ("router", router)):
        if policy not in times[layer]:
            raise ValueError(
                f"no decision time is known for {layer} policy {policy!r}; add a line to a copy of "
                f"{DECISION_TIMES} and give it with --decision-times"
            )
    return Charge(times["engine"][engine], times["router"][router])
