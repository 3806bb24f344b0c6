"""SA2C and SPPO as SB3 algorithms."""

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.envs import (
    FakeImageEnv,
    IdentityEnvMultiBinary,
    IdentityEnvMultiDiscrete,
    SimpleMultiObsEnv,
)
from stable_baselines3.common.logger import configure

from srl import SA2C, SPPO
from srl.errors import UserError

PAIRS = [(SPPO, PPO), (SA2C, A2C)]
LOGGED = {"train/reverse_loss", "train/advantage_sign_change", "train/advantage_abs_max"}


def small(cls, **kwargs):
    """Return arguments that make one update cheap."""
    if cls in (SPPO, PPO):
        return dict(n_steps=32, batch_size=16, n_epochs=2) | kwargs
    return kwargs


def seeded_multi_obs_env():
    # The constructor draws observations from NumPy's global generator
    np.random.seed(0)
    return SimpleMultiObsEnv()


def assert_same_parameters(model, other):
    ours, theirs = model.policy.state_dict(), other.policy.state_dict()
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert th.equal(ours[name], theirs[name]), name


@pytest.mark.slow
@pytest.mark.parametrize(("ours", "theirs", "n_steps"), [(SPPO, PPO, 4096), (SA2C, A2C, 1000)])
def test_alpha_1_beta_0_is_bitwise_identical_to_sb3_on_cartpole(ours, theirs, n_steps):
    models = [
        cls("MlpPolicy", "CartPole-v1", seed=3, device="cpu", **kwargs).learn(n_steps)
        for cls, kwargs in ((ours, dict(alpha=1.0, beta=0.0)), (theirs, {}))
    ]
    assert_same_parameters(*models)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
@pytest.mark.parametrize(
    ("make_env", "policy", "kwargs"),
    [
        (lambda: "Pendulum-v1", "MlpPolicy", {}),
        (lambda: "Pendulum-v1", "MlpPolicy", dict(use_sde=True, sde_sample_freq=4)),
        (lambda: IdentityEnvMultiBinary(3), "MlpPolicy", {}),
        (seeded_multi_obs_env, "MultiInputPolicy", {}),
    ],
    ids=["box", "gsde", "multibinary", "dict"],
)
def test_alpha_1_beta_0_is_bitwise_identical_to_sb3_on_other_spaces(ours, theirs, make_env, policy, kwargs):
    models = [
        cls(policy, make_env(), seed=0, device="cpu", **small(cls), **kwargs, **symmetric).learn(96)
        for cls, symmetric in ((ours, dict(alpha=1.0, beta=0.0)), (theirs, {}))
    ]
    assert_same_parameters(*models)


def test_clip_range_vf_and_target_kl_match_sb3(capsys):
    kwargs = dict(clip_range_vf=0.1, target_kl=1e-4, learning_rate=0.01, verbose=1, **small(SPPO))
    ours = SPPO("MlpPolicy", "CartPole-v1", seed=0, device="cpu", alpha=1.0, beta=0.0, **kwargs).learn(96)
    printed = capsys.readouterr().out
    theirs = PPO("MlpPolicy", "CartPole-v1", seed=0, device="cpu", **kwargs).learn(96)
    assert "Early stopping" in printed
    assert printed.count("Early stopping") == capsys.readouterr().out.count("Early stopping")
    assert_same_parameters(ours, theirs)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_multidiscrete_update_matches_sb3(ours, theirs):
    """The batched distribution draws differently, but the update from a given rollout matches SB3."""
    collected = theirs("MlpPolicy", IdentityEnvMultiDiscrete(4), seed=0, device="cpu", **small(theirs))
    collected.learn(collected.n_steps)
    models = []
    for cls, symmetric in ((ours, dict(alpha=1.0, beta=0.0)), (theirs, {})):
        model = cls("MlpPolicy", IdentityEnvMultiDiscrete(4), seed=1, device="cpu", **small(cls), **symmetric)
        model.set_logger(configure(None, []))
        model.rollout_buffer = collected.rollout_buffer
        before = model.policy.action_net.weight.detach().clone()
        np.random.seed(0)
        model.train()
        assert not th.equal(before, model.policy.action_net.weight)
        models.append(model)
    for name, value in models[1].policy.state_dict().items():
        th.testing.assert_close(models[0].policy.state_dict()[name], value, rtol=1e-5, atol=1e-6)


SPACES = {
    "discrete": spaces.Discrete(3),
    "multidiscrete": spaces.MultiDiscrete([3, 3]),
    "unequal multidiscrete": spaces.MultiDiscrete([2, 5, 3]),
    "multibinary": spaces.MultiBinary(3),
}


class RandomEnv(gym.Env):
    """Random rewards and observations over any action space."""

    def __init__(self, action_space):
        self.observation_space = spaces.Box(-1, 1, (4,))
        self.action_space = action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.uniform(-1, 1, 4).astype(np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action)
        observation = self.np_random.uniform(-1, 1, 4).astype(np.float32)
        return observation, self.np_random.normal(), self.np_random.random() < 0.1, False, {}


