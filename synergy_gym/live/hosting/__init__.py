"""A policy inside a vLLM engine: asked at every step of the scheduler."""
