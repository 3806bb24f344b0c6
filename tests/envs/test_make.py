"""Wrapper stacks of training and evaluation on real environments of each kind."""

import inspect
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import A2C
from stable_baselines3.common.atari_wrappers import AtariWrapper
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.monitor import load_results
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecEnv,
    VecEnvWrapper,
    VecNormalize,
    sync_envs_normalization,
    unwrap_vec_normalize,
)

from srl.envs import make as make_module
from srl.envs.discretize import DiscretizeAction
from srl.envs.finite import NonFiniteError, VecCheckFinite
from srl.envs.make import check_env, make_eval_env, make_train_env, without_reward_noise
from srl.envs.spec import NORMALIZE_KEYS, EnvSpec
from srl.envs.vec_reward_noise import VecRewardNoise
from srl.errors import UserError

# The protocol uses these versions of the MuJoCo tasks
pytestmark = pytest.mark.filterwarnings("ignore:.*is out of date:DeprecationWarning")

CARTPOLE = EnvSpec("CartPole-v1", seed=0, n_envs=2, noise="gaussian:0.05")
LANDER = EnvSpec("LunarLanderContinuous-v2", seed=0, n_envs=2, normalize={}, noise="gaussian:0.05")
PENDULUM = EnvSpec("InvertedDoublePendulum-v4", seed=0, n_envs=2, bins=11, normalize={}, noise="uniform:0.1")
PONG = EnvSpec("PongNoFrameskip-v4", seed=0, n_envs=2, frame_stack=4, noise="flip:0.5")
SPECS = [CARTPOLE, LANDER, PENDULUM, PONG]
every_kind = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.env_id)


def replaced(spec: EnvSpec, **changes: Any) -> EnvSpec:
    fields = {name: getattr(spec, name) for name in EnvSpec.__dataclass_fields__ if name != "_"}
    return EnvSpec(**{**fields, **changes})


def layers(venv: VecEnv) -> list[str]:
    """Return the class names from the outermost to the innermost wrapper."""
    names = [type(venv).__name__]
    while isinstance(venv, VecEnvWrapper):
        venv = venv.venv
        names.append(type(venv).__name__)
    return names


def rollout(venv: VecEnv, steps: int) -> tuple[np.ndarray, np.ndarray, list[dict]]:
    """Step with the same sampled actions each time; return observations, rewards and infos."""
    venv.action_space.seed(0)
    observations, rewards, infos = [venv.reset()], [], []
    for _ in range(steps):
        actions = np.array([venv.action_space.sample() for _ in range(venv.num_envs)])
        observation, reward, _, info = venv.step(actions)
        observations.append(observation)
        rewards.append(reward)
        infos += info
    return np.array(observations), np.array(rewards), infos


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (CARTPOLE, ["VecRewardNoise", "VecCheckFinite", "SerialVecEnv"]),
        (LANDER, ["VecRewardNoise", "VecNormalize", "VecCheckFinite", "SerialVecEnv"]),
        (PENDULUM, ["VecRewardNoise", "VecNormalize", "VecCheckFinite", "SerialVecEnv"]),
        (PONG, ["VecRewardNoise", "VecTransposeImage", "VecFrameStack", "VecCheckFinite", "SerialVecEnv"]),
    ],
    ids=lambda value: getattr(value, "env_id", ""),
)
def test_wrapper_order_is_fixed_and_evaluation_omits_only_noise(spec, expected):
    train, evaluation = make_train_env(spec), make_eval_env(spec, n_envs=3)
    assert layers(train) == expected
    assert layers(evaluation) == expected[1:]
    assert layers(without_reward_noise(train)) == expected[1:]
    assert train.num_envs == 2
    assert evaluation.num_envs == 3
    assert train.observation_space == evaluation.observation_space
    assert train.action_space == evaluation.action_space


@every_kind
def test_no_noise_wrapper_without_noise(spec):
    venv = make_train_env(replaced(spec, noise="none"))
    assert not isinstance(venv, VecRewardNoise)
    assert without_reward_noise(venv) is venv


@pytest.mark.parametrize(
    ("spec", "space"),
    [
        (CARTPOLE, spaces.Discrete(2)),
        (LANDER, spaces.Box(-1.0, 1.0, (2,))),
        (PENDULUM, spaces.MultiDiscrete([11])),
        (PONG, spaces.Discrete(6)),
    ],
    ids=lambda value: getattr(value, "env_id", ""),
)
def test_check_env_returns_action_space_of_training(spec, space):
    assert check_env(spec) == space
    assert make_train_env(spec).action_space == space


