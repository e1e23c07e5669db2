"""What is wrong with the files of a board, without playing anything.

Reads data only: no code of a submission is run and nothing is unpickled. Every problem is one
line: the place, the value, the cure.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard

from synergy_gym.evaluation.board.board import Board, read_board
from synergy_gym.evaluation.board.files import MANIFEST_FILE, RESULTS_FILE, TIMINGS_FILE, BoardError
from synergy_gym.evaluation.board.part import Suite
from synergy_gym.evaluation.board.suites import find_suite
from synergy_gym.evaluation.board.tables import Row, cell, csv_text, row_key
from synergy_gym.evaluation.decision_log import DECISIONS, decisions_name
from synergy_gym.evaluation.dynamics import differing_parts, dynamics_hash
from synergy_gym.evaluation.jobs import COLUMNS, KEY_COLUMNS, TRACK_LAYERS, Job
from synergy_gym.evaluation.leaderboard import TIMING_COLUMNS, to_record
from synergy_gym.evaluation.manifest import environment_ids
from synergy_gym.evaluation.submission.policy import is_registered
from synergy_gym.evaluation.verify.cards import card_problems
from synergy_gym.evaluation.verify.figures import figure_problems
from synergy_gym.evaluation.verify.policy_versions import (
    LAYERS,
    hash_here,
    installed_version,
    registered,
)
from synergy_gym.policies.base import Layer

TIMED = "-timed"
MOST_MB = 64
"""A file of a board that is larger is not read."""
MOST_LISTED = 20
"""So many problems of one kind are listed, the others counted."""
_NAME = re.compile(r"[0-9a-f]{20}\.dec")
_HASH = re.compile(r"[0-9a-f]{64}")


def read_checked(folder: Path) -> tuple[Board | None, list[str]]:
    """A board and what is wrong with its files; no board where they cannot be read."""
    problems = [*_file_problems(folder)]
    if problems:
        return None, problems
    try:
        board = read_board(folder)
    except BoardError as error:
        return None, [str(error)]
    except (RecursionError, MemoryError, ValueError, TypeError, OverflowError) as error:
        return None, [f"{folder}: cannot be read ({error}); restore its files"]
    return board, []


def structure_problems(
    board: Board, *, hashes: bool = True
) -> tuple[dict[tuple[Any, ...], Job], list[str]]:
    """The episodes that a board must have, by `row_key`, and what is wrong with it.

    Without `hashes` it may have been played by code that computes otherwise. No episodes where its
    version or its suite are unknown. Specifications of policies and paths of scenarios are never
    taken from the board: only registered names are looked up.
    """
    version = [*_version_problems(board)]
    if version:
        return {}, version
    suite, problems = expected_suite(board)
    if suite is None:
        return {}, problems
    try:
        jobs = {job.key[1:]: job for job in suite.jobs()}
    except ValueError as error:
        return {}, [*problems, f"{board.folder / MANIFEST_FILE}: decision_s: {error}"]
    for check in (_form_problems(board), _row_problems(board, jobs), _world_problems(board, jobs)):
        problems += _limited(check)
    problems += _limited(figure_problems(board))
    problems += _limited(card_problems(board.folder, board.rows, board.suite.season))
    problems += _limited(_policy_problems(board))
    if hashes and not problems:
        problems += _limited(_dynamics_problems(board))
    problems += _limited(_decision_problems(board, list(jobs.values())))
    return jobs, problems


def expected_suite(board: Board) -> tuple[Suite | None, list[str]]:
    """The suite that a board must have played, and what in its manifest contradicts it."""
    where, name = board.folder / MANIFEST_FILE, board.suite.name
    try:
        known = find_suite(name.removesuffix(TIMED), board.suite.season)
    except ValueError as error:
        return None, [f"{where}: suite: {error}"]
    if name.endswith(TIMED):
        charges = board.manifest.get("decision_s")
        if not _are_charges(charges):
            return None, [f"{where}: decision_s is {charges!r}; restore it"]
        known = known.timed(charges)
    if "submission" in board.manifest:
        return _submitted_suite(board, known)
    wrong = [part for part in board.suite.parts if part not in known.parts]
    if wrong or not board.suite.parts:
        return None, [
            f"{where}: parts: suite {name!r} of this version has no such part: "
            f"{wrong[0] if wrong else None}; play the suite again, or verify with the version "
            "that wrote the board"
        ]
    return replace(known, parts=board.suite.parts), []


def _submitted_suite(board: Board, known: Suite) -> tuple[Suite | None, list[str]]:
    """The suite with a submission in it; what is wrong with the submission's own files."""
    from synergy_gym.evaluation.submission.plan import entry_suite
    from synergy_gym.evaluation.verify.submission import submission_problems

    where = board.folder / MANIFEST_FILE
    problems = _limited(iter(submission_problems(board.folder, board.manifest, board.rows)))
    try:
        entry = board.manifest["submission"]
        names = [entry["policies"][layer] for layer in TRACK_LAYERS[entry["track"]]]
        suite = entry_suite(known, entry["track"], names)
    except (KeyError, TypeError, ValueError) as error:
        return None, problems or [f"{where}: submission cannot be read ({error}); submit again"]
    if board.manifest.get("decisions", {}).get("recorded") != "all":
        problems.append(f"{where}: decisions.recorded: a submission keeps all; submit again")
    return suite, problems


