"""Step-latency models that policies believe: published ones, and those that are learned."""
