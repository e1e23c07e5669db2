"""NumPy forward passes: equal to torch's, blind to order, and picky about weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from synergy_gym.observation import Float32Array
from synergy_gym.policies.agent_file import Agent, AgentError
from synergy_gym.policies.authors_state import ROWS
from synergy_gym.policies.networks import network
from synergy_gym.types import BoolArray, FloatArray
from tests.policies.agents import WIDTH, authors_agent, changed, engine_agent, scorer_agent

TOLERANCE = 1e-10
"""Both sides compute in double precision: in single one in 300 draws differed by more than 1e-6."""


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch", reason="extra rl")


def layer(torch: Any, agent: Agent, prefix: str, i: int) -> Any:
    """The torch layer with the weights `{prefix}w{i}` of an agent."""
    made = torch.nn.Linear(*agent.arrays[f"{prefix}w{i}"].shape[::-1])
    made.weight.data = torch.from_numpy(agent.arrays[f"{prefix}w{i}"])
    made.bias.data = torch.from_numpy(agent.arrays[f"{prefix}b{i}"])
    return made.double()


def wide(torch: Any, x: Float32Array) -> Any:
    """The same numbers in torch's double precision."""
    return torch.from_numpy(x).double()


def normalised(torch: Any, agent: Agent, x: Any) -> Any:
    if "mean" not in agent.arrays:
        return x
    mean, scale, clip = (wide(torch, agent.arrays[n]) for n in ("mean", "scale", "clip"))
    return torch.clamp((x - mean) / scale, -clip, clip)


def batch(rng: np.random.Generator, agent: Agent, rows: int) -> Float32Array:
    return rng.random((rows, network(agent).inputs)).astype(np.float32)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("normalise", [True, False])
def test_mlp_equals_torch(
    torch: Any, rng: np.random.Generator, activation: str, normalise: bool
) -> None:
    agent = changed(engine_agent(rng, frames=2, normalised=normalise), activation=activation)
    act = torch.nn.Tanh() if activation == "tanh" else torch.nn.ReLU()
    layers = [layer(torch, agent, "", i) for i in range(3)]
    model = torch.nn.Sequential(layers[0], act, layers[1], act, layers[2])
    x = batch(rng, agent, 50)
    with torch.no_grad():
        expected = model(normalised(torch, agent, wide(torch, x))).numpy()
    found = [network(agent)(row) for row in x]
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def test_scorer_equals_torch(torch: Any, rng: np.random.Generator) -> None:
    agent = scorer_agent(rng)
    encoder, mixer, head = (layer(torch, agent, "", i) for i in range(3))
    for engines in (1, 3, 8, 40):
        x, up = batch(rng, agent, engines), rng.random(engines) < 0.7
        up[rng.integers(engines)] = True
        with torch.no_grad():
            h = torch.tanh(encoder(wide(torch, x)))
            mean = h[torch.from_numpy(up)].mean(0, keepdim=True).expand_as(h)
            scores = head(torch.tanh(mixer(torch.cat([h, mean], -1))))[:, 0].numpy()
        found = network(agent)(x, up)
        np.testing.assert_allclose(found[up], scores[up], rtol=0, atol=TOLERANCE)
        assert np.isneginf(found[~up]).all()


def pooled(torch: Any, agent: Agent, name: str, rows: Any, there: Any) -> Any:
    """Masked attention in one queue, batched: `(n, ROWS, 2)` to `(n, WIDTH)`."""
    first, second = (layer(torch, agent, f"{name}_", i) for i in range(2))
    encoded = torch.relu(second(torch.relu(first(rows))))
    scores = layer(torch, agent, f"{name}_score_", 0)(encoded)[..., 0]
    weights = torch.softmax(scores.masked_fill(there == 0, -1e9), dim=1) * there
    return (weights[..., None] * encoded).sum(1)


def states(rng: np.random.Generator, count: int) -> Float32Array:
    """Random states of the authors; masks cover the first requests, often none."""
    x = rng.normal(0, 1, (count, 70)).astype(np.float32)
    for start in (50, 60):
        lengths = rng.integers(0, ROWS + 1, count) * (rng.random(count) < 0.8)
        x[:, start : start + ROWS] = np.arange(ROWS) < lengths[:, None]
    return x


