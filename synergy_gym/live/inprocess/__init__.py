"""One vLLM engine inside this process."""
