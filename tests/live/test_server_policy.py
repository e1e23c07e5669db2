"""One real vLLM server with LENS inside, under streaming load; the policy fails for a while."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synergy_gym.live.router.push import PushInbox
from synergy_gym.live.vllm.servers import Server, ServerSpec, running_servers
from synergy_gym.live.vllm.settings import HostSettings
from synergy_gym.sim.plain.telemetry import PUSH_COLUMNS
from synergy_gym.types import RouterRow

pytestmark = pytest.mark.vllm

OUTPUT_TOKENS = 24
PACES_S = (0.0025, 0.005, 0.01, 0.02, 0.04, 0.08)
"""TPOT objectives from too hard to easy, whatever machine this is: some of them bind."""
POLICY = """
from dataclasses import dataclass
from pathlib import Path
from synergy_gym.policies.engine.lens_plus import LensPlus

@dataclass
class Fragile(LensPlus):
    \"\"\"lens-plus, except while the file `break` lies beside this one.\"\"\"

    def decide(self, engine):
        if Path(__file__).with_name("break").exists():
            raise RuntimeError("told to fail")
        return super().decide(engine)
"""


@dataclass(frozen=True)
class Hosted:
    """A running server, what it writes, and what it pushes."""

    server: Server
    folder: Path
    inbox: PushInbox

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "d.jsonl").read_text().splitlines()]

    def steps(self) -> list[dict[str, Any]]:
        return self.lines()[1:]

    def post(self, prompt: int, slo_class: Any = None) -> list[int]:
        """Stream one completion; returns the token ids of its chunks."""
        import httpx

        rng = np.random.default_rng(prompt)
        body: dict[str, Any] = {
            "model": "model",
            "prompt": rng.integers(4, 1000, prompt).tolist(),
            "max_tokens": OUTPUT_TOKENS,
            "ignore_eos": True,
            "temperature": 0.0,
            "stream": True,
            "return_token_ids": True,
        }
        if slo_class is not None:
            body["vllm_xargs"] = {"slo_class": slo_class}
        tokens: list[int] = []
        url = f"{self.server.url}/v1/completions"
        with httpx.stream("POST", url, json=body, timeout=120) as answer:
            assert answer.status_code == 200, answer.read()
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    [choice] = json.loads(line[6:])["choices"]
                    tokens += choice["token_ids"]
        return tokens


@pytest.fixture(scope="module")
def hosted(
    vllm: Any, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Hosted]:
    folder = tmp_path_factory.mktemp("hosted")
    (folder / "fragile.py").write_text(POLICY)
    inbox = PushInbox()
    settings = HostSettings(
        policy=f"{folder / 'fragile.py'}:Fragile",
        slo=";".join(f"pace{i}:ttft_s=1,tpot_s={pace}" for i, pace in enumerate(PACES_S)),
        push=inbox.url,
        engine="e0",
        decisions=str(folder / "d.jsonl"),
    )
    spec = ServerSpec(str(tiny_model), settings=settings)
    with running_servers([spec], folder) as [server]:
        yield Hosted(server, folder, inbox)
    inbox.close()


def test_lens_schedules_a_real_server_and_learns_from_its_steps(hosted: Hosted) -> None:
    rng = np.random.default_rng(1)
    sent = 0
    for index in range(len(PACES_S)):
        prompts = [int(n) for n in rng.integers(20, 400, 24)]
        classes = [f"pace{index}", index] * 12
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(hosted.post, prompts, classes))
        assert [len(answer) for answer in answers] == [OUTPUT_TOKENS] * 24
        sent += sum(prompts)
    engine, *steps = hosted.lines()
    requests = 24 * len(PACES_S)
    assert engine["policy"].endswith("fragile:Fragile")
    assert engine["spec"]["kv_blocks"] == 256
    assert [slo["tpot_s"] for slo in engine["slos"]] == list(PACES_S)
    assert {step["by"] for step in steps} == {"policy"}
    assert all(step["step"]["tokens"] <= step["decision"]["token_budget"] for step in steps)
    assert sum(step["step"]["prefill_tokens"] for step in steps) == sent
    assert sum(step["step"]["decodes"] for step in steps) == requests * (OUTPUT_TOKENS - 1)
    assert sum(step["step"]["finished"] for step in steps) == requests
    assert len({step["decision"]["token_budget"] for step in steps}) > 3, "caps of its own"
    models = [step["decision"]["step_ms"] for step in steps if step["decision"]["step_ms"]]
    assert models[-1] != models[0], "the performance model has learned from the server's steps"
    assert np.isfinite(models).all()
    assert all(step["step"]["step_s"] > 0 for step in steps)


def test_state_is_pushed_to_the_router(hosted: Hosted) -> None:
    hosted.post(50)
    pushes = hosted.inbox.drain()
    assert {push.engine for push in pushes} == {"e0"}
    whole = [push.state for push in pushes if len(push.state) == len(PUSH_COLUMNS)]
    running = PUSH_COLUMNS.index(RouterRow.PUSH_RUNNING)
    total = PUSH_COLUMNS.index(RouterRow.PUSH_TOTAL_BLOCKS)
    assert any(state[running] > 0 for state in whole)
    assert {state[total] for state in whole} == {256}


def test_a_policy_that_raises_is_replaced_by_stock_vllm_and_counted(hosted: Hosted) -> None:
    before = len(hosted.steps())
    (hosted.folder / "break").touch()
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(hosted.post, [100, 200, 300, 60]))
    (hosted.folder / "break").unlink()
    assert [len(answer) for answer in answers] == [OUTPUT_TOKENS] * 4
    broken = hosted.steps()[before:]
    assert len(broken) >= OUTPUT_TOKENS
    assert {(step["by"], step["step"]["token_budget"]) for step in broken} == {("stock", 512)}
    assert [s["failures"] for s in broken] == [{"decide": n + 1} for n in range(len(broken))]
    log = (hosted.folder / "server-0.log").read_text()
    assert "RuntimeError: told to fail" in log
    assert "Traceback" in log
    assert "16 such failures so far" in log
    deadline = time.monotonic() + 60
    while not any(push.failures == len(broken) for push in hosted.inbox.drain()):
        assert time.monotonic() < deadline, "pushed state tells, too, at the latest when idle"
        time.sleep(0.1)
    after = before + len(broken)
    assert len(hosted.post(80)) == OUTPUT_TOKENS
    assert {step["by"] for step in hosted.steps()[after:]} == {"policy"}
    assert hosted.steps()[-1]["failures"] == {"decide": len(broken)}
