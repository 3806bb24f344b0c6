"""Comparison of native environments with Gymnasium's, step by step from the same start if possible."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import A2C
from stable_baselines3.common.atari_wrappers import ClipRewardEnv, MaxAndSkipEnv, WarpFrame
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor, load_results
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecEnv,
    VecFrameStack,
    VecTransposeImage,
)

from srl.envs.make import check_env, make_eval_env, make_train_env
from srl.envs.native_atari import AtariNativeVecEnv
from srl.envs.spec import EnvSpec
from srl.errors import UserError
from srl.training.check import check_run
from tests.small_runs import small_spec

pytestmark = pytest.mark.filterwarnings("ignore:.*is out of date:DeprecationWarning")

Step = tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]


def native(env_id: str, n_envs: int = 2, seed: int = 0, **changes: Any) -> VecEnv:
    return make_train_env(EnvSpec(env_id, seed=seed, n_envs=n_envs, backend="native", **changes))


def play(venv: VecEnv, n_steps: int, seed: int = 0) -> list[Step]:
    """Step with sampled actions that depend only on the seed and the number of environments."""
    venv.action_space.seed(seed)
    return [
        venv.step(np.array([venv.action_space.sample() for _ in range(venv.num_envs)]))
        for _ in range(n_steps)
    ]


def same(first: list[Step], second: list[Step]) -> bool:
    """Return whether two histories are bitwise identical, ignoring times in infos."""
    for one, other in zip(first, second, strict=True):
        if any((a != b).any() for a, b in zip(one[:3], other[:3], strict=True)):
            return False
        for info, other_info in zip(one[3], other[3], strict=True):
            if episode(info) != episode(other_info):
                return False
    return True


def episode(info: dict[str, Any]) -> tuple[float, int] | None:
    return (info["episode"]["r"], info["episode"]["l"]) if "episode" in info else None


# ------------------------------------------------------------------------------------------------ Atari


class Start(gym.Wrapper):
    """Starts games like ale-py: FIRE is one of the frames before the first action. Limits frames."""

    def __init__(self, env: gym.Env[Any, Any], frames: list[int], max_frames: int) -> None:
        super().__init__(env)
        self.frames = frames
        self.max_frames = max_frames

    def reset(self, **options: Any) -> Any:
        outcome = self.env.reset(**options)
        has_fire = "FIRE" in self.env.unwrapped.get_action_meanings()
        self.n_before = self.frames.pop(0)
        for frame in range(self.n_before):
            observation, *_, info = self.env.step(int(has_fire and frame == 0))
            outcome = observation, info
        self.left = self.max_frames
        return outcome

    def step(self, action: Any) -> Any:
        observation, reward, over, truncated, info = self.env.step(action)
        self.left -= 1
        info["n_before"] = self.n_before
        return observation, reward, over, truncated or self.left == 0, info


class LifeEnds(gym.Wrapper):
    """Ends episodes like SB3's EpisodicLifeEnv but continues without an extra step."""

    def reset(self, **options: Any) -> Any:
        if getattr(self, "lost", False):
            self.lost = False
            return self.last, {}
        outcome = self.env.reset(**options)
        self.lives = self.env.unwrapped.ale.lives()
        return outcome

    def step(self, action: Any) -> Any:
        self.last, reward, over, truncated, info = self.env.step(action)
        lives = self.env.unwrapped.ale.lives()
        self.lost = 0 < lives < self.lives and not (over or truncated)
        self.lives = lives
        return self.last, reward, over or self.lost, truncated, info


