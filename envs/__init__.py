"""Gymnasium environments (import as `synergy_gym.envs`)."""

if __name__ != "synergy_gym.envs":
    raise ImportError(f"import this package as `synergy_gym.envs`, not as {__name__!r}")
