"""Clusters of real engines that play an episode."""
