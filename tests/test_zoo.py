"""SPPO and SA2C in rl-baselines3-zoo."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import yaml

from srl.errors import UserError
from srl.zoo import main, with_hyperparams, zoo_hyperparams

ROOT = Path(__file__).resolve().parents[1]
needs_zoo = pytest.mark.skipif(find_spec("rl_zoo3") is None, reason="rl_zoo3 is not installed")
WORDS = ["--algo", "sppo", "--env", "CartPole-v1", "--seed", "1", "--device", "cpu"]


def zoo(folder, *words):
    """Run ``python -m srl.zoo`` in a folder; return its output."""
    environment = dict(os.environ, PYTHONPATH=str(ROOT), MPLBACKEND="agg", OMP_NUM_THREADS="1")
    command = [sys.executable, "-m", "srl.zoo", *map(str, words)]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_zoo
@pytest.mark.slow
def test_zoo_trains_resumes_plays_and_plots_sppo(tmp_path):
    file = tmp_path / "mine.yml"
    file.write_text(
        "CartPole-v1:\n  n_timesteps: 128\n  policy: MlpPolicy\n  n_steps: 64\n  beta: 7.5\n  profiles: {}\n"
        "  policy_kwargs: {net_arch: {pi: [8], vf: [8]}, activation_fn: relu}\n  learning_rate: lin_1e-3\n"
    )
    evaluated = ["--eval-freq", 64, "--eval-episodes", 2]
    zoo(tmp_path, "train", *WORDS, "--conf-file", file, *evaluated)
    first = tmp_path / "logs" / "sppo" / "CartPole-v1_1"
    from srl import SPPO

    model = SPPO.load(first / "CartPole-v1.zip")
    assert (model.beta, model.n_steps, model.num_timesteps) == (7.5, 64, 128)
    assert [tuple(weight.shape) for weight in model.policy.mlp_extractor.policy_net.parameters()] == [
        (8, 4),
        (8,),
    ]
    assert np.load(first / "evaluations.npz")["timesteps"].tolist() == [64, 128]

    zoo(tmp_path, "train", *WORDS, "--conf-file", file, "-i", first / "CartPole-v1.zip", "--eval-freq", -1)
    again = SPPO.load(tmp_path / "logs" / "sppo" / "CartPole-v1_2" / "CartPole-v1.zip")
    assert again._n_updates > model._n_updates

    played = zoo(tmp_path, "enjoy", *WORDS[:4], "-f", "logs", "--no-render", "-n", 300, "--exp-id", 1)
    assert "Mean reward:" in played
    zoo(tmp_path, "plot", "-a", "sppo", "-e", "CartPole-v1", "-f", "logs")
    table = zoo(tmp_path, "all_plots", "-a", "sppo", "-e", "CartPole-v1", "-f", "logs", "--no-display")
    assert "SPPO" in table


@needs_zoo
@pytest.mark.slow
def test_zoo_tunes_sa2c(tmp_path):
    optuna = pytest.importorskip("optuna", reason="optuna is not installed")
    storage = f"sqlite:///{tmp_path / 'zoo.db'}"
    words = ["--algo", "sa2c", "--env", "CartPole-v1", "-n", 64, "-optimize", "--n-trials", 2]
    words += ["--no-optim-plots", "--study-name", "zoo", "--storage", storage, "--eval-episodes", 1]
    zoo(tmp_path, "train", *words)
    study = optuna.load_study(study_name="zoo", storage=storage)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 2
    assert {"alpha", "beta", "one_minus_gamma"} <= study.trials[0].params.keys()


@pytest.mark.parametrize("algo", ["sppo", "sa2c"])
def test_shipped_hyperparameter_files_are_the_default(algo):
    options = with_hyperparams(["--algo", algo, "--env", "CartPole-v1"])
    assert options[-2] == "--conf-file"
    entries = sys.modules[options[-1]].hyperparams
    ours = yaml.safe_load((ROOT / "configs" / "hyperparams" / f"{algo}.yml").read_text())
    assert entries.keys() == ours.keys()
    assert entries["CartPole-v1"]["beta"] == ours["CartPole-v1"]["beta"]
    assert not any("profiles" in entry for entry in entries.values())


def test_other_algorithms_and_python_files_are_passed_to_the_zoo():
    for words in (["--algo", "ppo"], ["--algo=sppo", "--conf-file", "mine.py"], []):
        assert with_hyperparams(words) == words


def test_entries_in_zoo_format_are_unchanged():
    entry = {"policy_kwargs": "dict(net_arch=[8])", "env_wrapper": "a.B", "normalize": True}
    assert zoo_hyperparams({"X-v0": entry}) == {"X-v0": entry}
    ours = {"env_wrapper": ["my.pkg:Wrap", {"my.pkg:Other": {"a": 1}}]}
    theirs = {"env_wrapper": ["my.pkg.Wrap", {"my.pkg.Other": {"a": 1}}]}
    assert zoo_hyperparams({"X-v0": ours}) == {"X-v0": theirs}
    assert zoo_hyperparams({"X-v0": {"clip_range_vf": None, "n_steps": 8}}) == {"X-v0": {"n_steps": 8}}
    with pytest.raises(UserError, match="features_extractor_class"):
        zoo_hyperparams({"X-v0": {"policy_kwargs": {"features_extractor_class": "a:B"}}})


@pytest.mark.parametrize("words", [[], ["trian"], ["--algo", "sppo"]])
def test_unknown_zoo_script_is_rejected(words):
    with pytest.raises(UserError, match="name a script of rl_zoo3 first: train, enjoy, plot"):
        main(words)


def test_missing_package_is_named_with_its_pip_command(monkeypatch):
    monkeypatch.setattr("srl.zoo.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"rl_zoo3: pip install 'symmetric-rl\[zoo\]'"):
        main(["train"])