@every_kind
def test_same_seed_reproduces_rollout_and_another_seed_differs(spec):
    first, again, other = (rollout(make_train_env(replaced(spec, seed=seed)), 12) for seed in (4, 4, 5))
    assert (first[0] == again[0]).all()
    assert (first[1] == again[1]).all()
    assert (first[1] != other[1]).any()
    assert (first[0] != other[0]).any()


@pytest.mark.parametrize("spec", [CARTPOLE, LANDER, PENDULUM], ids=lambda spec: spec.env_id)
def test_training_and_evaluation_environments_start_in_different_states(spec):
    starts = [*make_train_env(spec).unwrapped.reset(), *make_eval_env(spec, 3).unwrapped.reset()]
    assert len(np.unique(starts, axis=0)) == 5


@pytest.mark.parametrize(
    ("spec", "steps"),
    [(CARTPOLE, 80), (replaced(PENDULUM, noise="gaussian:0.05"), 40)],
    ids=lambda value: getattr(value, "env_id", ""),
)
def test_monitor_records_clean_returns_with_reward_noise(spec, steps, tmp_path):
    clean_rewards, infos = rollout(make_train_env(replaced(spec, noise="none")), steps)[1:]
    noisy_rewards, noisy_infos = rollout(make_train_env(spec, monitor_dir=str(tmp_path)), steps)[1:]
    assert (clean_rewards != noisy_rewards).all()
    returns = [info["episode"]["r"] for info in infos if "episode" in info]
    assert len(returns) > 2
    assert [info["episode"]["r"] for info in noisy_infos if "episode" in info] == returns
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.monitor.csv", "1.monitor.csv"]
    assert sorted(load_results(str(tmp_path))["r"]) == pytest.approx(sorted(returns))


@pytest.mark.parametrize("spec", [CARTPOLE, LANDER, PENDULUM], ids=lambda spec: spec.env_id)
def test_evaluation_returns_raw_rewards_recorded_by_monitor(spec):
    _, rewards, infos = rollout(make_eval_env(spec, n_envs=1), 200)
    episode = next(info["episode"] for info in infos if "episode" in info)
    assert rewards[: episode["l"]].sum() == pytest.approx(episode["r"], rel=1e-4)


def test_atari_evaluation_returns_rewards_without_flips():
    _, rewards, _ = rollout(make_eval_env(PONG, n_envs=1), 30)
    assert (rewards == 1.0).mean() < 0.1  # a random policy rarely scores; flips would change half


@pytest.mark.parametrize("spec", [LANDER, PENDULUM], ids=lambda spec: spec.env_id)
def test_only_training_updates_normalization_statistics(spec):
    train, evaluation = make_train_env(spec), make_eval_env(spec, n_envs=2)
    for venv in (train, evaluation):
        rollout(venv, 10)
    assert (unwrap_vec_normalize(evaluation).obs_rms.mean == 0).all()
    assert unwrap_vec_normalize(evaluation).ret_rms.mean == 0
    assert (unwrap_vec_normalize(train).obs_rms.mean != 0).any()
    assert unwrap_vec_normalize(train).ret_rms.mean != 0


def test_observation_statistics_sync_from_noisy_training_environment():
    train, evaluation = make_train_env(LANDER), make_eval_env(LANDER, 2)
    rollout(train, 10)
    sync_envs_normalization(without_reward_noise(train), evaluation)
    trained, evaluated = unwrap_vec_normalize(train), unwrap_vec_normalize(evaluation)
    assert (trained.obs_rms.mean == evaluated.obs_rms.mean).all()
    assert (trained.obs_rms.mean != 0).any()


@pytest.mark.parametrize(("normalize", "expected"), [({}, 0.9), ({"gamma": 0.5}, 0.5)])
def test_reward_normalization_uses_gamma_of_spec_by_default(normalize, expected):
    spec = replaced(LANDER, gamma=0.9, normalize={"clip_obs": 5.0, **normalize})
    for venv in (make_train_env(spec), make_eval_env(spec, 1)):
        assert unwrap_vec_normalize(venv).gamma == expected
        assert unwrap_vec_normalize(venv).clip_obs == 5.0


def test_training_normalizes_rewards_by_default():
    assert unwrap_vec_normalize(make_train_env(LANDER)).norm_reward
    raw = replaced(LANDER, normalize={"norm_reward": False})
    assert not unwrap_vec_normalize(make_train_env(raw)).norm_reward


def test_noise_is_added_after_normalization():
    clean = rollout(make_train_env(replaced(LANDER, noise="none")), 10)[1]
    noisy = rollout(make_train_env(LANDER), 10)[1]
    assert 0.02 < (noisy - clean).std() < 0.1


def test_flip_noise_is_applied_after_atari_reward_clipping():
    rewards = rollout(make_train_env(PONG), 30)[1]
    assert set(np.unique(rewards)) <= {-1.0, 0.0, 1.0, 2.0}
    assert 0.2 < (rewards == 1.0).mean() < 0.8


