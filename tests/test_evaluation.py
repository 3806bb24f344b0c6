"""SB3's EvalCallback with reward noise in the training environment."""

import warnings

import numpy as np
import pytest
from stable_baselines3.common.callbacks import CallbackList, EvalCallback, EveryNTimesteps
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnvWrapper, VecNormalize

from srl import SPPO
from srl.envs import VecRewardNoise
from srl.evaluation import TrainingOnlyWrapper, match_wrappers

NOISE = "gaussian:10"


def games(n_envs=2):
    return make_vec_env("CartPole-v1", n_envs=n_envs, seed=0)


TRAINING = {
    "noise outside": lambda: VecRewardNoise(VecNormalize(games()), NOISE, 0),
    "noise inside": lambda: VecNormalize(VecRewardNoise(games(), NOISE, 0)),
    "noise twice": lambda: VecRewardNoise(VecNormalize(VecRewardNoise(games(), NOISE, 0)), NOISE, 1),
    "no noise": lambda: VecNormalize(games()),
}


def nested(callback):
    return CallbackList([EveryNTimesteps(1, callback)])


@pytest.mark.parametrize("wrap", [lambda callback: callback, lambda callback: [callback], nested])
@pytest.mark.parametrize("training", TRAINING)
def test_noise_free_evaluation_uses_statistics_of_training(training, wrap):
    eval_env = VecNormalize(games(1), training=False, norm_reward=False)
    # The last evaluation is at the last step
    callback = EvalCallback(eval_env, n_eval_episodes=2, eval_freq=32, verbose=0)
    model = SPPO("MlpPolicy", TRAINING[training](), n_steps=32, batch_size=64, n_epochs=1, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            model.learn(64, wrap(callback))
    statistics = model.get_vec_normalize_env()
    assert np.array_equal(eval_env.obs_rms.mean, statistics.obs_rms.mean)
    assert eval_env.obs_rms.count == statistics.obs_rms.count
    # Without noise, returns are numbers of steps
    assert callback.last_mean_reward == int(2 * callback.last_mean_reward) / 2


def layers(venv):
    names = [type(venv).__name__]
    while isinstance(venv, VecEnvWrapper):
        venv = venv.venv
        names.append(type(venv).__name__)
    return names


def test_placeholders_are_removed_for_training_without_noise():
    eval_env = match_wrappers(VecNormalize(games(1)), TRAINING["noise outside"]())
    assert layers(eval_env)[0] == TrainingOnlyWrapper.__name__
    assert layers(match_wrappers(eval_env, TRAINING["no noise"]())) == ["VecNormalize", "DummyVecEnv"]


def test_wrappers_are_matched_once():
    training = TRAINING["noise twice"]()
    eval_env = VecNormalize(games(1))
    matched = match_wrappers(match_wrappers(eval_env, training), training)
    name = TrainingOnlyWrapper.__name__
    assert layers(matched) == [name, "VecNormalize", name, "DummyVecEnv"]
    assert match_wrappers(games(1), games()).num_envs == 1
