"""Tests on a GPU; skipped without CUDA."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.logger import configure

from srl import SA2C, SPPO
from srl.cli import main
from tests.test_algorithms import LOGGED, RandomEnv, small

pytestmark = pytest.mark.skipif(not th.cuda.is_available(), reason="no CUDA device here")


@pytest.mark.parametrize("cls", [SPPO, SA2C])
@pytest.mark.parametrize("space", [spaces.Discrete(3), spaces.MultiDiscrete([2, 5]), spaces.MultiBinary(3)])
def test_model_trained_on_gpu_continues_on_cpu(cls, space, tmp_path):
    env = RandomEnv(space)
    model = cls("MlpPolicy", env, seed=0, device="cuda", advantage_flip_prob=0.1, **small(cls))
    model.set_logger(configure(None, []))
    model.learn(64)
    assert all(np.isfinite(model.logger.name_to_value[key]) for key in LOGGED)
    model.save(tmp_path / "model")
    loaded = cls.load(tmp_path / "model", env=env, device="cpu")
    for name, value in model.policy.state_dict().items():
        assert th.equal(value.cpu(), loaded.policy.state_dict()[name])
    loaded.learn(64)


@pytest.mark.parametrize("cls", [SPPO, SA2C])
def test_cnn_policy_trains_on_gpu(cls):
    env = FakeImageEnv(screen_height=40, screen_width=40, n_channels=1)
    cls("CnnPolicy", env, seed=0, device="cuda", **small(cls)).learn(64)


@pytest.mark.slow
@pytest.mark.parametrize("cls", [SPPO, SA2C])
def test_compiled_update_on_gpu_matches_uncompiled_up_to_rounding(cls):
    trained = []
    for compile_update in (False, True):
        model = cls("MlpPolicy", RandomEnv(spaces.Discrete(3)), seed=0, device="cuda", **small(cls))
        model.compile_update = compile_update
        model.set_logger(configure(None, []))
        model.learn(32)
        assert model.not_compiled is None
        trained.append(th.cat([parameter.detach().flatten() for parameter in model.policy.parameters()]))
    th.testing.assert_close(*trained, rtol=1e-4, atol=1e-5)


def test_run_and_sweep_train_on_gpu(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick = ["--timesteps", "64", "--device", "cuda", "--hyperparams", "n_steps=32", "n_envs=1"]
    with pytest.raises(SystemExit) as ended:
        main(["train", "--algo", "sppo", "--env", "CartPole-v1", "--out", str(tmp_path / "run"), *quick])
    assert ended.value.code == 0
    with pytest.raises(SystemExit) as ended:
        main(["sweep", "discrete_srl", "--envs", "CartPole-v1", "--noise", "none", "--seeds", "0:2", *quick])
    assert ended.value.code == 0
