"""Algorithms from other packages, compared with SPPO."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from srl.config.lenient import spec_text
from srl.config.spec import make_run_spec
from srl.errors import UserError
from srl.report.report import make_report
from srl.rundir.directory import RunDirectory
from srl.rundir.status import Status
from tests.small_runs import contents, srl
from tests.test_own_code import command

pytest.importorskip("sb3_contrib", reason="the algorithm of another package is sb3-contrib's TRPO")

TRPO = "sb3_contrib:TRPO"
SWEEP = """
envs: [CartPole-v1]
algos: [sppo, "sb3_contrib:TRPO"]
variants:
  trpo-slow: {algo: "sb3_contrib:TRPO", learning_rate: 1.0e-4, cg_max_steps: 5}
compare: [[sppo, "sb3_contrib:TRPO"], [sppo, trpo-slow]]
noise: [none]
seeds: ["0:2"]
n_timesteps: 64
eval_freq: 32
n_eval_episodes: 2
overrides: {n_steps: 32, batch_size: 32, n_envs: 1, n_epochs: 1, normalize: true}
"""


@pytest.mark.slow
def test_trpo_and_sppo_appear_in_one_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yml").write_text(SWEEP)
    refused = srl("sweep", "mine.yml", "--out", "runs")
    assert refused.status == 2
    assert "line 3, key algos: names Python code, 'sb3_contrib:TRPO'" in refused.err
    done = srl("sweep", "mine.yml", "--out", "runs", "--trust-config", "--jobs", 2)
    assert done.status == 0, done.err
    folder = tmp_path / "runs" / "CartPole-v1" / "sb3_contrib-TRPO" / "none" / "seed-0"
    spec = json.loads((folder / "spec.json").read_text())
    assert spec["algo"] == TRPO
    assert spec["hyperparams"]["n_steps"] == 32
    assert "n_epochs" not in spec["hyperparams"]
    assert spec["stacked"] is False
    assert json.loads((folder / "versions.json").read_text())["packages"]["sb3_contrib"]
    evaluations = RunDirectory(folder).read_evaluations()
    assert evaluations["timesteps"].tolist() == [32, 64]
    header = (tmp_path / "runs" / "table.csv").read_text()
    assert {"sppo", TRPO, "trpo-slow"} <= set(header.replace("\n", ",").split(","))
    report = srl("report", "runs", "--reps", 100)
    assert report.status == 0, report.err
    statistics = json.loads((tmp_path / "runs" / "statistics.json").read_text())
    pairs = {(one["column"], one["baseline"]) for one in statistics["comparisons"]}
    assert pairs == {("SPPO", TRPO), ("SPPO", "trpo-slow")}
    assert "6 done" in srl("status", "runs").out
    assert srl("enjoy", folder).err.count("--trust-config") == 1
    assert srl("enjoy", folder, "--trust-config", "--episodes", 1).status == 0


@pytest.mark.slow
def test_same_seed_gives_identical_runs(tmp_path):
    # DQN draws actions, minibatches and exploration from three generators
    words = (
        "train",
        "--algo",
        "stable_baselines3:DQN",
        "--env",
        "CartPole-v1",
        "--timesteps",
        300,
        "--seed",
        5,
    )
    words = (
        *words,
        "--eval-freq",
        100,
        "--eval-episodes",
        2,
        "--hyperparams",
        "learning_starts=50",
        "n_envs=1",
    )
    # Another process, with a different state of the global generators
    assert srl(*words, "--out", tmp_path / "a").status == 0
    done = command(*words, "--out", tmp_path / "b")
    assert done.returncode == 0, done.stderr
    for name in ("model.zip", "evaluations.npz", "best_model.zip"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    assert "finished. Nothing to do" in srl(*words, "--out", tmp_path / "a").out
    refused = srl("train", "--extend-to", 400, tmp_path / "a", "--trust-config")
    assert refused.status == 2
    assert "final_state.npz: missing" in refused.err
    assert "algorithms of other packages" in refused.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compile": "yes"}, "--compile yes: must be auto, on, off"),
        ({"precision": "bf16"}, f"precision='bf16': {TRPO} computes in float32. Leave precision out"),
        ({"bins": 3}, f"bins=3: {TRPO} does not discretize actions. Leave bins out"),
    ],
)
def test_options_without_effect_on_own_algorithms_are_rejected(options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        make_run_spec(TRPO, "CartPole-v1", 0, **options)


def test_compiling_an_own_algorithm_is_noted():
    spec, notes = make_run_spec(TRPO, "CartPole-v1", 0, compile="on")
    assert not spec.compile_update
    assert f"{TRPO} is not compiled: it is of another package." in notes


def test_compare_option_can_name_own_algorithms(tmp_path):
    for algo in ("ppo", TRPO):
        for seed in (0, 1):
            spec, _ = make_run_spec(algo, "CartPole-v1", seed, n_timesteps=64, device="cpu")
            (tmp_path / spec.path).mkdir(parents=True)
            (tmp_path / spec.path / "spec.json").write_text(spec_text(spec))
            (tmp_path / spec.path / "status.json").write_text(json.dumps(asdict(Status("done", 64, 64))))
            np.savez(tmp_path / spec.path / "evaluations.npz", timesteps=[64], results=[[1.0, 2.0]])
    for pair, name in ((f"{TRPO}:ppo", f"{TRPO} over PPO"), (f"ppo:{TRPO}", f"PPO over {TRPO}")):
        (found,) = make_report(tmp_path, reps=100, compare=[pair]).comparisons
        assert found.name == name


def test_commands_that_read_results_import_no_custom_code(tmp_path, monkeypatch):
    spec, _ = make_run_spec(TRPO, "CartPole-v1", 0, n_timesteps=64, device="cpu")
    text = spec.model_dump_json().replace("sb3_contrib", "spy")
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "spec.json").write_text(text)
    np.savez(
        tmp_path / "runs" / "a" / "evaluations.npz", timesteps=np.array([64]), results=np.array([[1.0, 2.0]])
    )
    (tmp_path / "spy.py").write_text("open('imported', 'w')\nfrom sb3_contrib import TRPO\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for words in (("status", "runs"), ("clean", "runs"), ("report", "runs", "--format", "json")):
        done = srl(*words)
        assert done.status == 0, done.err
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--algo", "sb3_contrib:TRPPO"], "Did you mean trpo"),
        (["--algo", "no_such_package:PPO"], "needs the module 'no_such_package'"),
        (["--algo", "sb3_contrib.common:maskable"], "is not a subclass of"),
        (["--algo", TRPO, "--hyperparams", "n_step=3"], "Did you mean n_steps"),
        (["--algo", TRPO, "--beta", 3], "has no such argument"),
        (["--algo", TRPO, "--hyperparams", "seed=3"], "has no such argument"),
        (["--algo", TRPO, "--hyperparams", "n_steps=many"], "cannot train on CartPole-v1"),
        (["--algo", TRPO, "--hyperparams", "policy=NoPolicy"], "cannot train on CartPole-v1"),
        (["--algo", TRPO, "--bins", 3], "bins"),
    ],
)
def test_mistake_is_one_line_error_and_writes_nothing(words, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = srl("train", "--env", "CartPole-v1", "--timesteps", 64, *words)
    assert outcome.status == 2, outcome.err
    assert says in outcome.err
    assert outcome.err.count("\n") == 1
    assert contents(tmp_path) == {}
