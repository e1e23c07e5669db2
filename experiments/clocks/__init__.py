"""Which clock is right, and what depends on it."""
