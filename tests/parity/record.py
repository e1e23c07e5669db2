"""The record of a long parity run: chunks of 100 workloads, their sum, and the page's table."""

from __future__ import annotations

import ast
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.parity.cases import random_case
from tests.parity.goals import GOALS
from tests.parity.lockstep import Build, Mismatch, Play

CHUNK = 100
"""Workloads per chunk; minimums are stated for this many."""
ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "tests" / "parity" / "record.json"
PAGE = ROOT / "docs" / "parity.md"
BEGIN, END = "<!-- parity:begin -->", "<!-- parity:end -->"
SOURCES = (
    *(f"tests/parity/{name}.py" for name in ("cases", "coverage", "lockstep", "oracle", "sides")),
    "synergy_gym/live/hosting/steering.py",
    "synergy_gym/sim",
)
"""What a stored chunk depends on, beside vLLM."""


@dataclass(frozen=True)
class Chunk:
    """What `CHUNK` workloads gave."""

    first: int
    counts: Mapping[str, int]
    digest: str
    """Of everything that vLLM said."""
    mismatches: tuple[str, ...] = ()
    """What is told about each side and workload that differed."""


def play_chunk(
    first: int,
    oracle: Build,
    sides: Mapping[str, Build],
    tell: Callable[[Mismatch], str] = str,
) -> Chunk:
    """Play `CHUNK` workloads from number `first` on; `tell` puts a mismatch into words.

    A side that differs is left out when its workload is played again for the others.
    """
    counts, digest = Counter[str](), hashlib.sha256()
    mismatches = []
    for seed in range(first, first + CHUNK):
        left = dict(sides)
        while True:
            play = Play(random_case(seed), oracle, left)
            try:
                play.run()
                break
            except Mismatch as mismatch:
                mismatches.append(tell(mismatch))
                del left[mismatch.side]
        counts += play.coverage.counts
        digest.update(play.digest.digest())
    return Chunk(first, dict(sorted(counts.items())), digest.hexdigest(), tuple(mismatches))


def fingerprint() -> str:
    """Of the code that makes, plays and counts the workloads; comments and docstrings aside."""
    digest = hashlib.sha256()
    for source in SOURCES:
        path = ROOT / source
        for file in [path] if path.is_file() else sorted(path.glob("*.py")):
            tree = ast.parse(file.read_text())
            for node in ast.walk(tree):
                body = getattr(node, "body", None)
                if isinstance(body, list):
                    node.body = [one for one in body if not _is_text(one)]  # type: ignore[attr-defined]
            digest.update(ast.dump(tree).encode())
    return digest.hexdigest()[:16]


def read_chunk(file: Path) -> Chunk:
    """A stored chunk."""
    values = json.loads(file.read_text())
    return Chunk(**{**values, "mismatches": tuple(values["mismatches"])})


def write_chunk(file: Path, chunk: Chunk) -> None:
    """Store a chunk; an interruption leaves none rather than half of one."""
    partial = file.with_suffix(".part")
    partial.write_text(json.dumps(asdict(chunk), indent=1) + "\n")
    partial.replace(file)


def summary(chunks: Iterable[Chunk], vllm: str) -> dict[str, object]:
    """The record of these chunks, as it is committed."""
    chunks = list(chunks)
    counts = sum((Counter(chunk.counts) for chunk in chunks), Counter[str]())
    return {
        "vllm": vllm,
        "workloads": CHUNK * len(chunks),
        "mismatches": [message for chunk in chunks for message in chunk.mismatches],
        "counts": {name: counts[name] for name in GOALS},
        "least_in_100": {
            name: min(chunk.counts.get(name, 0) for chunk in chunks) for name in GOALS
        },
        "first_digests": {str(chunk.first): chunk.digest for chunk in chunks[:2]},
    }


def page(text: str, record: Mapping[str, object]) -> str:
    """`text` with the table of `record` between its markers."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + "\n" + table(record) + END + rest.split(END)[1]


def table(record: Mapping[str, object]) -> str:
    """The record as Markdown."""
    counts, least = record["counts"], record["least_in_100"]
    assert isinstance(counts, dict)
    assert isinstance(least, dict)
    wrong = record["mismatches"]
    assert isinstance(wrong, list)
    lines = [
        f"vLLM {record['vllm']}, {record['workloads']:,} workloads, {counts['steps']:,} steps on "
        f"each of three sides, **{len(wrong):,} mismatches**.",
        "",
        "| counted | in all | least in 100 workloads | minimum in 100 |",
        "|---|---:|---:|---:|",
        *(
            f"| {goal.meaning} | {counts[name]:,} | {least[name]:,} | {goal.least:,} |"
            for name, goal in GOALS.items()
        ),
        "",
    ]
    return "\n".join(lines)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
