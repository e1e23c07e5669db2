"""Check rows by playing: recorded decisions again, the policies again, or fresh seeds.

- `log`: recorded decisions are carried out again. Only whole numbers and the scenario's own clock
  are in play, so hash and figures must be the same bit for bit on every platform.
- `policy`: policies decide again, unless their version has risen since. On the platform that wrote
  the row (`platform_entry` of the manifest) everything must be the same bit for bit. Elsewhere a
  last bit of NumPy's arithmetic may turn one decision, after which the episodes part: see
  `ROW_TOLERANCE`.
- fresh seeds: `evaluation/verify/fresh_seeds.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from synergy_gym.evaluation.board.board import Board
from synergy_gym.evaluation.board.files import RESULTS_FILE
from synergy_gym.evaluation.board.tables import Row, cell, row_key
from synergy_gym.evaluation.decision_log import DECISIONS, decisions_name, unpacked
from synergy_gym.evaluation.jobs import COLUMNS, KEY_COLUMNS, Job, JobResult, run_job
from synergy_gym.evaluation.manifest import platform_entry
from synergy_gym.evaluation.replay import replayed_row
from synergy_gym.evaluation.verify.files import place
from synergy_gym.evaluation.verify.policy_versions import decidable
from synergy_gym.evaluation.workers.executor import Batch, Play
from synergy_gym.evaluation.workers.run import run_jobs

ROW_TOLERANCE = 0.05
"""On another platform: how far a row's attainment may be off (docs/verification.md: measured)."""
MEAN_TOLERANCE = 0.01
"""On another platform: how far the mean attainment of the rows played again may be off."""
_FIGURES = (
    "log_hash",  # tells the most, hence first
    *(name for name in COLUMNS if name not in {*KEY_COLUMNS, "log_hash"}),
)
_SHOWN = 3

OnProgress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Checked:
    """What a check by playing found.

    Attributes:
        level: "log", "policy" or "fresh-seeds".
        played: how many episodes were played.
        problems: one line each: the place, the value, the cure.
        notes: what was not checked, and how exact the check was.
    """

    level: str
    played: int
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()


def sampled(rows: Sequence[Row], count: int | None) -> list[Row]:
    """`count` rows, the competitors in turn, or all.

    The choice is drawn from the rows' own content: an edited table is another draw.
    """
    if count is None or count >= len(rows):
        return list(rows)
    content = hashlib.sha256(repr([row["log_hash"] for row in rows]).encode()).digest()
    rng = np.random.default_rng(np.frombuffer(content, np.uint32))
    turns: dict[tuple[str, str], int] = {}
    order: list[tuple[int, int, int]] = []
    for index in rng.permutation(len(rows)):
        pair = (rows[index]["engine_policy"], rows[index]["router_policy"])
        turns[pair] = turns.get(pair, 0) + 1
        order.append((turns[pair], len(order), int(index)))
    chosen = sorted(index for _, _, index in sorted(order)[:count])
    return [rows[index] for index in chosen]


def check_log(
    board: Board,
    jobs: Mapping[tuple[Any, ...], Job],
    count: int | None,
    processes: int = 1,
    on_progress: OnProgress | None = None,
) -> Checked:
    """Replay recorded decisions and compare hash and figures, all of them bit for bit.

    Args:
        board: whose rows.
        jobs: its episodes by `row_key`.
        count: how many rows to replay; `None`: all that have their decisions.
        processes: worker processes.
        on_progress: called with (finished, all, text) after each.
    """
    home = board.folder / DECISIONS
    kept = [row for row in board.rows if (home / decisions_name(jobs[row_key(row)].key)).is_file()]
    rows = sampled(kept, count)
    left = len(board.rows) - len(kept)
    _, notes = decidable(board)
    if left:
        notes = (f"{left} rows have no recorded decisions", *notes)
    play = partial(_replayed, home)
    results, problems = _played(board, rows, jobs, play, processes, on_progress)
    problems += _compared(board, rows, results, "the recorded decisions give")
    return Checked("log", len(rows), tuple(problems), notes)


def _replayed(home: Path, job: Job) -> JobResult:
    path = home / decisions_name(job.key)
    log = unpacked(path.read_bytes(), job.key, str(path))
    key = dict(zip(KEY_COLUMNS, job.key, strict=True))
    return JobResult({**key, **replayed_row(job, log)}, {}, {}, {})


def check_policy(
    board: Board,
    jobs: Mapping[tuple[Any, ...], Job],
    count: int | None,
    processes: int = 1,
    on_progress: OnProgress | None = None,
    run_code: bool = False,
) -> Checked:
    """Let the policies decide again and compare, bit for bit on the platform of the board.

    Args:
        board: whose rows.
        jobs: its episodes by `row_key`.
        count: how many rows to play; `None`: all.
        processes: worker processes.
        on_progress: called with (finished, all, text) after each.
        run_code: run a submission's own code.
    """
    rows, notes = decidable(board)
    rows = sampled(rows, count)
    with player(board, run_code) as play:
        if play is None:
            return not_run("policy", board)
        results, problems = _played(board, rows, jobs, play, processes, on_progress)
    other = other_platform(board.manifest)
    if not other:
        problems += _compared(board, rows, results, "the policies now give")
        return Checked("policy", len(rows), tuple(problems), notes)
    problems += _near(board, rows, results)
    note = (
        f"played on another platform ({'; '.join(other)}): attainment is compared within "
        f"{ROW_TOLERANCE:g} a row and {MEAN_TOLERANCE:g} in the mean"
    )
    return Checked("policy", len(rows), tuple(problems), (note, *notes))


