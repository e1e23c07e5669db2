"""Render modes: text, live terminal, image."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from synergy_gym.envs.cluster_routing import ClusterRoutingEnv
from synergy_gym.envs.engine_batching import EngineBatchingEnv
from synergy_gym.envs.rendering import (
    IMAGE_SIZE_PX,
    MAX_GAUGES,
    Frame,
    Gauge,
    ImageRenderer,
    bar,
    frame_text,
    make_renderer,
)
from synergy_gym.scenario import Scenario
from tests.envs.forms import LIMITS


def frame(gauges: int = 2, value: float = 0.5) -> Frame:
    rows = tuple(Gauge(f"engine-{i}", value, f"{i} requests") for i in range(gauges))
    return Frame("title", "facts", rows, {"load": value})


def test_bars_are_full_at_one() -> None:
    assert bar(0.0, 4) == "░░░░"
    assert bar(0.5, 4) == "██░░"
    assert bar(7.0, 4) == "████"


def test_text_shows_a_large_cluster_in_part() -> None:
    text = frame_text(frame(MAX_GAUGES + 5))
    assert text.startswith("title\nfacts\n")
    assert text.endswith("... and 5 more")


@pytest.mark.parametrize("gauges", [0, 1, 3, MAX_GAUGES + 5])
def test_images_have_one_size(gauges: int) -> None:
    renderer = ImageRenderer()
    image = renderer.draw(frame(gauges))
    assert image.shape == (IMAGE_SIZE_PX[1], IMAGE_SIZE_PX[0], 3)
    assert image.dtype == np.uint8
    renderer.close()


def test_images_follow_the_values_and_do_not_share_memory() -> None:
    renderer = ImageRenderer()
    low, high = renderer.draw(frame(value=0.1)), renderer.draw(frame(value=0.9))
    assert not np.shares_memory(low, high)
    assert (low != high).any()


def test_unknown_modes_are_refused() -> None:
    with pytest.raises(ValueError, match="ansi"):
        make_renderer("png")


def test_ansi_names_what_it_shows(short_engine: Scenario, small_traffic: Any) -> None:
    env = EngineBatchingEnv(short_engine, workload=small_traffic, render_mode="ansi", **LIMITS)
    env.reset(seed=1)
    env.step([1000, 50])
    text = env.render()
    assert "chat-h100" in text
    assert "of 1001 allowed" in text


def test_human_writes_to_standard_error(
    short_cluster: Scenario, small_traffic: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    env = ClusterRoutingEnv(short_cluster, workload=small_traffic, render_mode="human")
    env.reset(seed=1)
    assert env.render() is None
    env.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert short_cluster.engines[0].name in err
    env.close()


def test_rendering_changes_nothing(short_engine: Scenario, small_traffic: Any) -> None:
    hashes = []
    for mode in (None, "ansi", "human"):
        env = EngineBatchingEnv(short_engine, workload=small_traffic, render_mode=mode, **LIMITS)
        env.reset(seed=1)
        for _ in range(20):
            env.step([900, 60])
            if mode:
                env.render()
        hashes.append(env._sim.log_hash())
        env.close()
    assert len(set(hashes)) == 1


def test_render_before_reset_or_without_mode(short_engine: Scenario) -> None:
    with pytest.raises(gym.error.ResetNeeded):
        EngineBatchingEnv(short_engine, render_mode="ansi").render()
    with pytest.warns(UserWarning, match="render_mode"):
        assert EngineBatchingEnv(short_engine).render() is None