@pytest.mark.parametrize("env_id", ["PongNoFrameskip-v4", "Pong-v4", "ALE/Pong-v5"])
def test_atari_uses_four_stacked_frames_and_frame_skip_four_for_every_id(env_id):
    venv = make_train_env(replaced(PONG, env_id=env_id, n_envs=1, noise="none"))
    assert venv.observation_space.shape == (4, 84, 84)
    assert venv.observation_space.dtype == np.uint8
    assert is_wrapped(venv.unwrapped.envs[0], AtariWrapper)
    venv.reset()
    before = venv.unwrapped.envs[0].unwrapped.ale.getEpisodeFrameNumber()
    venv.step(np.zeros(1, dtype=int))
    assert venv.unwrapped.envs[0].unwrapped.ale.getEpisodeFrameNumber() == before + 4


@pytest.mark.parametrize("make", [make_train_env, make_eval_env])
def test_lunar_lander_emits_no_bodies_unless_it_renders(make):
    spec = EnvSpec("LunarLanderContinuous-v3", seed=1, n_envs=2)
    plain, rendering = make(spec), make(replaced(spec, env_kwargs={"render_mode": "rgb_array"}))
    assert make(replaced(spec, renders=True)).render_mode == "rgb_array"
    for one, other in zip(rollout(plain, 60)[:2], rollout(rendering, 60)[:2], strict=True):
        assert (one == other).all()
    assert plain.envs[0].unwrapped.world.bodyCount == 4
    assert rendering.envs[0].unwrapped.world.bodyCount > 4


def test_env_kwargs_are_passed_to_environment():
    venv = make_train_env(replaced(LANDER, env_kwargs={"gravity": -5.0}))
    assert venv.unwrapped.envs[0].unwrapped.gravity == -5.0


def test_discretized_environment_receives_bin_values():
    venv = make_train_env(PENDULUM)
    assert all(is_wrapped(env, DiscretizeAction) for env in venv.unwrapped.envs)
    venv.reset()
    venv.step(np.array([[10], [0]]))
    commands = [env.unwrapped.data.ctrl[0] for env in venv.unwrapped.envs]
    assert commands == [1.0, -1.0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "policy"),
    [(CARTPOLE, "MlpPolicy"), (LANDER, "MlpPolicy"), (PENDULUM, "MlpPolicy"), (PONG, "CnnPolicy")],
    ids=lambda value: getattr(value, "env_id", ""),
)
def test_a2c_uses_environment_without_rewrapping(spec, policy):
    venv = make_train_env(spec)
    model = A2C(policy, venv, n_steps=5, seed=spec.seed, device="cpu")
    assert model.get_env() is venv
    if policy == "MlpPolicy":
        model.learn(10)


def test_check_env_creates_one_environment_and_closes_it(monkeypatch):
    made: list[VecEnv] = []
    closed: list[VecEnv] = []
    make_vec_env = make_module.make_vec_env
    monkeypatch.setattr(
        make_module, "make_vec_env", lambda *a, **k: made.append(make_vec_env(*a, **k)) or made[-1]
    )
    monkeypatch.setattr(DummyVecEnv, "close", lambda self: closed.append(self))
    check_env(replaced(CARTPOLE, n_envs=8))
    assert [venv.num_envs for venv in made] == [1]
    assert closed == made


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"env_id": "CartPol-v1"}, "Did you mean CartPole-v1"),
        ({"env_id": "BipedalWalker-v2"}, "BipedalWalker-v3"),
        ({"env_id": "HalfCheetah-v2"}, "gymnasium-robotics"),
        ({"bins": 11}, "CartPole-v1 cannot be discretized"),
        ({"env_kwargs": {"wings": 2}}, "unexpected keyword argument 'wings'"),
        ({"env_id": "FrozenLake-v1", "normalize": {}}, "VecNormalize only supports"),
        ({"env_id": "FrozenLake-v1", "frame_stack": 4}, "VecFrameStack"),
    ],
)
@pytest.mark.parametrize("make", [check_env, make_train_env, make_eval_env])
def test_mistake_raises_user_error_before_training(make, changes, says):
    with pytest.raises(UserError) as error:
        make(replaced(CARTPOLE, **changes))
    assert says in str(error.value)