def test_attention_equals_torch(torch: Any, rng: np.random.Generator) -> None:
    agent, x = authors_agent(rng), states(rng, 60)
    t = wide(torch, x)
    with torch.no_grad():
        waiting = pooled(torch, agent, "waiting", t[:, 10:30].reshape(-1, ROWS, 2), t[:, 50:60])
        running = pooled(torch, agent, "running", t[:, 30:50].reshape(-1, ROWS, 2), t[:, 60:70])
        h = torch.cat([t[:, :10], waiting, running], 1)
        for i in range(2):
            h = torch.relu(layer(torch, agent, "", i)(h))
        expected = layer(torch, agent, "", 2)(h).numpy()
    found = [network(agent)(row) for row in x]
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def test_attention_ignores_padding_and_order(rng: np.random.Generator) -> None:
    run, [x] = network(authors_agent(rng)), states(rng, 1)
    there = x[50:60] > 0
    noisy = x.copy()
    noisy[10:30].reshape(ROWS, 2)[~there] = 99.0
    np.testing.assert_allclose(run(noisy), run(x), rtol=0, atol=1e-12)
    order = rng.permutation(ROWS)
    mixed = x.copy()
    mixed[10:30] = x[10:30].reshape(ROWS, 2)[order].ravel()
    mixed[50:60] = x[50:60][order]
    np.testing.assert_allclose(run(mixed), run(x), rtol=0, atol=1e-12)


def test_scorer_follows_a_permutation(rng: np.random.Generator) -> None:
    run, engines = network(scorer_agent(rng)), int(rng.integers(2, 30))
    x = rng.random((engines, run.inputs)).astype(np.float32)
    up: BoolArray = rng.random(engines) < 0.6
    order = rng.permutation(engines)
    moved: FloatArray = run(x[order], up[order])
    np.testing.assert_allclose(moved, run(x, up)[order], rtol=0, atol=1e-12)
    hidden = x.copy()
    hidden[~up] = 7.0
    np.testing.assert_allclose(run(hidden, up), run(x, up), rtol=0, atol=1e-12)


def zeros(*shape: int) -> Float32Array:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("make", "change", "message"),
    [
        (engine_agent, {"network": "cnn"}, "network 'cnn' is none of"),
        (engine_agent, {"activation": "gelu"}, "activation 'gelu' is none of"),
        (engine_agent, {"arrays": {"b1": None}}, "layer 1 has no fitting bias"),
        (engine_agent, {"arrays": {"b1": zeros(3)}}, "layer 1 has no fitting bias"),
        (engine_agent, {"arrays": {"w0": None}}, "no weights w0"),
        (engine_agent, {"arrays": {"w2": zeros(18, 5)}}, "layer 2 does not fit the one before"),
        (engine_agent, {"arrays": {"scale": None}}, "has one of 'mean' and 'scale'"),
        (engine_agent, {"arrays": {"scale": zeros(17)}}, "'scale' must be positive"),
        (engine_agent, {"arrays": {"mean": zeros(3)}}, r"'mean' has the shape \(3,\), not \(17,\)"),
        (engine_agent, {"frames": 2}, "takes 17 numbers, its features and frames give 34"),
        (scorer_agent, {"arrays": {"w2": None}}, "a scorer has 3 layers, not 2"),
        (scorer_agent, {"arrays": {"w1": zeros(WIDTH, 5)}}, "of a scorer do not fit"),
        (scorer_agent, {"arrays": {"w2": zeros(1, 3)}}, "of a scorer do not fit"),
        (authors_agent, {"rows": None}, "entry 'rows' of meta is None"),
        (authors_agent, {"rows": 9}, "takes 64 numbers, its features and frames give 70"),
        (authors_agent, {"arrays": {"running_w0": None}}, "no weights running_w0"),
        (authors_agent, {"arrays": {"waiting_score_w0": zeros(1, 3)}}, "queue 'waiting' do not"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    rng: np.random.Generator, make: Any, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(AgentError, match=f"agent '[a-z-]+'.* ?{message}"):
        network(changed(make(rng), **change))
