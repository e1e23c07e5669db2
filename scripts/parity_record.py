"""Hold the simulator against vLLM's scheduler in 10,000 workloads and write the record.

Needs vLLM (`make vllm`). Finished chunks of 100 workloads are kept in results/parity and used
again after an interruption, as long as neither vLLM nor the code has changed. With all chunks
there, docs/parity.md and tests/parity/record.json are written.

    python scripts/parity_record.py                     # about half an hour of one core
    python scripts/parity_record.py --jobs 2
"""

from __future__ import annotations

import argparse
import atexit
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # tests/ is not installed

from tests.parity import record  # noqa: E402
from tests.parity.oracle import VllmModules  # noqa: E402
from tests.parity.shrink import shrunk  # noqa: E402
from tests.parity.sides import SIDES  # noqa: E402


def main() -> int:
    """Play what is missing, write the record; 1 when a side differed anywhere."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workloads", type=int, default=10_000, help="a multiple of 100")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "parity")
    arguments = parser.parse_args()
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    chunks = play(arguments.workloads, arguments.jobs, arguments.out)
    result = record.summary(chunks, vllm().version)
    record.FILE.write_text(json.dumps(result, indent=1) + "\n")
    record.PAGE.write_text(record.page(record.PAGE.read_text(), result))
    wrong = [message for chunk in chunks for message in chunk.mismatches]
    print("\n".join(wrong) or f"{arguments.workloads} workloads, no mismatch")
    return bool(wrong)


def play(workloads: int, jobs: int, out: Path) -> list[record.Chunk]:
    """All chunks, those on disk not played again."""
    folder = out / f"{vllm().version}-{record.fingerprint()}"
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{first:06d}.json" for first in range(0, workloads, record.CHUNK)]
    missing = [file for file in files if not file.exists()]
    print(f"{len(missing)} of {len(files)} chunks to play", file=sys.stderr)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        for number, chunk in enumerate(pool.map(play_chunk, missing), start=1):
            wrong = len(chunk.mismatches)
            print(f"{number} of {len(missing)}: {wrong} mismatches", file=sys.stderr)
    return [record.read_chunk(file) for file in files]


def play_chunk(file: Path) -> record.Chunk:
    """Play the chunk that belongs into `file`, and store it there."""
    oracle = vllm().side
    chunk = record.play_chunk(int(file.stem), oracle, SIDES, shrunk(oracle, SIDES))
    record.write_chunk(file, chunk)
    return chunk


@cache
def vllm() -> VllmModules:
    """The oracle's classes, loaded once per process."""
    folder = tempfile.mkdtemp(prefix="parity-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return VllmModules(Path(folder))


if __name__ == "__main__":
    sys.exit(main())
