"""Domain randomisation: an episode's world is drawn at its reset."""

from synergy_gym.envs.randomisation.worlds import DomainRandomization, World, WorldRanges

__all__ = ["DomainRandomization", "World", "WorldRanges"]
