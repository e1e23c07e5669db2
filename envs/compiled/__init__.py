"""Steps of environments in compiled code."""
