"""The routing proxy in front of OpenAI-compatible servers."""
