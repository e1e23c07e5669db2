"""What engines tell routers about themselves (`docs/telemetry.md`), in whole numbers.

Both simulators use it. An advert is kept as `ADVERT_SIZE` integers: capacity and peak throughput
in thousandths of tokens per second, then the coefficients of `ADVERT_TERMS` in femtoseconds.
"""

from __future__ import annotations

from collections.abc import Sequence

from synergy_gym.arrays import FS_PER_MS
from synergy_gym.sim.compiled.layout import ADVERT_SIZE
from synergy_gym.sim.decisions import check_advert
from synergy_gym.types import NS_PER_S, EngineAdvert

NOT_PREDICTED = -1
"""In place of a predicted duration: SynergySched's heuristic stands in (`docs/telemetry.md`)."""


def published(advert: EngineAdvert | None, known: Sequence[int]) -> list[int]:
    """`known`, changed by what `advert` says."""
    result = list(known)
    if advert is not None:
        if advert.capacity is not None:
            result[0] = round(advert.capacity * 1000)
        if advert.peak_tps is not None:
            result[1] = round(advert.peak_tps * 1000)
        if advert.step_ms:
            result[2:] = [round(value * FS_PER_MS) for value in advert.step_ms]
    return result


def predicted_ns(advert: EngineAdvert | None) -> int:
    """Predicted duration of the iteration that `advert` came with, or `NOT_PREDICTED`."""
    if advert is None or advert.predicted_step_s is None:
        return NOT_PREDICTED
    return round(advert.predicted_step_s * NS_PER_S)


def started_with(adverts: Sequence[EngineAdvert | None] | None, engines: int) -> list[list[int]]:
    """What every engine publishes until its policy says otherwise: zeros without an advert.

    Raises:
        ValueError: not one advert (or None) per engine, an illegal one, or one with a
            prediction, which belongs to a single iteration.
    """
    given = [None] * engines if adverts is None else list(adverts)
    if len(given) != engines:
        raise ValueError(f"{len(given)} adverts for {engines} engines; give one, or None, each")
    for index, advert in enumerate(given):
        if advert is not None:
            check_advert(advert)
            if advert.predicted_step_s is not None:
                raise ValueError(
                    f"the advert that engine {index} starts with predicts a step; leave "
                    "predicted_step_s out, a BatchDecision's advert may have it"
                )
    return [published(advert, [0] * ADVERT_SIZE) for advert in given]
