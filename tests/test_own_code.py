"""Custom environments, wrappers, networks and hyperparameter files, and when they are imported."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from srl.envs.reward_noise import NOISE_PROCESSES
from srl.rundir.directory import RunDirectory
from tests.small_runs import SMALL_WORDS, contents, srl

PACKAGE = """
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

Path(__file__).with_name("imported").touch()


class Walk(gym.Env):
    "Its reward is its size; it ends after 50 steps."
    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, size):
        self.size = size

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}

    def step(self, action):
        self.t += 1
        observation = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return observation, float(self.size), self.t >= 50, False, {}


class Shout(gym.Wrapper):
    "Says with what it was made."

    def __init__(self, env, word="plain"):
        super().__init__(env)
        with Path("shouts").open("a") as file:
            file.write(word + "\\n")


class Net(BaseFeaturesExtractor):
    def __init__(self, observation_space, width=3):
        super().__init__(observation_space, width)
        self.layer = th.nn.Linear(2, width)

    def forward(self, observations):
        return self.layer(observations)


class NoEnv:
    def __init__(self, env):
        pass


gym.register("MyWalk-v0", entry_point=Walk)
"""


@pytest.fixture
def project(tmp_path, monkeypatch) -> Iterator[Path]:
    """A working directory with a package of the user."""
    (tmp_path / "mypkg").mkdir()
    (tmp_path / "mypkg" / "__init__.py").write_text(PACKAGE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    forget()


def forget() -> None:
    """Remove the package from this process so that the next command imports it again."""
    sys.modules.pop("mypkg", None)
    gym.registry.pop("MyWalk-v0", None)


def command(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "srl", *map(str, words)], capture_output=True, text=True, check=False
    )


TRAIN = ("train", "--algo", "sppo", "--gym-packages", "mypkg", "--env", "MyWalk-v0", "--timesteps", 64)


@pytest.mark.slow
def test_custom_environment_trains_with_arguments_wrappers_and_time_limit(project):
    done = command(
        *(*TRAIN, "--env-kwargs", "size=5", "--max-episode-steps", 7, "--out", "run"),
        *("--env-wrapper", "mypkg:Shout", "mypkg:Shout: {word: loud}", *SMALL_WORDS),
        "policy_kwargs={features_extractor_class: mypkg:Net, features_extractor_kwargs: {width: 4}}",
    )
    assert (done.returncode, done.stderr) == (0, "")
    evaluations = RunDirectory(project / "run").read_evaluations()
    assert (evaluations["ep_lengths"] == 7).all()
    assert (evaluations["results"] == 35).all()
    assert set((project / "shouts").read_text().split()) == {"plain", "loud"}
    spec = json.loads((project / "run" / "spec.json").read_text())
    assert spec["gym_packages"] == ["mypkg"]
    assert spec["env_kwargs"] == {"size": 5}
    assert spec["max_episode_steps"] == 7
    assert spec["hyperparams"]["env_wrapper"] == ["mypkg:Shout", {"mypkg:Shout": {"word": "loud"}}]


@pytest.mark.slow
def test_commands_that_read_results_import_no_custom_code(project):
    words = ("train", "--algo", "sppo", "--env", "mypkg:MyWalk-v0", "--env-kwargs", "size=5")
    assert srl(*words, "--timesteps", 64, "--out", "runs/a", *SMALL_WORDS).status == 0
    forget()
    imported = project / "mypkg" / "imported"
    imported.unlink()
    for words in (
        ("report", "runs", "--reps", 100, "--figures", "png"),
        ("report", "runs", "--format", "json"),
        ("status", "runs"),
        ("clean", "runs"),
    ):
        done = srl(*words)
        assert (done.status, done.err) == (0, ""), words
        assert not imported.exists(), words


SWEEP = """
envs: [MyWalk-v0, CartPole-v1]
algos: [ppo, sppo]
noise: [none]
seeds: [0]
n_timesteps: 64
eval_freq: 32
n_eval_episodes: 2
gym_packages: [mypkg]
max_episode_steps: 9
overrides:
  n_steps: 32
  batch_size: 32
  MyWalk-v0: {n_epochs: 2, env_wrapper: "mypkg:Shout"}
