"""Speed as ratios within one run; goals and figures are printed by `synergy-gym bench`.

The bounds here are loose on purpose: they catch a lost compilation option or an accidental walk
over the batch (five to twenty times slower), not the noise of a shared machine.
"""

from __future__ import annotations

from synergy_gym.bench.kernel import growth_row, play_s
from synergy_gym.bench.million import traffic
from synergy_gym.sim.plain.simulator import ReferenceSimulator


def test_kernel_is_far_faster_than_the_reference() -> None:
    small, large = traffic(200, 7.0), traffic(10_000, 7.0)
    play_s(large)
    compiled = min(play_s(large)[0] for _ in range(5)) / len(large)
    reference = play_s(small, cls=ReferenceSimulator)[0] / len(small)
    assert reference / compiled >= 250


def test_cost_of_an_iteration_does_not_grow_with_the_batch() -> None:
    assert growth_row().value <= 3.0