def _are_charges(value: Any) -> TypeGuard[Mapping[str, Mapping[str, float]]]:
    """Whether a manifest says what decisions cost, seconds by layer and policy."""
    if not isinstance(value, dict) or set(value) != {"engine", "router"}:
        return False
    return all(
        isinstance(times, dict) and all(isinstance(cost, float | int) for cost in times.values())
        for times in value.values()
    )


def job_of_row(row: Row, jobs: Mapping[tuple[Any, ...], Job]) -> Job | None:
    """The episode that a row is about."""
    return jobs.get(row_key(row))


def place(board: Board, row: Row) -> str:
    """How messages name a row."""
    key = ", ".join(cell(row[name]) for name in KEY_COLUMNS[1:])
    return f"{board.folder / RESULTS_FILE}: row {key}"


def _limited(problems: Iterator[str]) -> list[str]:
    """The first problems, and how many more there are."""
    found = list(problems)
    more = len(found) - MOST_LISTED
    return found if more <= 0 else [*found[:MOST_LISTED], f"... and {more} more like the last one"]


def _file_problems(folder: Path) -> Iterator[str]:
    """Links, missing and huge files; a board lies in its folder and nowhere else."""
    if not folder.is_dir():
        yield f"{folder}: no folder; give the folder of a board"
        return
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            yield f"{path}: is a symbolic link; a board holds its files itself: copy the file there"
        elif path.is_file() and path.stat().st_size > MOST_MB * 2**20:
            yield f"{path}: larger than {MOST_MB} MiB; a board has no such file: remove it"
        elif not path.is_file() and not path.is_dir():
            yield f"{path}: no plain file; remove it"
    for name in (MANIFEST_FILE, RESULTS_FILE, TIMINGS_FILE):
        if not (folder / name).is_file():
            yield f"{folder / name}: missing; restore it, or write the board again"


def _version_problems(board: Board) -> Iterator[str]:
    """Whether every environment that the board names, versions included, still exists."""
    where, given = board.folder / MANIFEST_FILE, board.manifest.get("environments")
    if not isinstance(given, list) or not given or not set(map(str, given)) <= {*environment_ids()}:
        yield (
            f"{where}: environments is {given}, this version has {environment_ids()}; verify with "
            "the version of synergy-gym that wrote the board, or play it again"
        )