class NanRewards(RandomEnv):
    def step(self, action):
        observation, _, *rest = super().step(action)
        return observation, float("nan"), *rest


@pytest.mark.parametrize("cls", [SPPO, SA2C])
def test_losses_that_are_not_finite_stop_training(cls):
    model = cls("MlpPolicy", NanRewards(spaces.MultiDiscrete([3, 3])), device="cpu", **small(cls))
    with pytest.raises(FloatingPointError, match="loss is nan after an update"):
        model.learn(64)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("cls", [SPPO, SA2C])
@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(reverse_loss="mae", advantage_transform="sign"),
        dict(advantage_flip_prob=0.3, advantage_transform="bins", normalize_advantage=True),
    ],
)
def test_algorithm_learns_saves_and_loads_on_every_discrete_space(cls, space, options, tmp_path):
    env = RandomEnv(SPACES[space])
    model = cls("MlpPolicy", env, seed=0, device="cpu", beta=2.0, z=-3.0, **options, **small(cls))
    model.set_logger(configure(None, []))
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.learn(64)
    assert any(not th.equal(before[name], value) for name, value in model.policy.state_dict().items())
    assert model.logger.name_to_value.keys() >= LOGGED
    assert all(np.isfinite(model.logger.name_to_value[key]) for key in LOGGED)
    model.save(tmp_path / "model")
    loaded = cls.load(tmp_path / "model", env=env, device="cpu")
    assert_same_parameters(model, loaded)
    for name in ("alpha", "beta", "z", "reverse_loss", "advantage_transform", "advantage_flip_prob"):
        assert getattr(loaded, name) == getattr(model, name)
    observation = env.observation_space.sample()
    assert np.array_equal(
        model.predict(observation, deterministic=True)[0], loaded.predict(observation, deterministic=True)[0]
    )
    loaded.learn(64, reset_num_timesteps=False)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
@pytest.mark.parametrize("space", SPACES)
def test_models_and_parameters_are_interchangeable_with_sb3(ours, theirs, space, tmp_path):
    env = RandomEnv(SPACES[space])
    for source, target in ((ours, theirs), (theirs, ours)):
        model = source("MlpPolicy", env, seed=0, device="cpu", **small(source)).learn(32)
        model.save(tmp_path / "model")
        assert_same_parameters(model, target.load(tmp_path / "model", env=env, device="cpu"))
        other = target("MlpPolicy", env, seed=1, device="cpu", **small(target))
        other.set_parameters(model.get_parameters())
        assert_same_parameters(model, other)
        other.learn(32)


@pytest.mark.parametrize("cls", [SPPO, SA2C])
def test_same_seed_gives_identical_results_with_flip_noise(cls):
    runs = [
        cls("MlpPolicy", "CartPole-v1", seed=seed, device="cpu", advantage_flip_prob=0.2, **small(cls)).learn(
            64
        )
        for seed in (0, 0, 1)
    ]
    assert_same_parameters(runs[0], runs[1])
    assert not th.equal(runs[0].policy.value_net.weight, runs[2].policy.value_net.weight)


@pytest.mark.parametrize("cls", [SPPO, SA2C])
def test_flip_noise_changes_the_expected_share_of_advantages(cls):
    kwargs = dict(n_steps=500, batch_size=100) if cls is SPPO else dict(n_steps=500)
    model = cls(
        "MlpPolicy",
        "CartPole-v1",
        seed=0,
        device="cpu",
        advantage_flip_prob=0.2,
        normalize_advantage=False,
        **kwargs,
    )
    model.set_logger(configure(None, []))
    model.learn(500)
    assert model.logger.name_to_value["train/advantage_sign_change"] == pytest.approx(20, abs=5)


@pytest.mark.parametrize("cls", [SPPO, SA2C])
def test_each_minibatch_takes_one_forward_pass_without_device_synchronization(cls, monkeypatch):
    kwargs = dict(n_steps=64, batch_size=8, n_epochs=3) if cls is SPPO else dict(n_steps=64)
    model = cls(
        "MlpPolicy",
        RandomEnv(SPACES["multidiscrete"]),
        seed=0,
        device="cpu",
        advantage_flip_prob=0.1,
        **kwargs,
    )
    model.set_logger(configure(None, []))
    model.learn(64)
    passes, reads, in_loop = [], [], []
    model.policy.mlp_extractor.register_forward_hook(lambda *_: passes.append(1))
    model.policy.action_net.register_forward_hook(lambda *_: passes.append(1))

    class Watch(th.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if "_local_scalar_dense" in str(func) or "nonzero" in str(func):
                reads.append(str(func))
            return func(*args, **(kwargs or {}))

    # The optimizer reads its step counters on the CPU, which does not synchronize the device
    step = model.policy.optimizer.step

    def step_unwatched():
        in_loop.append(len(reads))
        kept = len(reads)
        step()
        del reads[kept:]

    monkeypatch.setattr(model.policy.optimizer, "step", step_unwatched)
    with Watch():
        model.train()
    n_minibatches = 24 if cls is SPPO else 1
    assert len(passes) == 2 * n_minibatches
    assert in_loop == [0] * n_minibatches


@pytest.mark.parametrize("cls", [SPPO, SA2C])
def test_cnn_policy_trains_and_predicts(cls):
    env = FakeImageEnv(screen_height=40, screen_width=40, n_channels=1)
    model = cls("CnnPolicy", env, seed=0, device="cpu", **small(cls)).learn(32)
    model.predict(env.observation_space.sample())


@pytest.mark.parametrize("cls", [SPPO, SA2C])
@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (dict(z=0.0), "z=0.0"),
        (dict(z=1.0), "z=1.0"),
        (dict(z=float("-inf")), "z=-inf"),
        (dict(alpha=-0.1), "alpha=-0.1"),
        (dict(beta=-1.0), "beta=-1.0"),
        (dict(beta=float("nan")), "beta=nan"),
        (dict(reverse_loss="rcee"), "Did you mean rce"),
        (dict(advantage_transform="bin"), "Did you mean bins"),
        (dict(advantage_flip_prob=1.5), "advantage_flip_prob=1.5"),
    ],
)
def test_out_of_range_parameters_are_named_in_error(cls, wrong, named):
    with pytest.raises(UserError, match=named):
        cls("MlpPolicy", "CartPole-v1", **wrong)


