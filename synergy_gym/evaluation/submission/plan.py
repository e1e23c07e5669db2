"""What a submission plays: a policy of one's own on one track of a suite.

It plays the cells (scenario, load, seed, policy of the other layer) of the suite's parts for its
track, so that its rows stand beside the committed ones. An interrupted run goes on.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from synergy_gym.evaluation.board.files import MANIFEST_FILE, RESULTS_FILE
from synergy_gym.evaluation.board.journal import PROGRESS_FILE
from synergy_gym.evaluation.board.part import Part, Suite
from synergy_gym.evaluation.board.suites import find_suite
from synergy_gym.evaluation.decision_log import packed, unpacked
from synergy_gym.evaluation.jobs import KEY_COLUMNS, TRACK_LAYERS, Job, JobResult, Track, run_job
from synergy_gym.evaluation.manifest import write_json
from synergy_gym.evaluation.submission.policy import (
    POLICY_FOLDER,
    Entry,
    adopt,
    file_sha256,
    spec_in,
    split_spec,
)

PLAN_FILE = "plan.json"
"""What is being played, until all of it is; then `manifest.json` says it."""


def accepted_folder(season: int) -> str:
    """Where a clone keeps the accepted submissions of a season."""
    return f"experiments/leaderboard/season{season}/submissions"


@dataclass(frozen=True)
class Submission:
    """Who plays what, and where the files are.

    Attributes:
        name: of the submission.
        track: who competes.
        entries: the policies of the competing layers, engine before router.
        suite: the suite's parts of the track, with the entries in place of its policies.
        folder: of the submission.
    """

    name: str
    track: Track
    entries: tuple[Entry, ...]
    suite: Suite
    folder: Path

    def command(self) -> str:
        """What plays it again in a clone that holds its folder among the accepted ones."""
        home = f"{accepted_folder(self.suite.season)}/{self.name}"
        arguments = ["synergy-gym", "submit"]
        for entry in self.entries:
            prefix, path, suffix = split_spec(entry.spec)
            spec = f"{prefix}{home}/{path}{suffix}" if entry.own else entry.spec
            arguments += ["--policy", spec]
        arguments += ["--track", self.track, "--suite", self.suite.label, "--name", self.name]
        return shlex.join([*arguments, "--out", f"again/{self.name}"])

    def plan(self) -> dict[str, Any]:
        """What must be the same when a run goes on."""
        return {
            "name": self.name,
            "track": self.track,
            "suite": self.suite.label,
            "policies": {entry.layer: {entry.name: entry.spec} for entry in self.entries},
            "files": policy_hashes(self.folder),
        }


def prepare(
    policies: Sequence[str], track: Track, suite: str, folder: Path, name: str = ""
) -> Submission:
    """Copy the policies into the folder of a submission, new or interrupted.

    Args:
        policies: one per competing layer, on the joint track engine before router; as `adopt`
            takes them.
        track: "engine", "router" or "joint".
        suite: whose cells to play.
        folder: of the submission.
        name: instead of the policy's own name, joined by "+" on the joint track.

    Raises:
        ValueError: a policy cannot be submitted, the suite has no such track, or the folder
            holds something else.
    """
    layers = TRACK_LAYERS[track]
    if len(policies) != len(layers):
        raise ValueError(
            f"the {track} track takes {len(layers)} policies ({', '.join(layers)}), got "
            f"{len(policies)}; give --policy once for each"
        )
    _check_folder(folder)
    chosen = find_suite(suite).only(track)
    entries = _adopted(policies, track, folder, name if len(layers) == 1 else "")
    entered = entry_suite(chosen, track, [entry.name for entry in entries])
    found = Submission(
        name or "+".join(entry.name for entry in entries), track, entries, entered, folder
    )
    _hold_to_plan(found)
    return found


def _adopted(policies: Sequence[str], track: Track, folder: Path, name: str) -> tuple[Entry, ...]:
    """The policies as entries; a refused one leaves nothing behind in a new folder."""
    began = (folder / PLAN_FILE).is_file()
    try:
        entries = tuple(
            adopt(text, layer, folder, name)  # type: ignore[arg-type]
            for text, layer in zip(policies, TRACK_LAYERS[track], strict=True)
        )
        if not any(entry.own for entry in entries):
            raise ValueError(
                f"{' and '.join(policies)}: registered already, so the tables have it; name a "
                "class (file.py:Class) or an agent (agent:file.npz)"
            )
    except ValueError:
        if not began:
            shutil.rmtree(folder / POLICY_FOLDER, ignore_errors=True)
        raise
    return entries


def _check_folder(folder: Path) -> None:
    """Refuse a folder with other things in it; forget a plan of which nothing was played."""
    if (folder / MANIFEST_FILE).exists() and not (folder / PLAN_FILE).exists():
        raise ValueError(
            f"{folder} holds a finished submission; `synergy-gym verify {folder}` checks it, "
            "choose another --out to play again"
        )
    if folder.is_dir() and any(folder.iterdir()) and not (folder / PLAN_FILE).is_file():
        raise ValueError(f"{folder} holds other files; choose a new folder as --out")
    played = any((folder / name).exists() for name in (PROGRESS_FILE, RESULTS_FILE))
    if (folder / PLAN_FILE).is_file() and not played:
        shutil.rmtree(folder / POLICY_FOLDER, ignore_errors=True)
        (folder / PLAN_FILE).unlink()


def _hold_to_plan(submission: Submission) -> None:
    """Write the plan, or refuse to go on with another one."""
    path, plan = submission.folder / PLAN_FILE, submission.plan()
    if not path.is_file():
        write_json(path, plan)
        return
    began = json.loads(path.read_text(encoding="utf-8"))
    other = [key for key in plan if began.get(key) != plan[key]]
    if other:
        raise ValueError(
            f"{submission.folder} was begun with {other[0]} {began.get(other[0])}, not "
            f"{plan[other[0]]}; choose another --out or remove the folder"
        )


def policy_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 by relative path of every file in `policy/`."""
    files = sorted((folder / POLICY_FOLDER).iterdir())
    return {f"{POLICY_FOLDER}/{path.name}": file_sha256(path) for path in files if path.is_file()}


