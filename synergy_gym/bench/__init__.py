"""Speed, measured in one run."""
