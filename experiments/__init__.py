"""Experiment scripts: `python -m experiments.GROUP.NAME` from the root of the repository."""