def entry_suite(suite: Suite, track: Track, names: Sequence[str]) -> Suite:
    """The suite's parts of a track, with one competitor in place of the suite's.

    Args:
        suite: as it is registered.
        track: of the competitor.
        names: of its policies, one per competing layer, engine before router.
    """
    parts = (_entered(part, names) for part in suite.only(track).parts)
    return replace(suite, parts=tuple(parts))


def _entered(part: Part, names: Sequence[str]) -> Part:
    alone = replace(part, oracles=())
    if part.track == "joint":
        engine, router = names
        return replace(alone, engine_policies=(), router_policies=(), pairs=((engine, router),))
    if part.track == "engine":
        return replace(alone, engine_policies=tuple(names))
    return replace(alone, router_policies=tuple(names))


@dataclass(frozen=True)
class PlayEntries:
    """Plays a job whose policies are named as in the tables; can be sent to other processes.

    Attributes:
        folder: of the submission.
        entries: its own policies.
    """

    folder: Path
    entries: tuple[Entry, ...]

    def __call__(self, job: Job) -> JobResult:
        """The result of a job with its decisions, all under the submission's names.

        Raises:
            As `run_job`.
        """
        specs: dict[str, Any] = {
            f"{entry.layer}_policy": spec_in(self.folder, entry.spec) for entry in self.entries
        }
        played = replace(job, record=True, **specs)
        result = run_job(played)
        assert result.decisions is not None
        decisions = packed(unpacked(result.decisions, played.key, str(played)), job.key)
        key = dict(zip(KEY_COLUMNS, job.key, strict=True))
        policies = {**result.policies}
        for entry in self.entries:
            policies[entry.layer] = {**policies[entry.layer], "policy": entry.spec}
        return JobResult(
            row={**result.row, **key},
            timing={**result.timing, **key},
            histograms=result.histograms,
            policies=policies,
            decisions=decisions,
            decisions_sha256=hashlib.sha256(decisions).hexdigest(),
        )
