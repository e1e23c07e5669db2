"""Playing policies against scenarios, and the tables that come out.

`evaluate` plays one episode, `rank` compares policies, `find_capacity` asks how much load
one carries; `synergy_gym.evaluation.leaderboard` plays whole suites.
"""

from synergy_gym.evaluation.board.rank import rank
from synergy_gym.evaluation.capacity import calibrate_rate, find_capacity
from synergy_gym.evaluation.runner import Result, evaluate
from synergy_gym.seats import PolicyError

__all__ = ["PolicyError", "Result", "calibrate_rate", "evaluate", "find_capacity", "rank"]
