"""Record the reference episodes of new environment versions.

    python scripts/renew_versions.py

Writes experiments/leaderboard/versions.json. A recorded version is never overwritten: a simulator
that computes something else needs a new version (docs/verification.md).
"""

from __future__ import annotations

import sys
from pathlib import Path

from synergy_gym.evaluation.verify.versions import VERSIONS_FILE, renew

BOARDS = Path(__file__).resolve().parents[1] / "experiments" / "leaderboard"


def main() -> int:
    """Renew the record; exit code 1 where a recorded version has changed."""
    try:
        renewed = renew(BOARDS / VERSIONS_FILE)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(["record renewed", *renewed]) if renewed else "nothing to renew")
    return 0


if __name__ == "__main__":
    sys.exit(main())
