"""Spaces with a nonzero start, unsupported spaces, and array rewards."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from srl import SA2C, SPPO
from srl.errors import UserError
from srl.spaces import check_supported
from tests.envs.unusual_spaces import ENVIRONMENTS
from tests.test_algorithms import assert_same_parameters, small

STARTS = ["DiscreteStart", "DialsStart", "EqualDialsStart", "RoomStart", "RoomsStart", "DictStart"]


def policy_of(env):
    return "MultiInputPolicy" if isinstance(env.observation_space, spaces.Dict) else "MlpPolicy"


def shifted(space):
    """Return the same space with start 0."""
    if isinstance(space, spaces.Dict):
        return spaces.Dict({key: shifted(part) for key, part in space.items()})
    if isinstance(space, spaces.Discrete):
        return spaces.Discrete(space.n)
    return spaces.MultiDiscrete(space.nvec) if isinstance(space, spaces.MultiDiscrete) else space


@pytest.mark.parametrize("cls", [SPPO, SA2C])
@pytest.mark.parametrize("name", STARTS)
def test_training_is_identical_to_training_on_spaces_that_start_at_0(name, cls):
    """The environment checks that actions are in its action space."""
    env = ENVIRONMENTS[name]()
    plain = ENVIRONMENTS[name]()
    plain.observation_space, plain.action_space = map(shifted, (env.observation_space, env.action_space))
    models = [
        cls(policy_of(env), each, seed=0, device="cpu", **small(cls)).learn(96) for each in (env, plain)
    ]
    assert_same_parameters(*models)


@pytest.mark.parametrize("name", STARTS)
def test_predicted_actions_are_in_the_action_space(name, tmp_path):
    env = ENVIRONMENTS[name]()
    model = SPPO(policy_of(env), env, seed=0, device="cpu", **small(SPPO)).learn(32)
    assert (model.observation_space, model.action_space) == (env.observation_space, env.action_space)
    model.save(tmp_path / "model")
    for loaded in (model, SPPO.load(tmp_path / "model"), SPPO.load(tmp_path / "model", env=env)):
        observation, _ = env.reset(seed=1)
        for deterministic in (False, True):
            action, _ = loaded.predict(observation, deterministic=deterministic)
            assert env.action_space.contains(action)
        evaluate_policy(loaded, env, n_eval_episodes=2, deterministic=False, warn=False)
    venv = make_vec_env(ENVIRONMENTS[name], n_envs=2)
    assert all(map(env.action_space.contains, model.predict(venv.reset())[0]))
    loaded.learn(32)


@pytest.mark.parametrize("name", ["DialsStart", "DictStart"])
def test_nonzero_starts_work_with_normalization_and_eval_callback(name):
    def make(**options):
        keys = {"norm_obs_keys": ["place"]} if name == "DictStart" else {}
        return VecNormalize(make_vec_env(ENVIRONMENTS[name], n_envs=2), **keys, **options)

    callback = EvalCallback(
        make(training=False, norm_reward=False), eval_freq=16, n_eval_episodes=2, verbose=0
    )
    env = make()
    SPPO(policy_of(env), env, seed=0, device="cpu", **small(SPPO)).learn(96, callback)
    assert callback.best_mean_reward > -np.inf


@pytest.mark.slow
def test_nonzero_starts_work_with_subproc_environments():
    env = SubprocVecEnv([ENVIRONMENTS["DialsStart"]] * 2)
    try:
        SA2C("MlpPolicy", env, seed=0, device="cpu").learn(40)
    finally:
        env.close()


def test_sampled_actions_with_nonzero_start_follow_the_policy():
    env = ENVIRONMENTS["DialsStart"]()
    model = SPPO("MlpPolicy", env, seed=0, device="cpu", **small(SPPO))
    actions = model.predict(np.zeros((5_000, 3), np.float32))[0] - env.action_space.start
    # An untrained policy is nearly uniform
    for dimension, size in enumerate(env.action_space.nvec):
        shares = np.bincount(actions[:, dimension], minlength=size) / len(actions)
        assert np.abs(shares - 1 / size).max() < 0.05


def test_sb3_policy_is_rejected_for_spaces_with_nonzero_start():
    with pytest.raises(UserError, match=r"ActorCriticPolicy counts .* srl\.policies"):
        SPPO(ActorCriticPolicy, ENVIRONMENTS["DiscreteStart"]())
    SPPO(ActorCriticPolicy, "CartPole-v1", device="cpu", **small(SPPO)).learn(32)


UNSUPPORTED = {
    "UnboundedAction": "finite low and high",
    "Tuple": "FlattenObservation",
    "Nested": "'inner' .*FlattenObservation",
    "Text": "Use Box, Discrete, MultiDiscrete",
    "Rooms2D": "must have one dimension. .*FlattenObservation",
    "Switches2D": r"Use MultiBinary\(6\)",
    "Dials2D": r"Use MultiDiscrete\(nvec.ravel\(\)\)",
    "FarStart": "Use a smaller start",
}


@pytest.mark.parametrize("cls", [SPPO, SA2C])
@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_space_error_names_the_fix(name, cls):
    env = ENVIRONMENTS[name]()
    with pytest.raises(UserError, match=UNSUPPORTED[name]) as error:
        cls(policy_of(env), env, beta=0.0)
    assert "\n" not in str(error.value)


def test_unsupported_space_of_a_vectorized_environment_is_rejected():
    with pytest.raises(UserError, match="FlattenObservation"):
        SPPO("MlpPolicy", DummyVecEnv([ENVIRONMENTS["Tuple"]]))


def test_flattened_tuple_space_is_supported():
    env = gym.wrappers.FlattenObservation(ENVIRONMENTS["Tuple"]())
    SPPO("MlpPolicy", env, device="cpu", **small(SPPO)).learn(32)


def test_box_observations_without_dimensions_are_rejected_and_supported_flat():
    space = spaces.Box(-1.0, 1.0, (), np.float32)
    for observations in (space, spaces.Dict(a=space)):
        with pytest.raises(UserError, match=r"at least one dimension\. .*FlattenObservation"):
            check_supported(observations, spaces.Discrete(2))
    check_supported(spaces.flatten_space(space), spaces.Discrete(2))


def test_two_dimensional_multibinary_observations_are_supported():
    check_supported(spaces.MultiBinary([2, 3]), spaces.Discrete(2))


@pytest.mark.parametrize("cls", [SPPO, SA2C])
def test_small_images_are_rejected_with_the_minimum_size(cls):
    with pytest.raises(UserError, match="at least 36 x 36"):
        cls("CnnPolicy", ENVIRONMENTS["TinyImage"]())
    with pytest.raises(UserError, match="channels first"):
        cls("CnnPolicy", ENVIRONMENTS["FloatImageLast"](), policy_kwargs={"normalize_images": False})


def test_squashed_actions_require_gsde():
    with pytest.raises(UserError, match="use_sde=True"):
        SPPO("MlpPolicy", "Pendulum-v1", beta=0.0, policy_kwargs={"squash_output": True})


@pytest.mark.slow
@pytest.mark.parametrize("make", ["raw", "monitored", "in_processes"])
def test_array_reward_is_named_in_error(make):
    """Monitor, DummyVecEnv and the rollout buffer of SB3 fail at different places."""
    env = {
        "raw": lambda: DummyVecEnv([ENVIRONMENTS["ArrayReward"]] * 2),
        "monitored": ENVIRONMENTS["ArrayReward"],
        "in_processes": lambda: SubprocVecEnv([ENVIRONMENTS["ArrayReward"]] * 2),
    }[make]()
    try:
        with pytest.raises(UserError, match=r"reward .* is an array.*float\(reward\)"):
            SPPO("MlpPolicy", env, device="cpu", **small(SPPO)).learn(32)
    finally:
        env.close()


@pytest.mark.parametrize(
    "error", [TypeError("a bug"), ValueError("setting an array element with a sequence.")]
)
def test_other_errors_of_an_environment_pass_unchanged(error):
    class Broken(ENVIRONMENTS["IntegerReward"]):
        def reward(self, action):
            raise error

    with pytest.raises(type(error)) as raised:
        SPPO("MlpPolicy", Broken(), device="cpu", **small(SPPO)).learn(32)
    assert raised.value is error
