"""vLLM itself: its version, its servers, a tiny model."""
