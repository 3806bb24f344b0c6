"""SPPO equals PPO with other coefficients up to rounding; other settings are rejected."""

from __future__ import annotations

import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from torch import nn

from srl import SPPO
from srl.equivalence import equivalent_ppo_kwargs, policy_coefficient
from srl.errors import UserError
from srl.losses import REVERSE_LOSSES, LossWeights, ppo_losses


def parameters(model: PPO) -> th.Tensor:
    return th.cat([parameter.detach().flatten() for parameter in model.policy.parameters()])


@pytest.mark.slow
def test_sppo_and_equivalent_ppo_match_on_cartpole():
    """``c = 2`` over 10,240 steps: equal up to 1e-5 of the distance moved; plain PPO differs."""
    sppo = dict(alpha=1.0, beta=1.0, z=-1.0, ent_coef=0.01)
    common = dict(policy="MlpPolicy", env="CartPole-v1", seed=3, device="cpu")
    start = parameters(PPO(**common))
    ours = parameters(SPPO(**common, **sppo).learn(10_240))
    equivalent = parameters(PPO(**common, **equivalent_ppo_kwargs(**sppo)).learn(10_240))
    plain = parameters(PPO(**common, ent_coef=0.01).learn(10_240))
    moved = (ours - start).abs().max()
    assert (ours - equivalent).abs().max() <= 1e-5 * moved
    assert (ours - plain).abs().max() > 0.1 * moved


@pytest.mark.parametrize("optimizer", [th.optim.Adam, th.optim.AdamW, th.optim.RMSprop])
@pytest.mark.parametrize(
    "loss",
    [dict(alpha=0.5, beta=20.0), dict(alpha=0.5, beta=1.0, z=-6.0), dict(alpha=1.0, reverse_loss="mae")],
)
def test_one_update_matches_in_float64(optimizer, loss):
    loss = {"alpha": 0.5, "beta": 1.0, "z": -1.0, "reverse_loss": "rce", **loss}
    generator = th.Generator().manual_seed(0)

    def draw(*shape: int) -> th.Tensor:
        return th.randn(*shape, generator=generator, dtype=th.float64)

    observations, advantages, returns = draw(64, 5), draw(64), draw(64)
    actions = th.randint(4, (64,), generator=generator)

    def update(
        alpha: float, beta: float, z: float, reverse_loss: str, vf_coef: float, ent_coef: float,
        max_grad_norm: float, eps: float,
    ) -> th.Tensor:  # fmt: skip
        th.manual_seed(1)
        network = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 5)).double()
        with th.no_grad():
            old = network(observations)[:, :4].log_softmax(1).gather(1, actions[:, None])[:, 0] + 0.1
        stepper = optimizer(network.parameters(), lr=1e-3, eps=eps)
        outputs = network(observations)
        log_probs = outputs[:, :4].log_softmax(1)
        losses = ppo_losses(
            outputs[:, 4],
            log_probs.gather(1, actions[:, None])[:, 0],
            -(log_probs.exp() * log_probs).sum(1),
            old_values=returns, old_log_prob=old, advantages=advantages, returns=returns, clip_range=0.2,
            weights=LossWeights(alpha, beta, ent_coef, vf_coef), reverse_loss=reverse_loss, z=z,
        )  # fmt: skip
        stepper.zero_grad()
        losses.loss.backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), max_grad_norm)
        assert norm > max_grad_norm
        stepper.step()
        return th.cat([parameter.detach().flatten() for parameter in network.parameters()])

    # Small norms, so that the 1e-6 in gradient clipping matters
    kwargs = dict(vf_coef=0.5, ent_coef=0.01, max_grad_norm=0.05)
    policy_kwargs = dict(optimizer_class=optimizer, optimizer_kwargs=dict(eps=1e-12))
    ppo = equivalent_ppo_kwargs(**kwargs, **loss, policy_kwargs=policy_kwargs)
    eps = ppo.pop("policy_kwargs")["optimizer_kwargs"]["eps"]
    assert eps == pytest.approx(1e-12 / policy_coefficient(**loss))
    ours = update(**loss, **kwargs, eps=1e-12)
    assert (ours - update(1.0, 0.0, -1.0, "rce", **ppo, eps=eps)).abs().max() < 1e-10
    assert (ours - update(1.0, 0.0, -1.0, "rce", **kwargs, eps=1e-12)).abs().max() > 1e-5


def test_policy_coefficient_matches_gradient_identity():
    assert policy_coefficient(0.5, 20.0, -1.0) == 20.5
    assert policy_coefficient(0.5, 1.0, -6.0) == 6.5
    assert policy_coefficient(0.5, 1.0, reverse_loss="mae") == 2.5


def test_unscaled_arguments_are_kept_and_defaults_are_filled_in():
    kwargs = equivalent_ppo_kwargs(beta=1.5, n_steps=64, clip_range=0.1, policy_kwargs=dict(net_arch=[8]))
    assert kwargs == {
        "n_steps": 64,
        "clip_range": 0.1,
        "vf_coef": 0.25,
        "ent_coef": 0.0,
        "max_grad_norm": 0.25,
        "policy_kwargs": {"net_arch": [8], "optimizer_kwargs": {"eps": 5e-6}},
    }
    decayed = dict(optimizer_class=th.optim.RMSprop, optimizer_kwargs=dict(weight_decay=0.2))
    options = equivalent_ppo_kwargs(beta=1.5, policy_kwargs=decayed)["policy_kwargs"]["optimizer_kwargs"]
    assert options == {"eps": 5e-9, "weight_decay": 0.1}
    decoupled = dict(optimizer_kwargs=dict(weight_decay=0.2, decoupled_weight_decay=True))
    options = equivalent_ppo_kwargs(beta=1.5, policy_kwargs=decoupled)["policy_kwargs"]["optimizer_kwargs"]
    assert options["weight_decay"] == 0.2
    # PPO does not have these arguments
    assert (
        not {"compile_update", "precision"}
        & equivalent_ppo_kwargs(compile_update=True, precision="float32").keys()
    )


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"importance_weighting": False}, "importance_weighting"),
        ({"advantage_transform": "sign"}, "advantage_transform"),
        ({"advantage_flip_prob": 0.1}, "advantage_flip_prob"),
        ({"alpha": 0.0, "beta": 0.0}, "no policy loss"),
        ({"policy_kwargs": {"optimizer_class": th.optim.SGD}}, "SGD"),
        ({"policy_kwargs": {"optimizer_class": RMSpropTFLike}}, "RMSpropTFLike"),
        ({"z": 1.0}, "z=1.0"),
        ({"precision": "bf16"}, "precision='bf16'"),
    ],
)
def test_settings_without_equivalent_ppo_are_rejected(kwargs, says):
    with pytest.raises(UserError, match=says):
        equivalent_ppo_kwargs(**kwargs)


def test_loss_without_reverse_factor_has_no_equivalent_ppo(monkeypatch):
    monkeypatch.setitem(
        REVERSE_LOSSES, "other", lambda advantages, weight, prob, z: (advantages * prob).mean(-1)
    )
    with pytest.raises(UserError, match="REVERSE_FACTORS has no factor"):
        equivalent_ppo_kwargs(reverse_loss="other")