def not_run(level: str, board: Board) -> Checked:
    """What a level says of a submission whose code may not run."""
    why = f"{board.folder}: not played: add --run-code to run the submission's own code"
    return Checked(level, 0, (), (why,))


@contextmanager
def player(board: Board, run_code: bool) -> Iterator[Play | None]:
    """What plays the board's jobs, while it is needed; `None`: code that may not run."""
    if "submission" not in board.manifest:
        yield run_job
        return
    if not run_code:
        yield None
        return
    from synergy_gym.evaluation.submission.plan import PlayEntries
    from synergy_gym.evaluation.submission.policy import Entry, is_registered, private_copy

    entries = []
    for layer, name in board.manifest["submission"]["policies"].items():
        spec = board.manifest["policies"][layer][name]["policy"]
        if not is_registered(layer, spec):
            entries.append(Entry(layer, name, spec, True))
    with private_copy(board.folder, board.manifest["submission"]["files"]) as home:
        yield PlayEntries(home, tuple(entries))


def other_platform(manifest: Mapping[str, Any]) -> list[str]:
    """What this platform has otherwise than the one that wrote a board."""
    found = []
    for name, here in platform_entry().items():
        there = manifest.get(name)
        if isinstance(here, dict) and isinstance(there, dict):
            names = ("numba", "numpy", "scipy")
            found += [
                f"{x} {there.get(x)} there, {here.get(x)} here"
                for x in names
                if there.get(x) != here.get(x)
            ]
        elif name == "python":
            if str(there).split(".")[:2] != str(here).split(".")[:2]:
                found.append(f"{name} {there} there, {here} here")
        elif there != here:
            found.append(f"{name} {there} there, {here} here")
    return found


def counted_run(
    jobs: Sequence[Job], play: Play, processes: int, on_progress: OnProgress | None
) -> Batch:
    """Play jobs; `on_progress` is told (finished, all, text) after each."""
    done = 0

    def on_result(job: Job, outcome: JobResult | str) -> None:
        nonlocal done
        done += 1
        if on_progress is not None:
            on_progress(done, len(jobs), str(job))

    return run_jobs(jobs, processes, on_result, play)


def _played(
    board: Board,
    rows: Sequence[Row],
    jobs: Mapping[tuple[Any, ...], Job],
    play: Play,
    processes: int,
    on_progress: OnProgress | None,
) -> tuple[dict[tuple[Any, ...], Row], list[str]]:
    """Played rows by key, and what went wrong."""
    chosen = [jobs[row_key(row)] for row in rows]
    labels = {job.key[1:]: place(board, row) for job, row in zip(chosen, rows, strict=True)}
    plain = [replace(job, record=False) for job in chosen]
    batch = counted_run(plain, play, processes, on_progress)
    problems = [f"{labels[job.key[1:]]}: {text}" for job, text in batch.failures.items()]
    return {job.key[1:]: result.row for job, result in batch.results.items()}, problems


def _compared(
    board: Board, rows: Sequence[Row], results: Mapping[tuple[Any, ...], Row], who: str
) -> list[str]:
    """Cells that are not the same, to the last of the nine digits that tables have."""
    problems = []
    for row in rows:
        played = results.get(row_key(row))
        if played is None:
            continue
        wrong = [name for name in _FIGURES if cell(row[name]) != cell(played[name])]
        for name in wrong[:_SHOWN]:
            problems.append(
                f"{place(board, row)}: {name} is {cell(row[name]) or 'empty'}, {who} "
                f"{cell(played[name]) or 'none'}; restore the row or play it again"
            )
        if len(wrong) > _SHOWN:
            problems.append(f"{place(board, row)}: ... and {len(wrong) - _SHOWN} other columns")
    return problems


def _near(board: Board, rows: Sequence[Row], results: Mapping[tuple[Any, ...], Row]) -> list[str]:
    problems, differences = [], []
    for row in rows:
        played = results.get(row_key(row))
        if played is None:
            continue
        told, found = row["slo_attainment"], played["slo_attainment"]
        differences.append(found - told)
        if not abs(found - told) <= ROW_TOLERANCE:
            problems.append(
                f"{place(board, row)}: slo_attainment is {cell(told)}, the policies now give "
                f"{cell(found)}, more than {ROW_TOLERANCE:g} away; play it again"
            )
    mean = float(np.mean(differences)) if differences else 0.0
    if not abs(mean) <= MEAN_TOLERANCE:
        problems.append(
            f"{board.folder / RESULTS_FILE}: the policies now attain {mean:+.4f} in the mean of "
            f"{len(differences)} rows, more than {MEAN_TOLERANCE:g}; play the board again"
        )
    return problems