def atari_pair(
    game: str, n_envs: int, seed: int, max_frames: int = 108_000
) -> tuple[AtariNativeVecEnv, VecEnv]:
    """Return a native environment and SB3's wrappers, whose games start with the same numbers of frames.

    Reset and step the native environment first.
    """
    env_id = f"{game}NoFrameskip-v4"
    venv = AtariNativeVecEnv(env_id, n_envs, 4, n_threads=2, max_frames=max_frames)
    venv.seed(seed)
    frames: list[list[int]] = [[] for _ in range(n_envs)]

    class Recorder:
        """Wraps the emulator and records the number of frames before the first action of each game."""

        def __init__(self, emulator: Any) -> None:
            self.emulator = emulator
            self.send = emulator.send

        def reset(self, *arguments: Any) -> Any:
            screens, info = self.emulator.reset(*arguments)
            for known, number in zip(frames, info["episode_frame_number"], strict=True):
                known.append(int(number))
            return screens, info

        def recv(self) -> Any:
            *outcome, over, truncated, info = self.emulator.recv()
            for index in np.flatnonzero(over | truncated):
                frames[index].append(int(info["episode_frame_number"][index]))
            return *outcome, over, truncated, info

    venv._emulator = Recorder(venv._emulator)

    def single(index: int) -> gym.Env[Any, Any]:
        env = Monitor(Start(gym.make(env_id), frames[index], max_frames))
        return ClipRewardEnv(WarpFrame(LifeEnds(MaxAndSkipEnv(env))))

    reference = DummyVecEnv([lambda index=index: single(index) for index in range(n_envs)])
    reference.seed(seed)
    return venv, VecTransposeImage(VecFrameStack(reference, 4))


#: Allowed share of pixels that differ from SB3 and allowed difference: frames are converted to grayscale
#: before the maximum of two frames is taken, in the opposite order to SB3.
PIXELS = {
    "Pong": (0.001, 16),
    "Breakout": (0, 0),
    "SpaceInvaders": (0.0001, 14),
    "MsPacman": (0.01, 48),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("game", "n_steps", "n_lives", "n_games", "max_frames"),
    [
        ("Pong", 1100, 0, 1, 108_000),
        ("Breakout", 500, 15, 4, 108_000),
        ("SpaceInvaders", 600, 4, 2, 108_000),
        ("MsPacman", 600, 4, 2, 108_000),
        # Neither limit is a multiple of the frame skip of 4
        ("Breakout", 300, 4, 6, 302),
        ("MsPacman", 300, 0, 6, 361),
    ],
)
def test_atari_game_matches_sb3_wrappers_from_the_same_start(game, n_steps, n_lives, n_games, max_frames):
    venv, reference = atari_pair(game, 2, seed=5, max_frames=max_frames)
    assert venv.observation_space == reference.observation_space
    assert venv.action_space == reference.action_space
    share, largest = PIXELS[game]
    different = 0.0
    previous = venv.reset()
    assert not previous[:, :3].any()
    assert np.abs(previous.astype(int) - reference.reset()).max() <= largest
    rng = np.random.default_rng(0)
    lives = games = truncations = 0
    for _ in range(n_steps):
        actions = rng.integers(0, venv.action_space.n, 2)
        observations, rewards, dones, infos = venv.step(actions)
        expected = reference.step(actions)
        assert (observations.dtype, rewards.dtype, dones.dtype) == (np.uint8, np.float32, bool)
        assert (rewards == expected[1]).all()
        assert (dones == expected[2]).all()
        difference = np.abs(observations.astype(int) - expected[0])
        assert difference.max() <= largest
        different += (difference[:, 3] > 0).mean() / n_steps
        for index, (info, other) in enumerate(zip(infos, expected[3], strict=True)):
            if not dones[index]:
                assert info == {}
                assert (observations[index, :3] == previous[index, 1:]).all()
                continue
            assert info["TimeLimit.truncated"] == other["TimeLimit.truncated"]
            assert not observations[index, :3].any()
            last = info["terminal_observation"]
            assert (last[:3] == previous[index, 1:]).all()
            difference = np.abs(last.astype(int) - other["terminal_observation"])
            assert difference[:3].max() <= largest
            assert ("episode" in info) == ("episode" in other)
            if "episode" in info:
                games += 1
                truncations += info["TimeLimit.truncated"]
                assert info["episode"]["r"] == other["episode"]["r"]
                assert info["episode"]["l"] == other["episode"]["l"] + other["n_before"]
                # If a game ends within a step, the two show different frames of it
                assert (difference[3] > 0).mean() < 0.3
            else:
                lives += 1
                assert (last[3] == observations[index, 3]).all()
                assert difference[3].max() <= largest
        previous = observations
    assert different <= share
    assert lives >= n_lives
    assert games >= n_games
    assert (truncations >= n_games) == (max_frames < 108_000)


