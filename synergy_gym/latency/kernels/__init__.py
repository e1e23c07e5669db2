"""Step times from measured kernels: what `synergy-gym clock` makes profiles of."""
