"""Loading, playing and recording trained runs."""

import base64
import json
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from PIL import Image
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import unwrap_vec_normalize

from srl import SPPO, load_run
from srl.errors import UserError
from srl.rundir.directory import RunDirectory
from srl.training.play import has_display, prepare_rendering
from srl.training.run import train_run
from tests.small_runs import contents, small_spec, srl


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with discretized actions, normalization and noise, evaluated once at its end."""
    path = tmp_path_factory.mktemp("enjoy") / "run"
    train_run(
        small_spec("dsppo", "Pendulum-v1", noise="gaussian:5", eval_freq=64, overrides=dict(normalize=True)),
        path,
    )
    return path


PLAIN = """
import gymnasium as gym


class Plain(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (2,))
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.low, {}

    def step(self, action):
        return self.observation_space.low, 1.0, False, False, {}


gym.register("Plain-v0", entry_point=Plain)
"""


def copy_of(run, folder, **files):
    """Copy a run without its status, which contains the digests of its files."""
    folder.mkdir()
    for file in run.iterdir():
        if file.is_file() and file.name != "status.json":
            (folder / file.name).write_bytes(files.get(file.stem, file.read_bytes()))
    return folder


def test_loaded_run_reproduces_its_evaluation(run):
    expected = RunDirectory(run).read_evaluations()["results"][-1]
    # The best model is the evaluated one; the final model was updated afterwards
    model, env = load_run(run, best=True, n_envs=2)
    assert isinstance(env.action_space, spaces.MultiDiscrete)
    statistics = pickle.loads((run / "best_vecnormalize.pkl").read_bytes())
    assert np.array_equal(unwrap_vec_normalize(env).obs_rms.mean, statistics.obs_rms.mean)
    returns, _ = evaluate_policy(model, env, n_eval_episodes=2, return_episode_rewards=True)
    assert returns == expected.tolist()


def test_loaded_model_matches_the_saved_file(run):
    model, env = load_run(run)
    saved = SPPO.load(run / "model.zip", device="cpu").policy.state_dict()
    assert all(th.equal(saved[name], value) for name, value in model.policy.state_dict().items())
    observation = env.reset()
    assert env.action_space.contains(model.predict(observation)[0][0])


class Evil:
    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def test_loading_a_run_unpickles_nothing(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    copied = copy_of(run, tmp_path / "copy", vecnormalize=pickle.dumps(Evil()))
    with pytest.raises(UserError, match=r"vecnormalize.pkl: not the statistics"):
        load_run(copied)
    assert not Path("unpickled").exists()


def test_damaged_and_missing_files_are_named_in_error(run, tmp_path):
    with pytest.raises(UserError, match="contains no run"):
        load_run(tmp_path)
    with pytest.raises(UserError, match=r"model.zip: not the model of this run"):
        load_run(copy_of(run, tmp_path / "a", model=b"PK"))
    copied = copy_of(run, tmp_path / "b")
    (copied / "model.zip").unlink()
    with pytest.raises(UserError, match=r"model.zip: missing"):
        load_run(copied)


def test_custom_code_of_a_run_requires_trust(run, tmp_path):
    copied = copy_of(run, tmp_path / "copy")
    spec = json.loads((copied / "spec.json").read_text())
    (copied / "spec.json").write_text(json.dumps(spec | {"gym_packages": ["no_such_package"]}))
    outcome = srl("enjoy", copied)
    assert outcome.status == 2
    assert "no_such_package" in outcome.err
    assert "--trust-config" in outcome.err
    assert "needs the module 'no_such_package'" in srl("enjoy", copied, "--trust-config").err


def test_environment_without_rendering_is_played(tmp_path, monkeypatch):
    (tmp_path / "plain_env.py").write_text(PLAIN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = small_spec("ppo", "Plain-v0", gym_packages=["plain_env"], max_episode_steps=9)
    train_run(spec, tmp_path / "run")
    outcome = srl("enjoy", "run", "--trust-config", "--no-render", "--episodes", 1)
    assert "Episode 1: return 9.0, 9 steps" in outcome.out
    outcome = srl("enjoy", "run", "--trust-config", "--video", "play.gif")
    assert (outcome.status, outcome.err.count("\n")) == (2, 1)
    assert "renders no images" in outcome.err


def test_enjoy_prints_returns(run, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    outcome = srl("enjoy", run, "--best", "--episodes", 2)
    assert outcome.status == 0, outcome.err
    first = RunDirectory(run).read_evaluations()["results"][-1][0]
    assert f"Episode 1: return {first:.1f}, 200 steps" in outcome.out
    assert "over 2 episodes" in outcome.out
    assert "No display" in outcome.out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--episodes", 0], "--episodes 0"),
        (["--deterministic", "--stochastic"], "exclude"),
        (["--video", "a.avi"], ".mp4 or .gif"),
        (["--video", "no/such/a.gif"], "not a writable folder"),
        (["--device", "tpu"], "device='tpu'"),
    ],
)
def test_mistake_is_one_line_error_and_writes_nothing(words, says, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = contents(run)
    outcome = srl("enjoy", run, *words)
    assert outcome.status == 2
    assert says in outcome.err
    assert outcome.err.count("\n") == 1
    assert contents(run) == before
    assert not list(tmp_path.iterdir())


def test_mp4_without_its_package_is_rejected(run, tmp_path, monkeypatch):
    monkeypatch.setattr("srl.training.play.find_spec", lambda name: None)
    outcome = srl("enjoy", run, "--video", tmp_path / "a.mp4")
    assert outcome.status == 2
    assert "pip install 'symmetric-rl[video]'" in outcome.err


@pytest.mark.slow
def test_report_shows_a_gif_of_each_cell(tmp_path):
    for seed in (3, 4):
        train_run(small_spec(seed=seed), tmp_path / "runs" / f"seed-{seed}")
    wide = small_spec("dsppo", "Pendulum-v1")
    train_run(wide, tmp_path / "runs" / "other")
    (tmp_path / "runs" / "other" / "model.zip").unlink()
    outcome = srl("report", tmp_path / "runs", "--gifs", "--reps", 100, "--out", tmp_path)
    assert outcome.status == 0, outcome.err
    page = (tmp_path / "report.html").read_text()
    found = re.findall(
        r'src="data:image/gif;base64,([^"]+)" width="(\d+)" height="(\d+)" alt="([^"]+)"', page
    )
    ((content, width, height, caption),) = found
    assert caption == "CartPole-v1: SPPO, without noise, 64 steps, seed 3"
    (tmp_path / "found.gif").write_bytes(base64.b64decode(content))
    frames = decoded(tmp_path / "found.gif")
    assert frames[0].shape == (int(height), int(width), 3)
    assert len(frames) > 4
    assert len(content) < 500_000
    assert "other: no GIF: " in page
    assert "only a page" in srl("report", tmp_path / "runs", "--gifs", "--format", "json").err


def decoded(file: Path) -> list[np.ndarray]:
    """Return the frames of a video."""
    if file.suffix == ".gif":
        with Image.open(file) as image:
            frames = []
            for index in range(image.n_frames):
                image.seek(index)
                frames.append(np.asarray(image.convert("RGB")))
            return frames
    from imageio_ffmpeg import read_frames

    reader = read_frames(str(file))
    width, height = next(reader)["size"]
    return [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader]


VIDEOS = {
    "CartPole-v1": dict(overrides={}),
    "LunarLander-v3": dict(overrides={}, max_episode_steps=40),
    "PongNoFrameskip-v4": dict(overrides=dict(policy="CnnPolicy", frame_stack=4), max_episode_steps=40),
    "Hopper-v4": dict(overrides=dict(normalize=True), algo="dsppo"),
}


@pytest.mark.slow
@pytest.mark.parametrize("env", VIDEOS)
def test_video_shows_the_episode(env, tmp_path, monkeypatch):
    pytest.importorskip("imageio_ffmpeg", reason="MP4 files need imageio-ffmpeg")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    try:
        prepare_rendering(env)
    except UserError as error:
        pytest.skip(f"no EGL and no OSMesa here: {error}")
    assert not has_display()
    options = dict(VIDEOS[env])
    algo = options.pop("algo", "sppo")
    train_run(small_spec(algo, env, n_timesteps=32, **options), tmp_path / "run")
    played = srl("enjoy", tmp_path / "run", "--episodes", 1, "--no-render").out.splitlines()
    for ending in ("mp4", "gif"):
        outcome = srl("enjoy", tmp_path / "run", "--episodes", 1, "--video", tmp_path / f"play.{ending}")
        assert outcome.status == 0, outcome.err
        assert outcome.out.splitlines()[: len(played)] == played
        frames = decoded(tmp_path / f"play.{ending}")
        assert len(frames) >= 4
        assert all(frame.shape == frames[0].shape for frame in frames)
        assert min(frames[0].shape[:2]) >= 160
        # The frames are not blank and change
        assert np.ptp(frames[0]) > 100
        assert np.abs(frames[0].astype(int) - frames[-1]).max() > 50
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]
