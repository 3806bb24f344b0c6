"""Restoring the state of environments in newly created environments."""

import tracemalloc
from functools import partial
from itertools import product

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import NormalizeReward, TimeLimit
from stable_baselines3.common.monitor import Monitor

from srl.envs import RewardNoise, replay
from srl.envs.make import make_eval_env, make_train_env
from srl.envs.replay import NotRestorable, Replayable
from srl.envs.spec import EnvSpec
from srl.envs.state import env_state, restore_env
from tests.envs.unusual_envs import Base, LegacyRandom, NeverEnds, PythonRandom

KINDS = {
    "HalfCheetah": EnvSpec("HalfCheetah-v4", seed=7, n_envs=2, bins=11, normalize={}, noise="gaussian:0.1"),
    "InvertedDoublePendulum": EnvSpec("InvertedDoublePendulum-v4", seed=7, bins=5, normalize={}),
    "LunarLander": EnvSpec("LunarLander-v3", seed=7, n_envs=2),
    "LunarLanderContinuous": EnvSpec("LunarLanderContinuous-v3", seed=7, n_envs=2, bins=5),
    "BipedalWalker": EnvSpec("BipedalWalker-v3", seed=7, bins=5, normalize={"norm_obs": False}),
    "Pong": EnvSpec("PongNoFrameskip-v4", seed=7, n_envs=2, frame_stack=4, noise="flip:0.1"),
    "game with lives": EnvSpec("WizardOfWorNoFrameskip-v4", seed=7, frame_stack=4),
    "sticky actions": EnvSpec("ALE/Breakout-v5", seed=7, frame_stack=4),
    "MinAtar": EnvSpec("MinAtar/SpaceInvaders-v1", seed=7, n_envs=2),
    "CartPole": EnvSpec("CartPole-v1", seed=7, n_envs=3),
}


def play(venv, generator, n_steps):
    """Return all results of random actions, with observations and rewards as bytes."""
    seen = []
    for _ in range(n_steps):
        actions = np.array([draw(venv.action_space, generator) for _ in range(venv.num_envs)])
        observations, rewards, dones, _ = venv.step(actions)
        seen.append((observations.tobytes(), rewards.tobytes(), dones.tobytes()))
    return seen


def draw(space, generator):
    sizes = space.nvec if isinstance(space, gym.spaces.MultiDiscrete) else space.n
    return generator.integers(sizes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "n_steps"),
    [*((kind, 1100) for kind in KINDS), *product(("HalfCheetah", "Pong", "CartPole"), (0, 37))],
)
def test_restored_environment_continues_bitwise_identically(kind, n_steps):
    first, second = make_train_env(KINDS[kind]), make_train_env(KINDS[kind])
    first.reset()
    play(first, np.random.default_rng(1), n_steps)
    state = env_state(first)
    second.reset()
    play(second, np.random.default_rng(2), 5)
    restore_env(second, state)
    again = env_state(second)
    assert play(second, np.random.default_rng(3), 200) == play(first, np.random.default_rng(3), 200)
    # A restored environment can be saved and restored again
    third = make_train_env(KINDS[kind])
    third.reset()
    restore_env(third, again)
    fourth = make_train_env(KINDS[kind])
    fourth.reset()
    restore_env(fourth, state)
    assert play(third, np.random.default_rng(3), 50) == play(fourth, np.random.default_rng(3), 50)


def test_walker_continues_bitwise_identically_after_many_episodes():
    spec = KINDS["BipedalWalker"]
    first, second = make_train_env(spec), make_train_env(spec)
    first.reset()
    play(first, np.random.default_rng(1), 4000)
    second.reset()
    restore_env(second, env_state(first))
    assert play(second, np.random.default_rng(3), 500) == play(first, np.random.default_rng(3), 500)


@pytest.mark.slow
def test_evaluation_environments_are_restored_within_a_game():
    spec = KINDS["game with lives"]
    first, second = make_eval_env(spec, 2), make_eval_env(spec, 2)
    first.reset()
    play(first, np.random.default_rng(1), 900)
    second.reset()
    restore_env(second, env_state(first))
    # A reset after a lost life continues the game
    assert first.reset().tobytes() == second.reset().tobytes()
    assert play(second, np.random.default_rng(3), 100) == play(first, np.random.default_rng(3), 100)


def test_replay_does_not_write_episodes_to_monitor(tmp_path):
    spec = KINDS["CartPole"]
    first = make_train_env(spec)
    first.reset()
    play(first, np.random.default_rng(1), 500)
    second = make_train_env(spec, monitor_dir=str(tmp_path))
    second.reset()
    before = {file: file.read_text() for file in tmp_path.iterdir()}
    restore_env(second, env_state(first))
    assert {file: file.read_text() for file in tmp_path.iterdir()} == before


