"""Real vLLM engines: in this process, in worker processes, and behind HTTP."""
