"""The simulator: engines, cluster clock, prefix cache and telemetry."""