@pytest.mark.slow
@pytest.mark.parametrize(("game", "fewest"), [("Breakout", 1), ("Freeway", 0)])
def test_atari_games_start_with_seeded_1_to_30_frames_including_fire(game, fewest):
    venv = AtariNativeVecEnv(f"{game}NoFrameskip-v4", 8, n_threads=2)

    def frames(seed: int) -> list[int]:
        draws = [venv._emulator.reset(np.arange(8), np.arange(seed, seed + 8))]
        draws += [venv._emulator.reset(np.arange(8), np.full(8, -1)) for _ in range(3)]
        return [int(number) for _, info in draws for number in info["episode_frame_number"]]

    first, again, other = frames(3), frames(3), frames(40)
    assert first == again
    assert first != other
    assert (min(first + other), max(first + other)) == (fewest, 30)
    assert len(set(first + other)) > 20


def test_atari_breakout_resumes_after_lost_life_only_if_agent_fires():
    venv = native("BreakoutNoFrameskip-v4", 1, frame_stack=4)
    venv.reset()
    # The FIRE action at the start launches the first ball
    dones = [venv.step(np.array([0]))[2][0] for _ in range(300)]
    assert sum(dones) == 1
    dones = [venv.step(np.array([int(step == 0)]))[2][0] for step in range(300)]
    assert sum(dones) == 1


def test_atari_seed_restarts_sequence_of_games_and_reset_continues_it():
    venv = native("BreakoutNoFrameskip-v4", 2, frame_stack=4)
    venv.seed(8)
    start = venv.reset().copy()
    history = play(venv, 120)
    further = venv.reset().copy()
    after = play(venv, 120)
    assert not further[:, :3].any()
    venv.seed(8)
    # Also between step_async and step_wait
    venv.step_async(np.zeros(2, dtype=int))
    assert (venv.reset() == start).all()
    assert same(play(venv, 120), history)
    assert (venv.reset() == further).all()
    assert same(play(venv, 120), after)
    assert not same(after, history)


@pytest.mark.slow
def test_atari_results_do_not_depend_on_number_of_threads():
    histories = []
    for n_threads in (1, 2, 5):
        venv = native("BreakoutNoFrameskip-v4", 5, seed=1, frame_stack=4, n_threads=n_threads)
        venv.reset()
        histories.append(play(venv, 120))
        venv.close()
    assert same(histories[0], histories[1])
    assert same(histories[0], histories[2])
    assert any(done.any() for _, _, done, _ in histories[0])


def test_atari_environments_step_concurrently():
    venvs = [native("PongNoFrameskip-v4", 2, seed=seed, frame_stack=4) for seed in (0, 2)]
    alone = native("PongNoFrameskip-v4", 2, seed=2, frame_stack=4)
    for venv in (*venvs, alone):
        venv.reset()
    actions = np.random.default_rng(0).integers(0, 6, (20, 2))
    for chosen in actions:
        for venv in venvs:
            venv.step_async(chosen)
        results = [venv.step_wait() for venv in reversed(venvs)]
        assert (results[0][0] == alone.step(chosen)[0]).all()


def test_atari_observations_are_not_overwritten():
    venv = native("PongNoFrameskip-v4", 2, frame_stack=4)
    given = [venv.reset(), *(step[0] for step in play(venv, 5))]
    copies = [array.copy() for array in given]
    play(venv, 5)
    assert all((array == copy).all() for array, copy in zip(given, copies, strict=True))


