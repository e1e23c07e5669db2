"""The simulator in compiled code: kernels on typed records, reached by address.

`layout` says what lies in a simulation's memory; `engine` (plan) and `commit` are one iteration of
an engine, function by function as in `synergy_gym.sim.plain.engine`; `clock` is the world around.
"""
