"""`synergy-gym serve` around a stand-in for vLLM."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from synergy_gym.live.vllm.servers import SMALL_ENGINE, server_spec
from synergy_gym.live.vllm.settings import HostSettings

PROGRAM = """
    import sys
    sys.path.insert(0, {root!r})
    from tests.live.test_servers import StandIn
    from synergy_gym.live.vllm import servers
    servers.ServerSpec.command = lambda spec: StandIn("m", port=spec.port, mode={mode!r}).command()
    from synergy_gym.cli.app import main
    main(["serve", *{arguments!r}])
"""


def serve(tmp_path: Path, *arguments: str, mode: str = "good") -> subprocess.Popen[str]:
    root = str(Path(__file__).parents[2])
    program = textwrap.dedent(PROGRAM.format(root=root, mode=mode, arguments=arguments))
    return subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )


def test_the_command_is_printed_and_sigterm_ends_the_server(tmp_path: Path) -> None:
    process = serve(tmp_path, "--policy", "lens-plus", "--slo", "tpot_s=0.05", "--port", "0")
    assert process.stdout is not None
    assert process.stderr is not None
    line = ""
    while "serving tiny with lens-plus at http://127.0.0.1:" not in line:
        line = process.stderr.readline()
        assert line, "it has ended before it served"
    process.terminate()
    printed, said = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "SYNERGY_GYM_POLICY=lens-plus" in printed
    assert "SYNERGY_GYM_SLO=tpot_s=0.05" in printed
    assert "stopping" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--policy", "lens-pluss"), "did you mean lens-plus"),
        (("--policy", "lens-plus", "--slo", "ttft=1"), "no objective 'ttft'"),
    ],
)
def test_a_wrong_word_costs_no_start(
    tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    process = serve(tmp_path, *arguments)
    printed, said = process.communicate(timeout=120)
    assert process.returncode == 2
    assert message in said
    assert printed == ""


def test_a_server_that_fails_to_start_is_an_error(tmp_path: Path) -> None:
    process = serve(tmp_path, "--port", "0", "--log", "log", mode="fails")
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "no such model" in said
    assert "Traceback" not in said


def test_sizes_get_small_engines_and_other_models_vllms_own_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    small = server_spec("tiny", HostSettings("lens-plus"), arguments=("--max-num-seqs=7",))
    command = small.command()
    assert set(SMALL_ENGINE) < set(command)
    assert command.index("--max-num-seqs=7") > command.index("--max-num-seqs=32"), "the last wins"
    assert (Path(small.model) / "config.json").is_file()
    hub = server_spec("some/model", HostSettings())
    assert not any(part.startswith(("--max", "--load", "--block")) for part in hub.command())
    assert hub.variables()["HF_HUB_OFFLINE"] == "0"
    assert "HF_HUB_OFFLINE" in server_spec(str(tmp_path), HostSettings()).variables()
