"""Questions asked once."""
