"""The rules that give a claim its verdict, the only place where one is made.

A claim is brought to the form "this effect is above zero", with an interval where seeds or
cells give one:

- reproduced: the effect is above its tolerance, its interval above 0, and it is at least half
  of the published effect;
- in part: the same, but less than half of the published effect;
- contradicted: the effect is below minus its tolerance and its interval below 0;
- not reproduced: anything else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Verdict = Literal["reproduced", "in part", "not reproduced", "contradicted"]
NAN = float("nan")


@dataclass(frozen=True)
class Claim:
    """One row of the table.

    Attributes:
        part: the experiment.
        claim: what is claimed, and the effect that stands for it.
        unit: of all figures of the row.
        published: the effect in the paper's figures; NaN: no figure.
        later: the effect in the authors' own later measurements; NaN: none.
        simulated: the effect here.
        interval_low: lower end of its 95 % interval; NaN: no seeds or cells to take one from.
        interval_high: upper end.
        tolerance: effects up to this count as none.
        at_published_rates: the effect at the paper's absolute rates; NaN: not played.
    """

    part: str
    claim: str
    unit: str
    published: float
    simulated: float
    tolerance: float
    interval_low: float = NAN
    interval_high: float = NAN
    later: float = NAN
    at_published_rates: float = NAN

    @property
    def verdict(self) -> Verdict:
        """What the rules say."""
        interval = (self.interval_low, self.interval_high)
        return judge(self.simulated, self.published, self.tolerance, *interval)


def judge(
    simulated: float, published: float, tolerance: float, low: float = NAN, high: float = NAN
) -> Verdict:
    """The rules of the module's text.

    Raises:
        ValueError: there is no simulated effect.
    """
    if np.isnan(simulated):
        raise ValueError("no simulated effect to judge; leave the claim out")
    bottom = simulated if np.isnan(low) else low
    top = simulated if np.isnan(high) else high
    if simulated > tolerance and bottom > 0:
        whole = np.isnan(published) or simulated >= published / 2
        return "reproduced" if whole else "in part"
    if simulated < -tolerance and top < 0:
        return "contradicted"
    return "not reproduced"
