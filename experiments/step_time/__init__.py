"""Step latency: measured, fitted, learned."""
