"""Agents: trained, compared, explained."""