def test_missing_rom_raises_user_error_before_training(tmp_path, monkeypatch):
    monkeypatch.setenv("ALE_ROMS_DIR", str(tmp_path))
    with pytest.raises(UserError, match="ROM of the Atari game 'pong'"):
        check_env(PONG)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"n_envs": 0}, "n_envs is 0"),
        ({"n_envs": True}, "n_envs is True"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 1.0}, "seed is 1.0"),
        ({"frame_stack": 0}, "frame_stack is 0"),
        ({"bins": 1}, "bins is 1"),
        ({"noise": "flip:2"}, "flip:PROB"),
        ({"normalize": {"norm_ob": True}}, "Did you mean norm_obs"),
        ({"normalize": {"training": False}}, "unknown key 'training'"),
    ],
)
def test_out_of_range_spec_value_is_rejected(changes, says):
    with pytest.raises(UserError) as error:
        replaced(CARTPOLE, **changes)
    assert says in str(error.value)


class Breaking(gym.Env):
    """Returns an invalid number at a chosen place in its third step."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    observation_space = spaces.Box(-10.0, 10.0, (2,))
    action_space = spaces.Box(-1.0, 1.0, (1,))

    def __init__(self, place: str = "", number: float = 0.0, render_mode: str | None = None) -> None:
        self.place, self.number, self.render_mode = place, number, render_mode

    def _observe(self, place: str) -> np.ndarray:
        wrong = self.number if self.place == place else 0.0
        return np.array([0.0, wrong], dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        self.steps = 0
        return self._observe("reset"), {}

    def step(self, action):
        self.steps += 1
        third = self.steps == 3
        last = third and self.place in ("truncated", "terminated")
        observation = self._observe(self.place if last else "observation" if third else "nowhere")
        reward = self.number if third and self.place == "reward" else 0.0
        return (
            observation,
            reward,
            last and self.place == "terminated",
            last and self.place == "truncated",
            {},
        )


def step_three_times(venv: VecEnv) -> None:
    venv.reset()
    for _ in range(3):
        venv.step(np.zeros((venv.num_envs, 1), dtype=np.float32))


@pytest.mark.parametrize(("number", "kind"), [(np.nan, "NaN"), (np.inf, "infinite"), (-np.inf, "infinite")])
@pytest.mark.parametrize(
    ("place", "what"),
    [
        ("reward", "reward"),
        ("observation", "observation"),
        ("reset", "observation at reset"),
        ("truncated", "last observation"),
    ],
)
def test_non_finite_number_stops_run_and_names_environment(place, what, number, kind):
    venv = VecCheckFinite(DummyVecEnv([Breaking, lambda: Breaking(place, number)]))
    with pytest.raises(NonFiniteError) as error:
        step_three_times(venv)
    assert str(error.value) == f"The environment gave a non-finite {what} ({kind}) in environment 1."


def test_non_finite_action_stops_run_and_names_policy():
    venv = VecCheckFinite(DummyVecEnv([Breaking, Breaking]))
    venv.reset()
    with pytest.raises(
        NonFiniteError, match=r"^The policy gave a non-finite action \(NaN\) in environment 1\.$"
    ):
        venv.step(np.array([[0.0], [np.nan]]))


def test_finite_numbers_and_unused_terminal_observation_pass():
    step_three_times(VecCheckFinite(DummyVecEnv([Breaking, lambda: Breaking("terminated", np.nan)])))


@pytest.mark.parametrize("normalize", [None, {}])
def test_training_environment_checks_rewards_before_normalization(normalize):
    gym.register("Breaking-v0", entry_point=Breaking)
    try:
        spec = EnvSpec(
            "Breaking-v0", seed=0, normalize=normalize, env_kwargs={"place": "reward", "number": np.nan}
        )
        venv = make_train_env(spec)
        with pytest.raises(FloatingPointError, match="reward"):
            step_three_times(venv)
    finally:
        del gym.registry["Breaking-v0"]


def test_mujoco_deprecation_message_is_suppressed(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    make_train_env(EnvSpec("HalfCheetah-v4", seed=0))
    assert "settotalmass" not in "".join(capfd.readouterr())
    assert list(Path.cwd().iterdir()) == []


def test_other_mujoco_messages_are_printed_and_logged(tmp_path, monkeypatch, capfd):
    import mujoco

    from srl.envs.mujoco_log import without_deprecation_messages

    monkeypatch.chdir(tmp_path)
    model = mujoco.MjModel.from_xml_string(
        "<mujoco><worldbody><body><freejoint/><geom size='1'/></body></worldbody></mujoco>"
    )
    data = mujoco.MjData(model)
    data.qpos[0] = np.nan
    with without_deprecation_messages():
        mujoco.mj_step(model, data)
    assert "WARNING: Nan, Inf or huge value in QPOS" in capfd.readouterr().err
    assert "Nan, Inf or huge value in QPOS" in (tmp_path / "MUJOCO_LOG.TXT").read_text()
    assert mujoco.get_mju_user_warning() is None


def test_normalization_arguments_match_sb3():
    arguments = set(inspect.signature(VecNormalize).parameters) - {"venv", "training"}
    assert arguments == NORMALIZE_KEYS
