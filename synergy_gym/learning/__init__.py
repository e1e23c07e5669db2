"""Training of engine and router agents (needs the extra `rl`).

`train(plan, folder)` runs a `TrainingPlan`; `synergy-gym train` is its command line.
Modules named `sb3_*` import stable-baselines3 and torch and are loaded on demand.
"""
