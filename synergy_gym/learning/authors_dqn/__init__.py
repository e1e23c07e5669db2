"""The DQN of SynergySched's authors, as published."""
