"""Submissions: a policy of one's own, played and ranked among the others."""