"""


@pytest.mark.slow
def test_sweep_file_accepts_the_same_keys_and_overrides_per_environment(project):
    Path("mine.yml").write_text(SWEEP.replace("[MyWalk-v0, CartPole-v1]", "[MyWalk-v0]"))
    words = ("sweep", "mine.yml", "--env-kwargs", "size=2", "--out", "runs", "--jobs", 1)
    done = srl(*words, "--trust-config")
    assert (done.status, done.err) == (0, "")
    for algo in ("ppo", "sppo"):
        directory = RunDirectory(project / "runs" / "MyWalk-v0" / algo / "none" / "seed-0")
        assert (directory.read_evaluations()["results"] == 18).all()
        spec = json.loads((directory.path / "spec.json").read_text())
        assert (spec["hyperparams"]["n_steps"], spec["hyperparams"]["n_epochs"]) == (32, 2)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("gym_packages: [mypkg]", ["line 9", "gym_packages", "'mypkg'", "--trust-config"]),
        ("", ["line 14", "overrides.MyWalk-v0.env_wrapper", "'mypkg:Shout'", "--trust-config"]),
    ],
)
def test_custom_code_in_a_sweep_file_requires_trust(line, says, project):
    before = contents(project)
    Path("mine.yml").write_text(SWEEP.replace("gym_packages: [mypkg]", line))
    done = srl("sweep", "mine.yml", "--out", "runs")
    assert done.status == 2
    assert all(word in done.err for word in says), done.err
    assert done.err.count("\n") == 1
    assert contents(project).keys() == before.keys() | {"mine.yml"}


COLUMNS = """envs: [CartPole-v1]
seeds: [0]
n_timesteps: 64
algos: [ppo]
quick: {n_timesteps: 32}
"""
SHOUT = "variants: {x: {algo: ppo, env_wrapper: 'mypkg:Shout'}}"
NET = "policy_kwargs: {features_extractor_class: 'mypkg:Net'}"


@pytest.mark.parametrize(
    ("old", "new", "words", "says"),
    [
        ("algos: [ppo]", SHOUT, [], "variants.x.env_wrapper"),
        ("algos: [ppo]", f"variants: {{x: {{algo: ppo, {NET}}}}}", [], "variants.x.policy_kwargs"),
        ("[ppo]", "[ppo]\ngrid: {env_wrapper: [mypkg.Shout]}", [], "grid.env_wrapper"),
        ("[ppo]", f"[ppo]\ngrid: {{{NET.replace('{', '[{').replace('}', '}]')}}}", [], "grid.policy_kwargs"),
        ("n_timesteps: 32", "grid: {env_wrapper: [mypkg.Shout]}", [], "quick.grid.env_wrapper"),
        ("n_timesteps: 32", SHOUT, ["--quick"], "quick.variants.x"),
        (
            "[ppo]",
            "[]\ngym_packages: [mypkg]\nvariants: {mypkg: {algo: ppo}}",
            ["--algos", "mypkg"],
            "gym_packages",
        ),
    ],
)
def test_custom_code_of_columns_in_a_sweep_file_requires_trust(old, new, words, says, project):
    assert old in COLUMNS
    Path("mine.yml").write_text(COLUMNS.replace(old, new))
    before = contents(project)
    done = srl("sweep", "mine.yml", "--dry-run", "--out", "runs", *words)
    assert contents(project) == before
    assert done.status == 2
    assert says in done.err
    assert "--trust-config" in done.err


def test_custom_hyperparameter_file_is_used(project):
    Path("mine.yml").write_text(
        "CartPole-v1:\n  n_timesteps: 64\n  n_steps: 16\n  batch_size: 16\n  n_epochs: 1\n  beta: 3\n"
    )
    words = ("--eval-freq", 32, "--eval-episodes", 2, "--hyperparams-file", "mine.yml")
    for algo in ("sppo", "a2c"):
        done = srl("train", "--algo", algo, "--env", "CartPole-v1", "--out", algo, *words)
        assert (done.status, done.err) == (0, "")
    spec = json.loads((project / "sppo" / "spec.json").read_text())
    assert (spec["n_timesteps"], spec["hyperparams"]["n_steps"], spec["hyperparams"]["beta"]) == (64, 16, 3)
    spec = json.loads((project / "a2c" / "spec.json").read_text())
    assert (spec["hyperparams"]["n_steps"], spec["hyperparams"]["beta"]) == (16, 0)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--gym-packages", "no_such"], "no_such"),
        (["--env-kwargs", "size"], "NAME=VALUE"),
        (["--env-kwargs", "size=1", "wings=2"], "wings"),
        (["--env-kwargs", "size=1", "--env-wrapper", "mypkg:Shut"], "Did you mean Shout"),
        (["--env-kwargs", "size=1", "--env-wrapper", "mypkg"], "module:Name"),
        (["--env-kwargs", "size=1", "--env-wrapper", "mypkg:NoEnv"], "returns NoEnv"),
        (["--env-kwargs", "size=1", "--env-wrapper", "mypkg:Shout: {volume: 3}"], "volume"),
        (["--env-kwargs", "size=1", "--max-episode-steps", "0"], "max_episode_steps"),
        (["--env-kwargs", "size=1", "--hyperparams-file", "no.yml"], "no.yml"),
        (["--env-kwargs", "size=1", "--hyperparams-file", "other.yml"], "no entry MyWalk-v0"),
        (["--env-kwargs", "size=1", "--hyperparams-file", "code.yml"], "--trust-config"),
        (
            ["--env-kwargs", "size=1", "--hyperparams", "policy_kwargs={features_extractor_class: mypkg:X}"],
            "has no 'X'",
        ),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else "",
)  # fmt: skip
def test_mistake_is_one_line_error_before_anything_is_written(words, says, project):
    Path("other.yml").write_text("CartPole-v1: {n_timesteps: 5}\n")
    Path("code.yml").write_text("MyWalk-v0:\n  n_timesteps: 5\n  env_wrapper: mypkg:Shout\n")
    given = [str(word) for word in TRAIN if word != "mypkg" or "--gym-packages" not in words]
    if "--gym-packages" in words:
        given.remove("--gym-packages")
    done = srl(*given, *words, "--out", "run")
    assert done.status == 2, done.err
    assert says in done.err
    assert done.err.count("\n") == 1
    assert not Path("run").exists()


def test_time_limit_of_an_atari_game_counts_agent_steps(tmp_path):
    from srl.envs import EnvSpec, make_eval_env

    for backend in ("gymnasium", "native"):
        spec = EnvSpec("PongNoFrameskip-v4", seed=0, max_episode_steps=40, backend=backend)
        venv = make_eval_env(spec, n_envs=1)
        venv.reset()
        lengths = []
        for step in range(1, 100):
            _, _, dones, infos = venv.step(np.zeros(1, dtype=int))
            if dones[0]:
                assert infos[0]["TimeLimit.truncated"]
                lengths.append(step)
        # Gymnasium's limit also counts the frames before the first agent action
        assert 30 <= lengths[0] <= 40


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return languages and contents of the code blocks of a Markdown page."""
    return re.findall(r"```(\w+)\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.fixture
def own_noise(tmp_path, monkeypatch) -> Iterator[Callable[[], None]]:
    """The module of docs/how-to/noise.md in the working directory; the function removes its noise again."""
    page = Path(__file__).resolve().parents[1] / "docs" / "how-to" / "noise.md"
    (tmp_path / "drop_noise.py").write_text(blocks(page)[0][1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    monkeypatch.setattr(sys, "path", list(sys.path))

    def forget_noise() -> None:
        sys.path[:] = [path for path in sys.path if path != str(tmp_path)]
        sys.modules.pop("drop_noise", None)
        NOISE_PROCESSES.pop("drop", None)

    yield forget_noise
    forget_noise()


DROP = ("--gym-packages", "drop_noise", "--noise")


@pytest.mark.slow
def test_run_with_own_noise_is_read_without_its_module_and_extended_with_trust(own_noise):
    words = ("train", "--algo", "sppo", "--env", "CartPole-v1", "--timesteps", 64, "--out", "runs/a")
    assert srl(*words, *DROP, "drop:0.2", *SMALL_WORDS).status == 0
    own_noise()
    for words in (("status", "runs"), ("clean", "runs"), ("report", "runs", "--format", "json")):
        done = srl(*words)
        assert (done.status, done.err) == (0, ""), words
    assert "drop_noise" not in sys.modules
    assert "--trust-config" in srl("enjoy", "runs/a").err
    assert srl("enjoy", "runs/a", "--trust-config", "--episodes", 1).status == 0
    own_noise()
    done = srl("train", "--extend-to", 96, "runs/a", "--trust-config")
    assert done.status == 0, done.err
    assert RunDirectory(Path("runs/a")).read_spec().noise == "drop:0.2"


def test_sweep_file_names_the_module_of_its_own_noise(own_noise):
    Path("mine.yml").write_text(
        'envs: [CartPole-v1]\nalgos: [ppo]\nnoise: ["drop:0.2"]\nseeds: [0]\ngym_packages: [drop_noise]\n'
    )
    assert srl("sweep", "mine.yml", "--dry-run").status == 2
    assert "drop_noise" not in sys.modules
    done = srl("sweep", "mine.yml", "--dry-run", "--trust-config")
    assert (done.status, done.err) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("population", ["off", "auto"])
def test_sweep_with_own_noise_trains_and_is_reported(population, own_noise):
    words = ("--envs", "CartPole-v1", "--algos", "ppo", "sppo", "--seeds", 0, "--timesteps", 64, "--jobs", 1)
    options = ("--population", population, "--out", "runs", *SMALL_WORDS)
    done = srl("sweep", "discrete_srl", *words, *DROP, "none", "drop:0.2", *options)
    assert done.status == 0, done.err
    own_noise()
    assert srl("report", "runs", "--reps", 100).status == 0
    assert ",drop:0.2," in Path("runs/table.csv").read_text()


@pytest.mark.slow
def test_own_environment_tutorial_works_as_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    monkeypatch.setattr(sys, "path", list(sys.path))
    page = Path(__file__).resolve().parents[1] / "docs" / "tutorials" / "own-environment.md"
    commands = []
    for language, text in blocks(page):
        if language == "bash":
            commands += [shlex.split(line)[1:] for line in text.splitlines()]
        else:
            Path({"python": "corridor.py", "yaml": "corridor.yml"}[language]).write_text(text)
    assert [words[0] for words in commands] == ["train", "enjoy", "sweep", "report"]

    # The run is interrupted once and resumed with the same command
    def stop(display, status):
        if status.timesteps > 1000:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("srl.sweep.display.RunDisplay.update", stop)
        patched.setattr("srl.training.run.Heartbeat.__init__.__defaults__", (0.0,))
        assert srl(*commands[0], "--checkpoint-every", 0).status == 130
    run = RunDirectory(Path("corridor-run"))
    assert run.read_status().state == "interrupted"
    for words in commands:
        outcome = srl(*words)
        assert outcome.status == 0, (words, outcome.err)
    assert run.read_status().resumed_from > 0
    assert run.read_spec().env_kwargs == {"size": 8}
    assert Path("corridor.gif").read_bytes().startswith(b"GIF89a")
    specs = {file: json.loads(file.read_text()) for file in Path("corridor-sweep").rglob("spec.json")}
    assert len(specs) == 8
    steps = {(spec["env"], spec["hyperparams"]["n_steps"]) for spec in specs.values()}
    assert steps == {("Corridor-v0", 256), ("CartPole-v1", 128)}
    assert Path("corridor-sweep/report.html").exists()
