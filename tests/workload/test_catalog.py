"""The catalogue of public traces and its download, without a network."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import pytest

from synergy_gym.workload.traces.catalog import download_trace, list_traces
from synergy_gym.workload.traces.load import FORMATS

CONTENT = b"TIMESTAMP,ContextTokens,GeneratedTokens\n"


class Recorder:
    """Notes what would be fetched and writes a file."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, str]] = []

    def __call__(self, url: str, target: Path, sha256: str) -> Path:
        self.calls.append((url, target.name, sha256))
        target.write_bytes(CONTENT)
        return target


def test_entries_are_complete() -> None:
    traces = list_traces()
    assert len({t.name for t in traces}) == len(traces) >= 11
    for trace in traces:
        assert trace.format in FORMATS
        assert trace.url.startswith("https://")
        assert trace.licence in {"CC-BY-4.0", "Apache-2.0", "MIT"}
        assert (trace.sha256 is None) == (trace.bytes is None)
        assert Path(trace.file_name).suffix in {".csv", ".jsonl"}


def test_entries_agree_with_the_published_list(traces_dir: Path) -> None:
    with (traces_dir / "sources.csv").open(encoding="utf-8") as file:
        published = {row["name"]: row for row in csv.DictReader(file)}
    assert {t.name for t in list_traces()} == published.keys()
    for trace in list_traces():
        row = published[trace.name]
        assert (trace.sha256 or "") == row["sha256"]
        assert (trace.format, trace.licence) == (row["format"], row["licence"])
        if trace.sha256:
            assert trace.url.endswith(f"/{row['repository']}/{row['commit']}/{row['path']}")


def test_download_passes_url_and_hash(tmp_path: Path) -> None:
    fetch = Recorder()
    found = download_trace("azure-2023-conv", tmp_path, fetch=fetch)
    entry = next(t for t in list_traces() if t.name == "azure-2023-conv")
    assert found == tmp_path / "azure-2023-conv.csv"
    assert fetch.calls == [(entry.url, "azure-2023-conv.csv", entry.sha256)]


def test_an_unhashed_trace_needs_the_users_hash(tmp_path: Path) -> None:
    fetch, own = Recorder(), "0" * 64
    with pytest.raises(ValueError, match=r"no SHA-256 is known .*--sha256"):
        download_trace("burstgpt-1", tmp_path, fetch=fetch)
    assert fetch.calls == []
    download_trace("burstgpt-1", tmp_path, sha256=own, fetch=fetch)
    assert fetch.calls[0][2] == own


def test_pooch_checks_a_file_that_is_already_there(tmp_path: Path) -> None:
    target = tmp_path / "mooncake-toolagent.jsonl"
    target.write_bytes(CONTENT)
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert download_trace("mooncake-toolagent", tmp_path, sha256=digest) == target


@pytest.mark.parametrize(
    ("name", "sha256", "message"),
    [
        ("azure", None, "no public trace 'azure'; choose one of azure-2023-conv"),
        ("burstgpt-1", "abc", "give 64 hexadecimal digits"),
        ("azure-2023-conv", "0" * 64, "its SHA-256 is 2f1e"),
    ],
)
def test_wrong_requests_are_errors(tmp_path: Path, name: str, sha256: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        download_trace(name, tmp_path, sha256=sha256, fetch=Recorder())


def test_a_failed_download_names_url_and_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pooch

    def offline(url: str, **_: object) -> None:
        raise OSError(f"Max retries exceeded with url: {url} (Caused by NameResolutionError(no))")

    monkeypatch.setattr(pooch, "retrieve", offline)
    entry = next(t for t in list_traces() if t.name == "azure-2023-conv")
    with pytest.raises(OSError, match="check the network, or fetch it elsewhere") as error:
        download_trace("azure-2023-conv", tmp_path)
    assert str(error.value).startswith(f"{entry.url}: cannot be fetched (NameResolutionError(no))")
    assert str(tmp_path / "azure-2023-conv.csv") in str(error.value)
