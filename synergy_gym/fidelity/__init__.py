"""The simulator beside real engines: recording, comparing, calibrating."""