def _form_problems(board: Board) -> Iterator[str]:
    """Whether the tables are written as this program writes them: columns, order, digits."""
    tables = ((RESULTS_FILE, board.rows, COLUMNS), (TIMINGS_FILE, board.timings, TIMING_COLUMNS))
    for name, rows, columns in tables:
        path = board.folder / name
        text = path.read_bytes().decode()
        header = text.split("\n", 1)[0]
        if header != ",".join(columns):
            extra = sorted(set(header.split(",")) ^ set(columns))
            yield f"{path}:1: columns differ from this version's ({', '.join(extra)}); restore it"
            continue
        wanted = csv_text(rows, columns)
        lines = zip(text.split("\n"), wanted.split("\n"), strict=False)
        for number, (one, other) in enumerate(lines, 1):
            if one != other:
                yield f"{path}:{number}: is not as this program writes it, {other!r}; restore it"
                break
        else:
            if text != wanted:
                yield f"{path}: {len(text)} characters instead of {len(wanted)}; restore it"


def _row_problems(board: Board, jobs: Mapping[tuple[Any, ...], Job]) -> Iterator[str]:
    """Every episode of the suite once, and no other."""
    seen = set()
    for row in board.rows:
        key = row_key(row)
        if key in seen:
            yield f"{place(board, row)}: is there twice; remove one"
        elif key not in jobs:
            yield f"{place(board, row)}: {_why_unknown(row, jobs)}"
        if row["suite"] != board.suite.name:
            yield f"{place(board, row)}: is of suite {row['suite']!r}; remove it"
        seen.add(key)
    for key, job in jobs.items():
        if key not in seen:
            why = dict(board.failures).get(str(job), "")
            why = f" (it failed: {why})" if why else ""
            yield f"{board.folder / RESULTS_FILE}: no row of {job}{why}; play the missing episodes"
    timed = {row_key(row) for row in board.timings}
    if timed != seen:
        yield f"{board.folder / TIMINGS_FILE}: has other rows than {RESULTS_FILE}; restore it"
    for name, wanted in _counts(board).items():
        if board.manifest.get(name) != wanted:
            yield (
                f"{board.folder / MANIFEST_FILE}: {name} is {board.manifest.get(name)}, the rows "
                f"say {wanted}; restore it"
            )


def _why_unknown(row: Row, jobs: Mapping[tuple[Any, ...], Job]) -> str:
    scenarios = {job.scenario for job in jobs.values()}
    seeds = sorted({job.seed for job in jobs.values() if job.scenario == row["scenario"]})
    loads = sorted({job.load for job in jobs.values() if job.scenario == row["scenario"]})
    if row["scenario"] not in scenarios:
        return f"the suite has no scenario {row['scenario']!r}; play the suite's"
    if row["seed"] not in seeds:
        return f"seed {row['seed']} is none of the suite's ({seeds}); play the suite's seeds"
    if row["load"] not in loads:
        return f"load {row['load']:g} is none of the suite's ({loads}); play the suite's loads"
    return "the suite has no such combination; play the suite's"


def _counts(board: Board) -> dict[str, Any]:
    rows = board.rows
    return {
        "episodes": len(rows),
        "loads": sorted({row["load"] for row in rows}),
        "seeds": sorted({row["seed"] for row in rows}),
    }


def _world_problems(board: Board, jobs: Mapping[tuple[Any, ...], Job]) -> Iterator[str]:
    """Whether rows were played in the scenarios that this version has."""
    hashes: dict[tuple[Any, ...], str] = {}
    told = board.manifest.get("scenarios")
    told = told if isinstance(told, dict) else {}
    for row in board.rows:
        job = job_of_row(row, jobs)
        if job is None:
            continue
        world = (job.scenario, job.warmup_s, job.horizon_s)
        if world not in hashes:
            try:
                scenario = job.world()
            except ValueError as error:  # no such scenario, or a window that it cannot have
                yield f"{place(board, row)}: {error}"
                continue
            hashes[world] = scenario.hash()
            if told.get(job.scenario) != row["scenario_hash"]:
                yield (
                    f"{board.folder / MANIFEST_FILE}: scenarios: {job.scenario} has another hash "
                    f"than its rows ({row['scenario_hash']}); restore it"
                )
        if row["scenario_hash"] != hashes[world]:
            yield (
                f"{place(board, row)}: scenario_hash is {row['scenario_hash']!r}, {job.scenario} "
                f"of this version has {hashes[world]}; play the episode again"
            )


