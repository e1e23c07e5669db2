"""`python -m synergy_gym` is `synergy-gym`."""

from synergy_gym.cli.app import main

if __name__ == "__main__":
    main()
