"""Networks for stable-baselines3 whose weights can be exported to NumPy agents.

Both kinds normalise their input with fixed numbers (`set_normalisation`), so that weights
and normalisation are one thing. The scorer is that of `synergy_gym.policies.networks`: one
network for every engine, whatever their number and order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch as th
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.qrdqn.policies import QRDQNPolicy, QuantileNetwork
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from torch import nn

from synergy_gym.features import NUM_REQUEST_FEATURES, NUM_ROUTER_FEATURES
from synergy_gym.observation import Float32Array

CLIP = 5.0
"""Normalised inputs are cut to +- this."""
MIN_SCALE = 0.02
"""Inputs that hardly vary are not blown up."""
NUM_ROW_FEATURES = NUM_ROUTER_FEATURES + NUM_REQUEST_FEATURES
_FORBIDDEN = -1e9
"""Logit or value of an engine that is down: its probability is 0 in float32."""


class Normalised(BaseFeaturesExtractor):  # type: ignore[misc]
    """The observation, normalised: (x - mean) / scale, cut to +-`CLIP`."""

    def __init__(self, observation_space: Any) -> None:
        size = int(np.prod(observation_space.shape))
        super().__init__(observation_space, size)
        _register(self, size)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """`(batch, n)` to `(batch, n)`."""
        return _normalise(self, observations.flatten(1))


class EngineRows(BaseFeaturesExtractor):  # type: ignore[misc]
    """One normalised row per engine: its block, the request, and whether it is up.

    `features_dim` is the number of engines; the output is `(batch, engines, 32)`.
    """

    def __init__(self, observation_space: Any) -> None:
        size = int(observation_space.shape[0]) - NUM_REQUEST_FEATURES
        super().__init__(observation_space, size // NUM_ROUTER_FEATURES)
        _register(self, NUM_ROW_FEATURES)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """`(batch, 10 + 21 engines)` to `(batch, engines, 32)`."""
        request = observations[:, None, :NUM_REQUEST_FEATURES]
        blocks = observations[:, NUM_REQUEST_FEATURES:]
        blocks = blocks.reshape(len(observations), -1, NUM_ROUTER_FEATURES)
        rows = th.cat([blocks, request.expand(-1, blocks.shape[1], -1)], dim=-1)
        return th.cat([_normalise(self, rows), blocks[..., :1]], dim=-1)


def _register(module: nn.Module, size: int) -> None:
    module.register_buffer("mean", th.zeros(size))
    module.register_buffer("scale", th.ones(size))


def _normalise(module: Any, x: th.Tensor) -> th.Tensor:
    return th.clamp((x - module.mean) / module.scale, -CLIP, CLIP)


def set_normalisation(policy: nn.Module, samples: Float32Array) -> None:
    """Fix mean and scale of every input of a policy.

    Args:
        policy: whose extractors are `Normalised` or `EngineRows`.
        samples: `(n, features)`, what the inputs look like; for a scorer one row per engine.
    """
    mean = samples.mean(axis=0, dtype=np.float64)
    scale = np.maximum(samples.std(axis=0, dtype=np.float64), MIN_SCALE)
    for module in policy.modules():
        if isinstance(module, Normalised | EngineRows):
            module.mean.copy_(th.as_tensor(mean, dtype=th.float32))
            module.scale.copy_(th.as_tensor(scale, dtype=th.float32))


class Scorer(nn.Module):  # type: ignore[misc]
    """Outputs per engine from `(batch, engines, 32)` rows; see `policies.networks.Scorer`."""

    def __init__(self, widths: tuple[int, int], outputs: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.encoder = nn.Linear(NUM_ROW_FEATURES, widths[0])
        self.mixer = nn.Linear(2 * widths[0], widths[1])
        self.head = nn.Linear(widths[1], outputs)
        self.activation = activation()

    def forward(self, rows: th.Tensor) -> th.Tensor:
        """`(batch, engines, outputs)`; `_FORBIDDEN` for engines that are down."""
        x, up = rows[..., :-1], rows[..., -1:]
        h = self.activation(self.encoder(x))
        both = th.cat([h, _mean_up(h, up).expand_as(h)], dim=-1)
        scores = self.head(self.activation(self.mixer(both)))
        return th.where(up > 0, scores, th.full_like(scores, _FORBIDDEN))


class ClusterValue(nn.Module):  # type: ignore[misc]
    """Features of the whole cluster for a critic: mean and maximum over engines that are up."""

    def __init__(self, widths: tuple[int, int], activation: type[nn.Module]) -> None:
        super().__init__()
        self.encoder = nn.Linear(NUM_ROW_FEATURES, widths[0])
        self.mixer = nn.Linear(2 * widths[0], widths[1])
        self.activation = activation()

    def forward(self, rows: th.Tensor) -> th.Tensor:
        """`(batch, width)`."""
        x, up = rows[..., :-1], rows[..., -1:]
        h = self.activation(self.encoder(x))
        most = th.where(up > 0, h, th.full_like(h, -CLIP)).amax(dim=1)
        return self.activation(self.mixer(th.cat([_mean_up(h, up)[:, 0], most], dim=-1)))


def _mean_up(h: th.Tensor, up: th.Tensor) -> th.Tensor:
    return (h * up).sum(dim=1, keepdim=True) / up.sum(dim=1, keepdim=True).clamp(min=1.0)


class _ActorAndCritic(nn.Module):  # type: ignore[misc]
    """What stable-baselines3 calls an MLP extractor: scores for the actor, features of a critic."""

    def __init__(self, engines: int, widths: tuple[int, int], activation: type[nn.Module]) -> None:
        super().__init__()
        self.latent_dim_pi, self.latent_dim_vf = engines, widths[1]
        self.policy_net = Scorer(widths, 1, activation)
        self.value_net = ClusterValue(widths, activation)

    def forward(self, rows: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        return self.forward_actor(rows), self.forward_critic(rows)

    def forward_actor(self, rows: th.Tensor) -> th.Tensor:
        return self.policy_net(rows)[..., 0]

    def forward_critic(self, rows: th.Tensor) -> th.Tensor:
        return self.value_net(rows)


class _Scoring:
    """Makes an actor-critic policy of stable-baselines3 score engines."""

    def _build_mlp_extractor(self: Any) -> None:
        widths = _widths(self.net_arch)
        self.mlp_extractor = _ActorAndCritic(self.features_dim, widths, self.activation_fn)

    def _build(self: Any, lr_schedule: Any) -> None:
        super()._build(lr_schedule)  # type: ignore[misc]
        self.action_net = nn.Identity()  # the scores are the logits
        nn.init.orthogonal_(self.mlp_extractor.policy_net.head.weight, gain=0.01)
        kwargs = self.optimizer_kwargs
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **kwargs)


class ScorerPolicy(_Scoring, ActorCriticPolicy):  # type: ignore[misc]
    """Actor and critic of PPO for routers."""


class MaskableScorerPolicy(_Scoring, MaskableActorCriticPolicy):
    """The same for MaskablePPO."""


class _ScorerQ(QNetwork):  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.q_net = Scorer(_widths(self.net_arch), 1, self.activation_fn)

    def forward(self, obs: Any) -> th.Tensor:
        return super().forward(obs)[..., 0]


class _ScorerQuantiles(QuantileNetwork):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        widths = _widths(self.net_arch)
        self.quantile_net = Scorer(widths, self.n_quantiles, self.activation_fn)

    def forward(self, obs: Any) -> th.Tensor:
        rows = self.extract_features(obs, self.features_extractor)
        return self.quantile_net(rows).transpose(1, 2)


class ScorerQPolicy(DQNPolicy):  # type: ignore[misc]
    """Action values of DQN for routers."""

    def make_q_net(self) -> Any:
        """A scorer whose scores are the values."""
        args = self._update_features_extractor(self.net_args, features_extractor=None)
        return _ScorerQ(**args).to(self.device)


class ScorerQuantilePolicy(QRDQNPolicy):
    """Quantiles of action values of QR-DQN for routers."""

    def make_quantile_net(self) -> Any:
        """A scorer with as many outputs per engine as there are quantiles."""
        args = self._update_features_extractor(self.net_args, features_extractor=None)
        return _ScorerQuantiles(**args).to(self.device)


def _widths(net_arch: Any) -> tuple[int, int]:
    sizes = net_arch["pi"] if isinstance(net_arch, dict) else net_arch
    return int(sizes[0]), int(sizes[-1])
