"""Kinds of decision points at which a simulator stops."""

DONE = 0
"""The episode has ended."""
ROUTE = 1
"""A request has arrived and needs an engine."""
BATCH = 2
"""An engine is free, has work, and needs a batch decision."""