class Lives(gym.Wrapper):
    """Ends an episode every 8 steps; only after the environment's own end does its reset start a new one."""

    def reset(self, **kwargs):
        self.n_steps = 0
        if getattr(self, "is_over", True):
            return self.env.reset(**kwargs)
        observation, _, _, _, info = self.env.step(0)
        return observation, info

    def step(self, action):
        self.n_steps += 1
        observation, reward, self.is_over, truncated, info = self.env.step(action)
        return observation, 10 * reward, self.is_over or self.n_steps == 8, truncated, info


class WithoutInfos(gym.Wrapper):
    def step(self, action):
        return (*self.env.step(action)[:4], {})


def episodes(wrapper, folder, n_episodes):
    """Return the reported return and length at each end of an episode, and the rows of Monitor's file."""
    env = Replayable(wrapper(Monitor(Base(), str(folder))))
    ends = []
    for _ in range(n_episodes):
        env.reset()
        done = False
        while not done:
            _, _, terminated, truncated, info = env.step(0)
            done = terminated or truncated
        ends.append(info)
    env.reset()
    reported = [(info["episode"]["r"], info["episode"]["l"]) if "episode" in info else None for info in ends]
    rows = np.loadtxt(folder / "monitor.csv", delimiter=",", skiprows=2, ndmin=2)
    return reported, [(row[0], row[1]) for row in rows]


@pytest.mark.parametrize(
    ("wrapper", "expected"),
    [
        (partial(TimeLimit, max_episode_steps=8), [(8, 8)] * 4),
        (partial(TimeLimit, max_episode_steps=30), [(20, 20)] * 4),
        (WithoutInfos, [(20, 20)] * 4),
        (Lives, [None, None, (20, 20), None]),
    ],
)
def test_each_whole_episode_is_reported_once(wrapper, expected, tmp_path):
    reported, rows = episodes(wrapper, tmp_path, 4)
    assert reported == expected
    assert rows == [episode for episode in expected if episode is not None]


class Elsewhere(gym.Env):
    """Draws from a generator that the replay cannot see."""

    observation_space = gym.spaces.Box(-1, 1, (1,))
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.random.default_rng().random(1).astype(np.float32), {}

    def step(self, action):
        return np.random.default_rng().random(1).astype(np.float32), 0.0, False, False, {}


def test_environment_with_hidden_generator_is_detected():
    first, second = Replayable(Elsewhere()), Replayable(Elsewhere())
    first.reset(seed=0)
    first.step(0)
    second.reset(seed=0)
    with pytest.raises(NotRestorable, match="something besides the actions and np_random"):
        second.replay(first.history())


@pytest.mark.parametrize("wrapper", [partial(RewardNoise, noise="flip:0.5"), NormalizeReward])
def test_wrapper_with_hidden_state_that_changes_only_rewards_is_detected(wrapper):
    first, second = (Replayable(wrapper(gym.make("CartPole-v1"))) for _ in range(2))
    for seed in (0, None):  # the state remains from one episode to the next
        first.reset(seed=seed)
        for step in range(9):
            first.step(step % 2)
    second.reset(seed=0)
    with pytest.raises(NotRestorable, match=r"observation and rewards.*something besides the actions"):
        second.replay(first.history())


def test_history_without_rewards_of_an_earlier_version_is_replayed():
    first, second = Replayable(gym.make("CartPole-v1")), Replayable(gym.make("CartPole-v1"))
    first.reset(seed=0)
    first.step(0)
    history = first.history()
    del history["rewards"]
    second.replay(history)
    assert np.array_equal(first.step(1)[0], second.step(1)[0])


def test_step_record_is_small_and_bounded(monkeypatch):
    monkeypatch.setattr(replay, "MAX_RECORDED_STEPS", 20_000)
    env = Replayable(NeverEnds())
    env.reset(seed=0)
    actions = np.zeros(1_000, int)

    def growth(n_steps):
        """Return the bytes of memory that ``n_steps`` steps allocate."""
        tracemalloc.start()
        for _ in range(n_steps // len(actions)):
            for action in actions:
                env.step(action)
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return size

    assert growth(20_000) < 20 * 20_000
    assert len(env.history()["actions"]) == 20_000
    assert growth(10_000) < 10_000
    with pytest.raises(NotRestorable, match="longer than 20,000 steps"):
        env.history()
    env.reset()
    assert len(env.history()["actions"]) == 0


def test_restoring_another_kind_of_generator_is_rejected():
    first, second = Replayable(LegacyRandom()), Replayable(PythonRandom())
    first.reset()
    second.reset()
    with pytest.raises(NotRestorable, match="np_random is a Random, where a RandomState was recorded"):
        second.replay(first.history())


def test_native_environments_cannot_be_restored():
    venv = make_train_env(EnvSpec("PongNoFrameskip-v4", seed=7, backend="native", frame_stack=4))
    venv.reset()
    with pytest.raises(NotRestorable, match="does not expose the state of its environments"):
        env_state(venv)