def test_atari_native_observations_are_not_stacked_or_transposed_twice():
    for frame_stack in (1, 4):
        spec = EnvSpec("PongNoFrameskip-v4", seed=0, frame_stack=frame_stack, backend="native")
        venv = make_train_env(spec)
        assert venv.observation_space.shape == (frame_stack, 84, 84)
        assert venv.action_space.n == 6


def test_atari_monitor_records_whole_games_with_raw_rewards_and_frames(tmp_path):
    spec = EnvSpec("BreakoutNoFrameskip-v4", seed=0, n_envs=2, frame_stack=4, backend="native")
    venv = make_train_env(spec, monitor_dir=str(tmp_path))
    venv.reset()
    infos = [info["episode"] for step in play(venv, 400) for info in step[3] if "episode" in info]
    venv.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.monitor.csv", "1.monitor.csv"]
    recorded = load_results(str(tmp_path))
    assert len(infos) >= 2
    written = zip(recorded["r"], recorded["l"], strict=True)
    assert sorted(written) == sorted((info["r"], info["l"]) for info in infos)
    assert (tmp_path / "0.monitor.csv").read_text().startswith('#{"t_start": ')
    assert '"env_id": "BreakoutNoFrameskip-v4"' in (tmp_path / "0.monitor.csv").read_text()


@pytest.mark.parametrize("action", [-1, 6])
def test_atari_invalid_action_raises_index_error_instead_of_blocking(action):
    venv = native("PongNoFrameskip-v4", 1)
    venv.reset()
    with pytest.raises(IndexError, match=r"must be in \[0, 6\)"):
        venv.step(np.array([action]))
    venv.step(np.array([5]))


@pytest.mark.slow
def test_atari_native_env_trains_and_evaluates_whole_games():
    spec = EnvSpec("BreakoutNoFrameskip-v4", seed=0, n_envs=2, frame_stack=4, backend="native", n_threads=2)
    model = A2C("CnnPolicy", make_train_env(spec), n_steps=5, seed=0, device="cpu").learn(10)
    returns, lengths = evaluate_policy(
        model, make_eval_env(spec, 2), n_eval_episodes=2, deterministic=False, return_episode_rewards=True
    )
    # 5 lives of more than 30 frames each
    assert len(returns) == 2
    assert min(lengths) > 150


def test_atari_native_env_closes_during_a_step():
    venv = native("PongNoFrameskip-v4", 3)
    venv.reset()
    venv.step_async(np.zeros(3, dtype=int))
    venv.close()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"env_id": "PongNoFrameskip-v4", "bins": 11}, "Leave out the bins"),
        ({"env_id": "PongNoFrameskip-v4", "env_kwargs": {"mode": 1}}, "takes no env_kwargs"),
        ({"env_id": "Pong-ram-v4"}, "NoFrameskip-v4"),
        ({"env_id": "MountainCar-v0"}, "no native version"),
        ({"env_id": "CartPole-v1", "backend": "natve"}, "Did you mean native"),
        ({"env_id": "CartPole-v1", "n_threads": 0}, "n_threads is 0"),
    ],
    ids=str,
)
def test_mistake_raises_user_error_before_training(changes, says):
    with pytest.raises(UserError) as error:
        check_env(EnvSpec(**{"seed": 0, "backend": "native", **changes}))
    assert says in str(error.value)


def test_environment_without_native_version_raises_user_error():
    with pytest.raises(UserError, match=r"Hopper-v4 has no native version.*gymnasium"):
        check_run(small_spec("ppo", "Hopper-v4", env_backend="native"))


def test_unknown_backend_raises_user_error():
    with pytest.raises(UserError, match="Did you mean native"):
        small_spec(env_backend="nativ")


def test_run_spec_passes_backend_and_threads_to_env_spec():
    spec = small_spec(env_backend="native", threads=3).env_spec()
    assert (spec.backend, spec.n_threads) == ("native", 3)
    assert small_spec().env_spec().backend == "gymnasium"
