"""The decision logs of recorded episodes never change: some are drawn, `make fuzz` plays all."""

from __future__ import annotations

import os

import numpy as np
import pytest

from tests.golden.episodes import missing, recorded

LEAST = 3000
DRAWN = 60


def test_every_scenario_and_policy_is_recorded() -> None:
    known = recorded()
    assert len(known) >= LEAST
    assert len({one.names for one in known}) == len(known)
    lacking = [str(one) for one in missing(known)]
    assert not lacking, "play them: python -m tests.golden.episodes"


@pytest.mark.hypothesis  # what `make fuzz` selects
def test_decision_logs_are_as_recorded(rng: np.random.Generator) -> None:
    known = recorded()
    everything = os.environ.get("SYNERGY_GYM_FUZZ") == "1"
    places = range(len(known)) if everything else rng.choice(len(known), DRAWN, replace=False)
    some = [list(known)[place] for place in places]
    assert {one: one.played() for one in some} == {one: known[one] for one in some}
