"""Incidents: what each scenario of the library measures, and the cards of who passes."""
