"""Arrivals, lengths, sessions and traces."""
