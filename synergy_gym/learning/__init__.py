"""Training of engine and router agents (needs the extra `rl`)."""
