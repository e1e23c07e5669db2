"""SynergySched's claims, simulated."""
