"""The public traces: where they are, under which licence, and how to fetch them.

`data/catalog.csv` pins each file to a commit and, where its publisher's file could be
hashed, to a SHA-256. Only hashed files are fetched: a trace that differs silently would make
results differ silently.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

_SHA256 = re.compile(r"[0-9a-f]{64}")

Fetch = Callable[[str, Path, str], Path]
"""`fetch(url, target, sha256)` writes the file, checks its hash and returns its path."""


@dataclass(frozen=True, slots=True)
class PublicTrace:
    """A file that its authors published.

    Attributes:
        name: what `download_trace` calls it.
        format: its layout, a name of `traces.FORMATS`.
        url: where it is served.
        bytes: its size, or `None` if unknown.
        sha256: hash of its content, or `None` if unknown.
        licence: SPDX identifier of its licence.
        note: what a reader should know.
    """

    name: str
    format: str
    url: str
    bytes: int | None
    sha256: str | None
    licence: str
    note: str

    @property
    def file_name(self) -> str:
        """`NAME.csv` or `NAME.jsonl`."""
        return self.name + PurePosixPath(urlsplit(self.url).path).suffix


def list_traces() -> list[PublicTrace]:
    """All traces of the catalogue."""
    text = files("synergy_gym.workload").joinpath("data", "catalog.csv").read_text(encoding="utf-8")
    return [_entry(row) for row in csv.DictReader(text.splitlines())]


def download_trace(
    name: str,
    folder: Path | str | None = None,
    *,
    sha256: str | None = None,
    fetch: Fetch | None = None,
) -> Path:
    """Fetch a trace unless it is there already, and check its SHA-256.

    Args:
        name: a name of `list_traces`.
        folder: where to put it; the user's cache by default.
        sha256: hash of the copy that you trust, for traces without a known one.
        fetch: what downloads and checks the file; pooch by default.

    Returns:
        The path of the file.

    Raises:
        ValueError: the name is unknown, no hash is known, or `sha256` contradicts the
            catalogue or the file.
        OSError: the download failed; names URL and cure.
    """
    trace = _find(name)
    digest = _digest(trace, sha256)
    target = (Path(folder) if folder is not None else _cache()) / trace.file_name
    return (fetch or _fetch)(trace.url, target, digest)


def _entry(row: dict[str, str]) -> PublicTrace:
    size = int(row["bytes"]) if row["bytes"] else None
    return PublicTrace(
        row["name"],
        row["format"],
        row["url"],
        size,
        row["sha256"] or None,
        row["licence"],
        row["note"],
    )


def _find(name: str) -> PublicTrace:
    catalogue = {trace.name: trace for trace in list_traces()}
    if name not in catalogue:
        raise ValueError(f"no public trace {name!r}; choose one of {', '.join(catalogue)}")
    return catalogue[name]


def _digest(trace: PublicTrace, sha256: str | None) -> str:
    if sha256 is not None and not _SHA256.fullmatch(sha256):
        raise ValueError(f"sha256 is {sha256!r}; give 64 hexadecimal digits in lower case")
    if trace.sha256 is None and sha256 is None:
        raise ValueError(
            f"{trace.name}: no SHA-256 is known for {trace.url}; fetch it, check that it is what "
            "you expect, and pass the sha256 of the copy that you trust (--sha256)"
        )
    if trace.sha256 is not None and sha256 not in (None, trace.sha256):
        raise ValueError(f"{trace.name}: its SHA-256 is {trace.sha256}, not {sha256}; leave it out")
    digest = sha256 or trace.sha256
    assert digest is not None
    return digest


def _cache() -> Path:
    import pooch

    return Path(pooch.os_cache("synergy-gym")) / "traces"


def _fetch(url: str, target: Path, sha256: str) -> Path:
    import pooch

    try:
        found = pooch.retrieve(
            url,
            known_hash=f"sha256:{sha256}",
            fname=target.name,
            path=target.parent,
            progressbar=False,
        )
    except OSError as cause:
        reason = str(cause).rpartition("(Caused by ")[2].removesuffix(")") or type(cause).__name__
        raise OSError(
            f"{url}: cannot be fetched ({reason}); check the network, or fetch it elsewhere and "
            f"put it at {target}"
        ) from cause
    return Path(found)
