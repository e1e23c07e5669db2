"""Fill the generated tables of README.md and docs/, and copy the plots that they show.

A generated table stands between `<!-- NAME:begin -->` and `<!-- NAME:end -->`. The leaderboard
comes from the committed board `BOARD`, speed from `docs/speed.csv`, the others from scenarios,
registry and catalogue. tests/test_readme.py fails while a page differs from what this script
would write.

    python scripts/update_readme.py            # rewrite what is out of date
    python scripts/update_readme.py --check    # name it, and exit with 1
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from synergy_gym.evaluation.board.board import read_board
from synergy_gym.evaluation.board.part import Part
from synergy_gym.evaluation.board.tables import Row, decision_times, markdown
from synergy_gym.evaluation.incidents.page import library_text
from synergy_gym.evaluation.jobs import TRACK_LAYERS
from synergy_gym.policies.registry import (
    PolicyInfo,
    describe,
    engine_policies,
    router_policies,
)
from synergy_gym.scenario import EngineClock, Scenario, list_scenarios, load_scenario
from synergy_gym.types import EngineSpec
from synergy_gym.workload.traces.catalog import list_traces
from synergy_gym.workload.traces.load import list_formats

ROOT = Path(__file__).resolve().parents[1]
BOARD = ROOT / "experiments" / "leaderboard" / "season1" / "full"
"""The newest season that has a board of record."""
IMAGES = ROOT / "docs" / "images"
PLOTS = (
    "attainment-router-hetero-3.png",
    "attainment-engine-chat-h100.png",
    "attainment-joint-hetero-3.png",
)
FOR_TESTS = "smoke"


def leaderboard() -> str:
    """One ranking per part of the full suite, from the committed results."""
    board = read_board(BOARD)
    return "\n\n".join(
        _board(part, table, part.rows(board.rows), part.rows(board.timings))
        for part, table in board.rankings()
    )


def _board(part: Part, table: pd.DataFrame, rows: Sequence[Row], timings: Sequence[Row]) -> str:
    policies = list(table["policy"])
    families = [name for name in table.columns if name.startswith("iqm ")]
    shown = table[["rank", "policy", "iqm", "iqm_low", "iqm_high", "slo_attainment", *families]]
    times = decision_times(timings, part.track, policies)
    shown = shown.assign(
        capacity=table["capacity_text"],
        **{f"decision, us{layer}": text for layer, text in _decisions(part, times).items()},
    )
    seeds = sorted({row["seed"] for row in rows})
    caption = (
        f"**{part.title}, {len(part.scenarios)} scenarios, {len(rows):,} episodes** (season "
        f"{part.season}, simulated; arrivals of {part.horizon_s:g} s, the first "
        f"{part.warmup_s:g} s not scored; {len(seeds)} test seeds; decision: mean / P99 of "
        "processor time on the machine that ran this, `-`: a compiled rule):"
    )
    return f"{caption}\n\n{markdown(shown).rstrip()}"


def _decisions(part: Part, times: pd.DataFrame) -> dict[str, list[str]]:
    """Per competing layer the column of decision times, by what its heading adds."""
    layers = TRACK_LAYERS[part.track]
    columns = {
        layer: zip(times[f"{layer}_mean_us"], times[f"{layer}_p99_us"], strict=True)
        for layer in layers
    }
    return {
        f" ({layer})" if len(layers) > 1 else "": [
            "-" if math.isnan(mean) else f"{mean:.0f} / {p99:.0f}" for mean, p99 in column
        ]
        for layer, column in columns.items()
    }


def scenarios() -> str:
    """One row per scenario: engines, traffic, rate, loads, objectives, calibration."""
    found = [load_scenario(name) for name in list_scenarios()]
    found.sort(key=lambda s: (s.name.startswith(FOR_TESTS), len(s.engines), s.name))
    return _table([_scenario_row(scenario) for scenario in found])


def _scenario_row(scenario: Scenario) -> dict[str, str]:
    attained = re.search(r"attain ([\d.]+)", scenario.rate_source)
    counts = {e.gpu: sum(o.gpu == e.gpu for o in scenario.engines) for e in scenario.engines}
    models = sorted({engine.model.split("/")[-1] for engine in scenario.engines})
    return {
        "scenario": _link(scenario.name, f"../synergy_gym/scenarios/{scenario.name}.toml"),
        "engines": " + ".join(f"{n} x ({gpu})" for gpu, n in counts.items()),
        "model": ", ".join(models),
        "traffic": _traffic(scenario),
        "rate at load 1.0, req/s": f"{scenario.rate_rps:g}",
        "found by calibration at": attained[1] if attained else scenario.rate_source,
        "loads": " ".join(f"{load:g}" for load in scenario.loads),
        "TTFT / TPOT / E2E, s": "; ".join(
            " / ".join("-" if x is None else f"{x:g}" for x in (slo.ttft_s, slo.tpot_s, slo.e2e_s))
            for slo in scenario.slos
        ),
        "arrivals (warm-up), s": f"{scenario.horizon_s:g} ({scenario.warmup_s:g})",
    }


def _traffic(scenario: Scenario) -> str:
    spec = scenario.traffic
    if spec.generator is None:
        kinds = {"prompts": spec.prompt, "outputs": spec.output}
        parts = [f"{k} {v.kind}" for k, v in kinds.items() if v is not None]
        parts += ["sessions"] if spec.sessions else []
    else:
        parts = [f"`{spec.generator}`"]
        parts += [f"{spec.arrivals.kind} arrivals"] if spec.arrivals else []
    parts += [_PACES[spec.replay.pace]] if spec.replay else []
    return ", ".join(parts)


_PACES = {"even": "evenly resent", "timestamps": "resent in bursts"}


def engines() -> str:
    """One row per kind of engine of the scenarios."""
    rows = []
    for name in list_scenarios():
        world = load_scenario(name)
        kinds = {
            replace(e, name=""): (e, clock)
            for e, clock in zip(world.engines, world.engine_clocks, strict=True)
        }
        if not name.startswith(FOR_TESTS):
            rows += [{"scenario": f"`{name}`", **_engine_row(*kind)} for kind in kinds.values()]
    return _table(rows)


def _engine_row(engine: EngineSpec, clock: EngineClock) -> dict[str, str]:
    return {
        "GPU": engine.gpu,
        "`max_num_seqs`": f"{engine.max_num_seqs:,}",
        "`max_num_batched_tokens`": f"{engine.max_num_batched_tokens:,}",
        "`max_model_len`": f"{engine.max_model_len:,}",
        "KV cache, tokens": f"{engine.kv_blocks * engine.block_size:,}",
        "prefix cache": "on" if engine.prefix_caching else "off",
        "latency profile": _link(
            engine.profile, f"../synergy_gym/latency/profiles/{engine.profile}.toml"
        ),
        "engine loop": clock.loop or "as measured",
        "checked against": clock.profile.tier_label,
    }


def policies(kind: str) -> str:
    """One row per registered policy of a layer; a family counts once."""
    if kind == "engine":
        found = {info.name: info for info in (describe(n, "engine") for n in engine_policies())}
    else:
        found = {info.name: info for info in (describe(n, "router") for n in router_policies())}
    return _table([_policy_row(info) for info in found.values()])


def _policy_row(info: PolicyInfo) -> dict[str, str]:
    path = Path(info.source).resolve().relative_to(ROOT).as_posix()
    paragraphs = re.split(r"\n\s*\n", info.reference)[:2]
    text = " ".join(" ".join(paragraphs).split())
    parameters = [k if v is None else f"{k}={v}" for k, v in info.parameters.items()]
    return {
        "policy": _link(info.name, f"../{path}"),
        "reads": ", ".join(info.information),
        "parameters": ", ".join(f"`{text}`" for text in parameters) or "-",
        "what it does": info.summary,
        "source": re.sub(r" ?Information class: [a-z, ]+\.", "", text),
    }


def formats() -> str:
    """One row per trace layout."""
    return _table([{"`--format`": f"`{n}`", "reads": text} for n, text in list_formats().items()])


def catalogue() -> str:
    """One row per public trace."""
    return _table(
        [
            {
                "name": f"[`{trace.name}`]({trace.url})",
                "format": f"`{trace.format}`",
                "licence": trace.licence,
                "size, bytes": f"{trace.bytes:,}" if trace.bytes else "-",
                "download": "yes" if trace.sha256 else "no known SHA-256",
                "note": trace.note or "-",
            }
            for trace in list_traces()
        ]
    )


def _link(name: str, target: str) -> str:
    return f"[`{name}`]({target})"


def _table(rows: Sequence[dict[str, str]]) -> str:
    cells = [{key: value.replace("|", "\\|") for key, value in row.items()} for row in rows]
    return markdown(pd.DataFrame(cells)).rstrip()


sys.path.insert(0, str(ROOT / "scripts"))  # also where this file is loaded by its path
import clock_page  # noqa: E402
import speed_page  # noqa: E402

BLOCKS: dict[str, Mapping[str, Callable[[], str]]] = {
    "README.md": {"leaderboard": leaderboard, **speed_page.README},
    "docs/speed.md": speed_page.PAGE,
    "docs/scenarios.md": {"scenarios": scenarios, "engines": engines},
    "docs/clocks.md": clock_page.BLOCKS,
    "docs/incidents.md": {"incidents": library_text},
    "docs/policies.md": {
        "engine-policies": lambda: policies("engine"),
        "router-policies": lambda: policies("router"),
    },
    "docs/traces.md": {"formats": formats, "catalogue": catalogue},
}


def filled(text: str, name: str, content: str) -> str:
    """`text` with `content` between the markers of block `name`.

    Raises:
        ValueError: the markers are missing, or there more than once.
    """
    pattern = re.compile(rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise ValueError(f"need one <!-- {name}:begin --> and one <!-- {name}:end --> below it")
    return pattern.sub(lambda match: f"{match[1]}\n{content}\n\n{match[2]}", text)


def outputs() -> Iterator[tuple[Path, bytes]]:
    """Every generated file, with what it should contain."""
    for page, blocks in BLOCKS.items():
        text = (ROOT / page).read_text(encoding="utf-8")
        for name, make in blocks.items():
            text = filled(text, name, make())
        yield ROOT / page, text.encode()
    for name in PLOTS:
        yield IMAGES / name, (BOARD / "plots" / name).read_bytes()


def main(arguments: Sequence[str]) -> int:
    """Write (or with `--check` only name) the files that are out of date."""
    stale = [(p, new) for p, new in outputs() if not p.is_file() or p.read_bytes() != new]
    for path, new in stale:
        print(path.relative_to(ROOT))
        if "--check" not in arguments:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(new)
    return int("--check" in arguments and bool(stale))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