def _policy_problems(board: Board) -> Iterator[str]:
    """Whether every policy of the rows has an entry, of a version that this one can judge."""
    where = board.folder / MANIFEST_FILE
    if broken := list(_broken_entries(board)):
        for layer, name in broken:
            yield f"{where}: policies.{layer} has no whole entry {name!r}; restore it"
        return
    for layer, name in registered(board):
        entry = board.manifest["policies"][layer][name]
        told = entry.get("version")
        if entry.get("policy") != name or not is_registered(layer, name):
            yield f"{where}: policies.{layer}: {name!r} is no registered policy; restore it"
        elif type(told) is not int or told > installed_version(layer, name):
            yield (
                f"{where}: {name} is version {told}, installed is "
                f"{installed_version(layer, name)}; verify with the version of synergy-gym that "
                "wrote the board"
            )


def _dynamics_problems(board: Board) -> Iterator[str]:
    """Whether the board was played by code that computes the same; else which parts differ."""
    where = board.folder / MANIFEST_FILE
    cure = (
        "verify with the version of synergy-gym that wrote the board, play it again, or, where "
        "every row is still the same, run scripts/restamp_boards.py"
    )
    told, here = board.manifest.get("dynamics_sha256"), dynamics_hash()
    if told != here:
        parts = ", ".join(differing_parts(board.manifest.get("dynamics"))) or "none that it names"
        yield f"{where}: dynamics_sha256 is {told!r}, here {here!r} (differing: {parts}); {cure}"
    for layer, name in registered(board):
        entry = board.manifest["policies"][layer][name]
        mine = hash_here(layer, name)
        if entry["version"] == installed_version(layer, name) and entry["sha256"] != mine:
            yield f"{where}: {name}: sha256 is {entry['sha256']!r}, here {mine!r}; {cure}"


def _broken_entries(board: Board) -> Iterator[tuple[Layer, str]]:
    for layer in LAYERS:
        entries = board.manifest.get("policies", {}).get(layer, {})
        for name in sorted({row[f"{layer}_policy"] for row in board.rows}):
            entry = entries.get(name)
            if not isinstance(entry, dict) or not _HASH.fullmatch(str(entry.get("sha256"))):
                yield layer, name


def _decision_problems(board: Board, jobs: Sequence[Job]) -> Iterator[str]:
    """Whether the files of decisions are those that the manifest names, for the right rows."""
    where, home = board.folder / MANIFEST_FILE, board.folder / DECISIONS
    told = board.manifest.get("decisions")
    files = told.get("files") if isinstance(told, dict) else None
    if not isinstance(told, dict) or not isinstance(files, dict):
        yield f"{where}: decisions: says nothing about recorded decisions; write the board again"
        return
    if told.get("recorded") not in ("none", "sample", "all"):
        yield f"{where}: decisions.recorded is {told.get('recorded')!r}; restore it"
        return
    asked = {
        decisions_name(job.key): job for job in to_record(jobs, told["recorded"]) if job.record
    }
    for name in sorted({*files, *asked}):
        yield from _one_file(where, home, name, files.get(name), asked.get(name))
    for path in sorted(home.iterdir()) if home.is_dir() else ():
        if path.name not in files:
            yield f"{path}: the manifest does not name it; remove it"


def _one_file(where: Path, home: Path, name: str, entry: Any, job: Job | None) -> Iterator[str]:
    if not _NAME.fullmatch(name):
        yield f"{where}: decisions: {name!r} is no name of such a file; restore it"
    elif job is None:
        yield f"{where}: decisions: {name} belongs to no row that is to be recorded; remove it"
    elif entry is None:
        yield f"{where}: decisions: no file of {job}; play it again"
    elif not isinstance(entry, dict) or entry.get("key") != list(job.key):
        yield f"{where}: decisions: {name} is not said to be of {job}; restore it"
    elif not (home / name).is_file():
        yield f"{home / name}: missing ({job}); restore it"
    elif hashlib.sha256((home / name).read_bytes()).hexdigest() != entry.get("sha256"):
        yield f"{home / name}: SHA-256 is not the manifest's ({job}); restore it"
