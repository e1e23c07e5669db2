"""Episodes in worker processes, here or on Ray."""