@pytest.mark.parametrize("cls", [SPPO, SA2C])
def test_box_actions_require_discretization_unless_beta_is_0(cls):
    with pytest.raises(ValueError, match="DiscretizeAction"):
        cls("MlpPolicy", "Pendulum-v1")
    cls("MlpPolicy", "Pendulum-v1", beta=0.0, device="cpu", **small(cls)).learn(32)


WRONG = [dict(alpha=-3), dict(beta="1"), dict(z=0.0), dict(reverse_loss="rcee"), dict(advantage_flip_prob=2)]


@pytest.mark.parametrize("cls", [SPPO, SA2C])
@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_parameters_are_checked_at_load_learn_and_set_parameters(cls, wrong, tmp_path):
    model = cls("MlpPolicy", "CartPole-v1", device="cpu", **small(cls))
    model.save(tmp_path / "model")
    ((name, value),) = wrong.items()
    with pytest.raises(UserError, match=f"{name}="):
        cls.load(tmp_path / "model", **wrong)
    parameters = model.get_parameters()
    setattr(model, name, value)
    with pytest.raises(UserError, match=f"{name}="):
        model.learn(32)
    with pytest.raises(UserError, match=f"{name}="):
        model.set_parameters(parameters)


@pytest.mark.parametrize("cls", [SPPO, SA2C])
def test_box_actions_are_checked_when_a_model_is_loaded(cls, tmp_path):
    cls("MlpPolicy", "Pendulum-v1", beta=0.0, device="cpu", **small(cls)).save(tmp_path / "model")
    with pytest.raises(UserError, match="DiscretizeAction"):
        cls.load(tmp_path / "model", env=gym.make("Pendulum-v1"), beta=1)


def test_set_parameters_accepts_only_networks():
    model = SPPO("MlpPolicy", "CartPole-v1", device="cpu", **small(SPPO))
    with pytest.raises(UserError, match=r"'alpha' is not a network .* SPPO.load"):
        model.set_parameters({"alpha": -3}, exact_match=False)
    assert model.alpha == 0.5
    model.set_parameters({"policy": model.policy.state_dict()}, exact_match=False)


def test_optimizer_kwargs_are_merged_with_rmsprop_defaults():
    given = {"optimizer_kwargs": {"alpha": 0.9}}
    model = SA2C("MlpPolicy", "CartPole-v1", rms_prop_eps=1e-3, policy_kwargs=given, device="cpu")
    group = model.policy.optimizer.param_groups[0]
    assert type(model.policy.optimizer) is th.optim.RMSprop
    assert (group["alpha"], group["eps"]) == (0.9, 1e-3)
    assert given == {"optimizer_kwargs": {"alpha": 0.9}}
    for kwargs in ({}, dict(use_rms_prop=False), dict(policy_kwargs=dict(optimizer_class=th.optim.SGD))):
        ours, theirs = (
            cls("MlpPolicy", "CartPole-v1", device="cpu", **kwargs).policy.optimizer for cls in (SA2C, A2C)
        )
        assert type(ours) is type(theirs)
        assert ours.defaults == theirs.defaults


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        (dict(use_rms_prop=False), "use_rms_prop is False"),
        (dict(policy_kwargs={"optimizer_class": th.optim.SGD}), "names an optimizer_class"),
        (dict(policy_kwargs={"optimizer_kwargs": {"eps": 1e-4}}), "has eps=0.0001"),
    ],
    ids=["adam", "class", "eps"],
)
def test_rms_prop_eps_without_effect_is_rejected(kwargs, reason):
    with pytest.raises(UserError, match=f"rms_prop_eps=0.001 has no effect, .*{reason}"):
        SA2C("MlpPolicy", "CartPole-v1", rms_prop_eps=1e-3, **kwargs)


def test_package_ships_type_information():
    import srl

    assert (Path(srl.__file__).parent / "py.typed").exists()
