"""Seats: the one place where policies are asked.

Simulators, real engines, the proxy, environments and examinations all put a policy on a seat. The
seat shows it what has happened, asks, takes the time, checks the answer and tells observers.
"""

from synergy_gym.seats.engine import EngineSeat
from synergy_gym.seats.errors import PolicyError
from synergy_gym.seats.observer import Observer
from synergy_gym.seats.player import play, play_policies
from synergy_gym.seats.router import RouterSeat
from synergy_gym.seats.times import DecisionTimes

__all__ = [
    "DecisionTimes",
    "EngineSeat",
    "Observer",
    "PolicyError",
    "RouterSeat",
    "play",
    "play_policies",
]
