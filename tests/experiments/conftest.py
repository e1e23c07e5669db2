"""The experiment scripts import each other by name, as when they are run from their folder."""

from __future__ import annotations

import sys
from pathlib import Path

FOLDER = str(Path(__file__).parents[2] / "experiments")
if FOLDER not in sys.path:
    sys.path.append(FOLDER)
