"""Replay of updates recorded from the authors' SA2C and SPPO (release of 2024-05-25)."""

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv

from srl import SA2C, SPPO

GOLDEN = sorted((Path(__file__).parent / "data").glob("s*.npz"))
ALGORITHMS = {"sa2c": SA2C, "sppo": SPPO}


class BlankEnv(gym.Env):
    """Provides spaces for an algorithm; never stepped."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space):
        self.observation_space = observation_space
        self.action_space = action_space


def make_action_space(kind: str, size: Any) -> spaces.Space:
    return getattr(spaces, kind)(size)


def replay(path: Path) -> tuple[dict[str, Any], Any, Any]:
    """Run the recorded update.

    :return: description of the record, the record, and the model after the update
    """
    record = np.load(path, allow_pickle=False)
    meta = json.loads(str(record["meta"]))
    observation_space = spaces.Box(-np.inf, np.inf, (meta["obs_dim"],), dtype=np.float32)
    taken = ["n_steps", "ent_coef", "vf_coef", "learning_rate", "max_grad_norm", "alpha", "beta", "z"]
    taken += ["reverse_loss", "advantage_transform", "normalize_advantage"]
    if meta["algo"] == "sppo":
        taken += ["batch_size", "n_epochs", "clip_range"]
    action_space = make_action_space(*meta["action_space"])
    env = DummyVecEnv([lambda: BlankEnv(observation_space, action_space) for _ in range(meta["n_envs"])])
    model = ALGORITHMS[meta["algo"]](
        "MlpPolicy",
        env,
        policy_kwargs=dict(net_arch=meta["net_arch"], optimizer_class=th.optim.SGD),
        device="cpu",
        **({"use_rms_prop": False} if meta["algo"] == "sa2c" else {}),
        **{name: meta[name] for name in taken},
    )
    model.set_logger(configure(None, []))
    model.policy.load_state_dict(
        {
            key.removeprefix("before/"): th.as_tensor(record[key])
            for key in record
            if key.startswith("before/")
        }
    )
    buffer = model.rollout_buffer
    for step in range(meta["n_steps"]):
        buffer.add(
            record["rollout/observations"][step],
            record["rollout/actions"][step],
            record["rollout/rewards"][step],
            record["rollout/episode_starts"][step],
            th.as_tensor(record["rollout/values"][step]),
            th.as_tensor(record["rollout/log_probs"][step]),
        )
    buffer.compute_returns_and_advantage(
        last_values=th.zeros(meta["n_envs"]), dones=np.zeros(meta["n_envs"], dtype=bool)
    )
    np.random.seed(meta["seed"])
    model.train()
    return meta, record, model


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_update_matches_recorded_update_of_the_authors(path):
    meta, record, model = replay(path)

    after = model.policy.state_dict()
    names = [key.removeprefix("after/") for key in record if key.startswith("after/")]
    assert set(names) == set(after)
    change = max(np.abs(record[f"after/{name}"] - record[f"before/{name}"]).max() for name in names)
    error = max(np.abs(record[f"after/{name}"] - after[name].numpy()).max() for name in names)
    assert change > 0
    assert error <= 1e-4 * change
    logged = model.logger.name_to_value
    assert logged["train/advantage_sign_change"] == pytest.approx(meta["sign_change_percent"], abs=1e-4)
    assert logged["train/advantage_abs_max"] == pytest.approx(meta["max_abs_advantage"], rel=1e-5)


def test_all_records_are_found():
    assert len(GOLDEN) == 14
