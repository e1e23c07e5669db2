"""What is wrong with the folder of a submission, as far as its data tell; runs none of its code.

Rows, decisions and hashes are checked as those of every board; here is what only a submission
has: its policies' files, the cells that its track asks for, the verdicts and the card.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from synergy_gym.evaluation.board.board import manifest_season, manifest_suite
from synergy_gym.evaluation.board.files import MANIFEST_FILE
from synergy_gym.evaluation.board.suites import find_suite
from synergy_gym.evaluation.board.tables import Row
from synergy_gym.evaluation.jobs import TRACK_LAYERS, Track
from synergy_gym.evaluation.submission.card import CARD_FILE, facts_in, facts_text
from synergy_gym.evaluation.submission.plan import entry_suite
from synergy_gym.evaluation.submission.policy import (
    POLICY_FOLDER,
    file_sha256,
    is_registered,
    policy_file,
    split_spec,
)
from synergy_gym.evaluation.submission.source import source_problems
from synergy_gym.policies.agent_file import load_agent
from synergy_gym.policies.base import Layer
from synergy_gym.policies.registry import engine_policies, router_policies

CHECKS = (
    *("plays", "views", "surroundings", "decision-time", "replay", "determinism", "generator"),
    *("fresh-seeds", "starvation", "alone", "two-futures"),
)
"""Checks that each policy of a submission has passed before it was played."""
_SHAPE = {"name": str, "track": str, "policies": dict, "files": dict, "checks": dict}


def submission_problems(
    folder: Path, manifest: Mapping[str, Any], rows: Sequence[Row]
) -> list[str]:
    """One line per problem: the place, the value, the cure. Empty: none.

    Args:
        folder: of the submission.
        manifest: content of its `manifest.json`, with the entry `submission`.
        rows: of its `results.csv`.
    """
    where = folder / MANIFEST_FILE
    shape = list(_shape_problems(where, manifest))
    if shape:
        return shape
    found = [*_suite_problems(where, manifest), *_name_problems(where, manifest)]
    found += _file_problems(folder, manifest["submission"]["files"])
    found += _spec_problems(folder, manifest)
    found += _verdict_problems(where, manifest)
    return [*found, *_card_problems(folder, manifest, rows)]


def _shape_problems(where: Path, manifest: Mapping[str, Any]) -> Iterator[str]:
    """What keeps the other checks from reading the manifest."""
    entry = manifest.get("submission")
    if not isinstance(entry, dict):
        yield f"{where}: submission is {entry!r}; submit again"
        return
    for name, kind in _SHAPE.items():
        if not isinstance(entry.get(name), kind):
            yield f"{where}: submission.{name} is {entry.get(name)!r}; submit again"
            return
    if entry["track"] not in get_args(Track):
        yield f"{where}: track {entry['track']!r} is none of {', '.join(get_args(Track))}"
    elif sorted(entry["policies"]) != sorted(TRACK_LAYERS[entry["track"]]):
        yield f"{where}: the {entry['track']} track has no policies of {sorted(entry['policies'])}"
    for layer, name in entry["policies"].items():
        policy = manifest.get("policies", {}).get(layer, {}).get(name)
        texts = ("policy", "sha256")
        if not isinstance(policy, dict) or not all(isinstance(policy.get(t), str) for t in texts):
            yield f"{where}: policies.{layer} has no whole entry {name!r}; submit again"
    for key, check in entry["checks"].items():
        if not isinstance(check, dict) or {"passed", "reason"} - set(check):
            yield f"{where}: check {key!r} is {check!r}; submit again"


def _suite_problems(where: Path, manifest: Mapping[str, Any]) -> Iterator[str]:
    """Whether the parts are those of the suite, with this competitor in them."""
    entry = manifest["submission"]
    names = [entry["policies"][layer] for layer in TRACK_LAYERS[entry["track"]]]
    try:
        suite = find_suite(str(manifest.get("suite")), manifest_season(manifest, where))
        wanted = entry_suite(suite, entry["track"], names).parts
        given = manifest_suite(manifest, where).parts
    except ValueError as error:
        yield f"{where}: {error}"
        return
    if len(given) != len(wanted):
        yield f"{where}: {len(given)} parts; the suite has {len(wanted)} of this track"
    for index, (one, other) in enumerate(zip(given, wanted, strict=False)):
        for name in one.__dataclass_fields__:
            if getattr(one, name) != getattr(other, name):
                yield (
                    f"{where}: parts[{index}].{name} is {getattr(one, name)!r}; suite "
                    f"{suite.name!r} plays {getattr(other, name)!r}: submit again"
                )


def _name_problems(where: Path, manifest: Mapping[str, Any]) -> Iterator[str]:
    for layer, name in manifest["submission"]["policies"].items():
        registered = name in {"engine": engine_policies, "router": router_policies}[layer]()
        if registered and manifest["policies"][layer][name]["policy"] != name:
            yield f"{where}: {name!r} is a registered policy, not this one; choose another name"
    if not _own(manifest):
        yield f"{where}: no policy of its own; name a file of {POLICY_FOLDER}/"


def _own(manifest: Mapping[str, Any]) -> list[tuple[Layer, str, str]]:
    """Layer, name and specification of the policies that are not registered ones."""
    names = manifest["submission"]["policies"]
    found = [
        (layer, name, manifest["policies"][layer][name]["policy"]) for layer, name in names.items()
    ]
    return [item for item in found if not is_registered(item[0], item[2])]


def _file_problems(folder: Path, files: Mapping[str, Any]) -> Iterator[str]:
    """Whether `policy/` holds exactly the files that the manifest names, unchanged."""
    for name, digest in files.items():
        try:
            path = policy_file(folder, name)
        except ValueError as error:
            yield f"{folder / MANIFEST_FILE}: submission.files: {error}"
            continue
        if file_sha256(path) != digest:
            yield f"{path}: SHA-256 is not the manifest's {digest}; restore the file"
    home = folder / POLICY_FOLDER
    for path in sorted(home.iterdir()) if home.is_dir() and not home.is_symlink() else []:
        if f"{POLICY_FOLDER}/{path.name}" not in files:
            yield f"{path}: is not in the manifest; remove it"


def _spec_problems(folder: Path, manifest: Mapping[str, Any]) -> Iterator[str]:
    """Whether what names a policy stays in the folder and holds what a policy may hold."""
    entry = manifest["submission"]
    for layer, name, spec in _own(manifest):
        prefix, path, _ = split_spec(spec)
        try:
            file = policy_file(folder, path)
            if prefix:
                load_agent(file, layer)
        except ValueError as error:
            yield f"{folder / MANIFEST_FILE}: policies.{layer}.{name}: {error}"
            continue
        if path not in entry["files"]:
            yield f"{file}: is not in the manifest's submission.files; submit again"
        if not prefix:
            yield from source_problems(file, str(file))


def _verdict_problems(where: Path, manifest: Mapping[str, Any]) -> Iterator[str]:
    entry = manifest["submission"]
    for layer, _, _ in _own(manifest):
        for check in CHECKS:
            if f"{layer}/{check}" not in entry["checks"]:
                yield f"{where}: check '{layer}/{check}' is missing; submit again"
    for key, check in entry["checks"].items():
        if check["passed"] is not True:
            yield f"{where}: check {key!r} failed: {check['reason']}"


def _card_problems(folder: Path, manifest: Mapping[str, Any], rows: Sequence[Row]) -> Iterator[str]:
    path = folder / CARD_FILE
    if path.is_symlink() or not path.is_file():
        yield f"{path}: missing; submit again"
        return
    facts = facts_in(path.read_text(encoding="utf-8", errors="replace"))
    if facts is None:
        yield f"{path}: has not one block of facts between its two marks; restore it"
        return
    wanted = facts_text(manifest, rows).split("\n")
    given = facts.split("\n")
    for one, other in zip(given, wanted, strict=False):
        if one != other:
            yield f"{path}: says {one!r}, the data say {other!r}; restore the block of facts"
            return
    if len(given) != len(wanted):
        yield f"{path}: {len(given)} lines of facts instead of {len(wanted)}; restore the block"
