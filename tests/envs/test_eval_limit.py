"""Truncation of evaluation episodes by ``eval_max_episode_steps``."""

import numpy as np
import pytest

from srl.envs.make import eval_episode_limit, make_eval_env, make_train_env
from srl.envs.spec import EnvSpec
from srl.errors import UserError
from tests.envs.unusual_envs import UNUSUAL


def play(venv, n_steps):
    """Play random actions; return rollout arrays, and environment, step and info of episode ends."""
    generator = np.random.default_rng(0)
    seen, ends = [venv.reset().copy()], []
    for step in range(1, n_steps + 1):
        actions = np.array([venv.action_space.sample() for _ in range(venv.num_envs)])
        if venv.action_space.shape == ():
            actions = generator.integers(venv.action_space.n, size=venv.num_envs)
        observations, rewards, dones, infos = venv.step(actions)
        seen += [observations.copy(), rewards.copy()]
        ends += [(index, step, infos[index]) for index in np.flatnonzero(dones).tolist()]
    venv.close()
    return seen, ends


@pytest.mark.parametrize(
    ("env", "limit", "expected"),
    [
        ("CartPole-v1", 499, 499),
        ("CartPole-v1", 500, None),
        ("CartPole-v1", 50_000, None),
        (f"{UNUSUAL}NeverEnds-v0", 50_000, 50_000),
        ("PongNoFrameskip-v4", 50_000, None),
        ("ALE/Pong-v5", 1_000, 4_000),
        ("CartPole-v1", None, None),
    ],
)
def test_limit_applies_if_below_the_environments_own_limit(env, limit, expected):
    assert eval_episode_limit(EnvSpec(env, seed=0, eval_max_episode_steps=limit)) == expected


def test_max_episode_steps_of_gym_make_counts_as_the_environments_limit():
    for steps, expected in ((20, None), (40, 30), (-1, 30)):
        kwargs = {"max_episode_steps": steps}
        spec = EnvSpec("CartPole-v1", seed=0, env_kwargs=kwargs, eval_max_episode_steps=30)
        assert eval_episode_limit(spec) == expected


def test_evaluation_is_truncated_but_training_is_not():
    spec = EnvSpec(f"{UNUSUAL}NeverEnds-v0", seed=3, eval_max_episode_steps=8)
    _, ends = play(make_eval_env(spec, 2), 17)
    assert [(index, step) for index, step, _ in ends] == [(0, 8), (1, 8), (0, 16), (1, 16)]
    for _, _, info in ends:
        assert info["TimeLimit.truncated"]
        assert (info["episode"]["r"], info["episode"]["l"]) == (8.0, 8)
    assert play(make_train_env(spec), 17)[1] == []


def test_unreached_limit_does_not_change_observations_or_infos():
    played = []
    for limit in (None, 21):
        spec = EnvSpec(f"{UNUSUAL}Success-v0", seed=3, eval_max_episode_steps=limit)
        seen, ends = play(make_eval_env(spec, 2), 40)
        for _, _, info in ends:
            del info["episode"]["t"], info["terminal_observation"]
        played.append(([array.tobytes() for array in seen], ends))
    assert played[0] == played[1]


@pytest.mark.parametrize("backend", ["gymnasium", "native"])
def test_atari_game_with_lives_is_truncated_and_restarted(backend):
    spec = EnvSpec("BreakoutNoFrameskip-v4", seed=3, backend=backend, eval_max_episode_steps=60)
    limit = eval_episode_limit(spec)
    _, ends = play(make_eval_env(spec, 1), 200)
    games = [(step, info) for _, step, info in ends if "episode" in info]
    assert len(games) >= 3
    assert len(ends) > len(games)  # lost lives end an episode without restarting the count
    for _, info in games:
        assert info["TimeLimit.truncated"]
        assert limit <= info["episode"]["l"] < limit + 40
    # Gymnasium also counts frames without an agent action: no-ops, and FIRE after lost lives
    lengths = np.diff([0, *(step for step, _ in games)])
    assert np.all(lengths <= 60)
    assert np.all(lengths >= 40)


@pytest.mark.parametrize("limit", [0, -1, 2.5, True])
def test_non_positive_or_non_integer_limit_is_rejected(limit):
    with pytest.raises(UserError, match="eval_max_episode_steps"):
        EnvSpec("CartPole-v1", seed=0, eval_max_episode_steps=limit)
