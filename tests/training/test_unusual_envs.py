"""Single and population runs in environments with unusual behavior."""

import itertools
import json
import re
import time
from functools import partial

import numpy as np
import pytest
import yaml

from srl import SPPO
from srl.config.sweep import load_sweep
from srl.envs import replay
from srl.report.scores import read_scores
from srl.rundir.checkpoints import checkpoint_steps
from srl.rundir.directory import RunDirectory
from srl.training.callbacks import Episodes, EvaluationLog
from srl.training.logs import make_logger
from srl.training.run import train_run
from srl.training.stacked.train import train_population
from srl.training.stacked.update import Updater
from tests.envs.unusual_envs import UNUSUAL
from tests.small_runs import SMALL_WORDS, small_spec, srl
from tests.training.test_resume import interrupt_at, outcome, troubles

HOW = pytest.mark.parametrize("how", ["alone", "population"])


def unusual(env, seed=1, **changes):
    """Return the spec of a run with ten updates of 32 steps."""
    return small_spec(
        env=f"{UNUSUAL}{env}-v0", seed=seed, **({"n_timesteps": 320, "eval_freq": 96} | changes)
    )


class Training:
    """One single run, or two runs in a population, in a folder."""

    def __init__(self, how, env, folder, **changes):
        self.specs = [unusual(env, seed, **changes) for seed in ((1,) if how == "alone" else (1, 2))]
        self.paths = [folder / str(spec.seed) for spec in self.specs]
        self.how = how

    def train(self, **options):
        if self.how == "alone":
            return [train_run(self.specs[0], self.paths[0], **options)]
        return train_population(self.specs, self.paths, **options)

    def interrupt_at(self, n):
        """Train with a checkpoint after each update until the n-th update starts."""
        owner, name = (SPPO, "train") if self.how == "alone" else (Updater, "update")
        interrupt_at(n, owner, name, partial(self.train, checkpoint_every=0))

    @property
    def outcomes(self):
        return [outcome(path) for path in self.paths]

    @property
    def evaluations(self):
        return [RunDirectory(path).read_evaluations() for path in self.paths]


@pytest.mark.slow
@HOW
def test_run_has_no_checkpoints_during_episodes_longer_than_the_record(how, tmp_path, monkeypatch):
    monkeypatch.setattr(replay, "MAX_RECORDED_STEPS", 100)
    whole, run = (Training(how, "Long", tmp_path / name) for name in ("whole", "run"))
    whole.train()
    run.interrupt_at(5)  # in step 160; no step since step 96 could be recorded
    assert [checkpoint_steps(path) for path in run.paths] == [[96, 64]] * len(run.paths)
    for path in run.paths:
        (note,) = troubles(RunDirectory(path).read_status())
        assert "no checkpoints are written" in note
        assert "longer than 100 steps" in note
    run.interrupt_at(4)  # in step 224; the next episode started in step 151
    assert [checkpoint_steps(path) for path in run.paths] == [[192, 160]] * len(run.paths)
    assert {status.resumed_from for status in run.train()} == {192}
    assert run.outcomes == whole.outcomes


@HOW
def test_endless_evaluation_is_truncated_with_a_note(how, tmp_path):
    training = Training(how, "NeverEnds", tmp_path, eval_max_episode_steps=50, n_eval_episodes=3)
    for status in training.train():
        assert status.state == "done"
        (note,) = troubles(status)
        assert "evaluation at step 96: 3 of 3 episodes were truncated after 50 steps" in note
        assert "--eval-max-episode-steps" in note
    for evaluations in training.evaluations:
        assert np.array_equal(evaluations["ep_lengths"], np.full((4, 3), 50))
        assert np.array_equal(evaluations["results"], np.full((4, 3), 50.0))
        assert np.array_equal(evaluations["reached_max_steps"], np.full((4, 3), True))
    (note,) = read_scores(tmp_path).table.notes
    n_runs = len(training.paths)
    assert (
        f"{12 * n_runs} evaluation episodes in {n_runs} of {n_runs} runs were truncated after 50 steps"
        in note
    )


@HOW
def test_only_truncated_episodes_are_recorded_as_truncated(how, tmp_path):
    limited, free = (
        Training(how, "RarelyEnds", tmp_path / str(limit), eval_max_episode_steps=limit)
        for limit in (20, 10_000)
    )
    limited.interrupt_at(8)
    limited.train()
    free.train()
    n_truncated = 0
    for evaluations, others in zip(limited.evaluations, free.evaluations, strict=True):
        truncated = evaluations["reached_max_steps"]
        assert np.array_equal(truncated, evaluations["ep_lengths"] == 20)
        assert evaluations["ep_lengths"].max() == 20 < others["ep_lengths"].max()
        assert "reached_max_steps" not in others
        n_truncated += truncated.sum()
    assert 0 < n_truncated < 8 * len(limited.paths)


@HOW
def test_episodes_that_a_wrapper_truncates_count(how, tmp_path):
    wrapper = {"gymnasium.wrappers:TimeLimit": {"max_episode_steps": 20}}
    overrides = {"env_wrapper": [wrapper]}
    training = Training(how, "RarelyEnds", tmp_path, eval_max_episode_steps=100, overrides=overrides)
    training.train()
    for evaluations, path in zip(training.evaluations, training.paths, strict=True):
        assert evaluations["ep_lengths"].max() == 20
        assert np.array_equal(evaluations["results"], evaluations["ep_lengths"])
        assert "reached_max_steps" not in evaluations
        records = np.loadtxt(path / "monitor" / "0.monitor.csv", delimiter=",", skiprows=2)
        assert records[:, 1].max() == 20
        assert np.array_equal(records[:, 0], records[:, 1])
        assert 300 < records[:, 1].sum() <= 320


@pytest.mark.parametrize("env", ["CartPole-v1", f"{UNUSUAL}Tidy-v0"])
def test_unreached_limit_does_not_change_results(env, tmp_path):
    for limit in (500, 10_000):
        train_run(small_spec(env=env, eval_max_episode_steps=limit), tmp_path / str(limit))
    assert outcome(tmp_path / "500") == outcome(tmp_path / "10000")


@pytest.mark.slow
@HOW
def test_progress_of_an_evaluation_is_reported(how, tmp_path, monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    told = []
    training = Training(how, "NeverEnds", tmp_path, eval_max_episode_steps=50, n_timesteps=32)
    training.train(tell=told.append)
    texts = [status.evaluation for one in told for status in (one if how == "population" else [one])]
    assert any(re.fullmatch(r"[01]/[24] episodes, \d+ steps", text) for text in texts)
    assert {RunDirectory(path).read_status().evaluation for path in training.paths} == {""}


@pytest.mark.slow
def test_evaluation_limit_is_an_option_of_commands_and_sweep_files(tmp_path):
    env = f"{UNUSUAL}NeverEnds-v0"
    words = ("--timesteps", 32, *SMALL_WORDS, "--device", "cpu")
    run = ("--algo", "ppo", "--env", env, "--out", tmp_path / "run", *words)
    ran = srl("train", *run, "--eval-max-episode-steps", 30)
    assert ran.status == 0
    assert "2 of which were truncated after 30 steps (--eval-max-episode-steps)" in ran.out
    assert "2 of 2 episodes were truncated after 30 steps" in ran.err
    mine = tmp_path / "mine.yml"
    sweep = {"envs": [env], "algos": ["ppo"], "noise": ["none"], "seeds": [1], "eval_max_episode_steps": 40}
    mine.write_text(yaml.safe_dump(sweep))
    assert load_sweep(mine, trust=True, eval_max_episode_steps=20).eval_max_episode_steps == 20
    ran = srl("sweep", mine, "--trust-config", "--out", tmp_path / "sweep", "--jobs", 1, *words)
    assert ran.status == 0
    (spec,) = (tmp_path / "sweep").rglob("spec.json")
    assert json.loads(spec.read_text())["eval_max_episode_steps"] == 40
    assert np.all(RunDirectory(spec.parent).read_evaluations()["ep_lengths"] == 40)


def test_evaluation_limit_below_one_is_rejected(tmp_path):
    mine = tmp_path / "mine.yml"
    mine.write_text("{envs: [CartPole-v1], algos: [ppo], noise: [none], seeds: [1]}")
    option = ("--eval-max-episode-steps", 0, "--out", tmp_path / "run")
    for words in (("sweep", mine), ("train", "--algo", "ppo", "--env", "CartPole-v1")):
        ran = srl(*words, *option)
        assert ran.status == 2
        assert "eval-max-episode-steps" in ran.err.replace("_", "-")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@HOW
@pytest.mark.parametrize("env", ["Success", "NumpySuccess"])
def test_unreported_success_counts_as_no_success(how, env, tmp_path):
    whole, run = (Training(how, env, tmp_path / name, n_eval_episodes=5) for name in ("whole", "run"))
    whole.train()
    run.interrupt_at(8)
    assert {status.resumed_from for status in run.train()} == {224}
    assert run.outcomes == whole.outcomes
    for evaluations in run.evaluations:
        successes = evaluations["successes"]
        assert successes.shape == evaluations["results"].shape == (4, 5)
        assert successes.dtype == bool
        assert 0 < successes.sum() < successes.size


def test_evaluations_before_the_first_reported_success_record_none(tmp_path):
    log = EvaluationLog(small_spec(), tmp_path, print)
    logger = make_logger(tmp_path)
    for step, infos in ((1, [{}, {}]), (2, [{}, {"is_success": True}]), (3, [{"is_success": None}, {}])):
        episodes = Episodes()
        assert not episodes.add({"is_success": True}, None)  # a lost life
        for info in infos:
            assert episodes.add({"episode": {"r": 1.0, "l": 3}, **info}, None)
        log.add(step, episodes, logger)
        with np.load(tmp_path / "evaluations.npz") as data:
            assert ("successes" in data) == (step > 1)
    with np.load(tmp_path / "evaluations.npz") as data:
        assert data["successes"].tolist() == [[False, False], [False, True], [False, False]]
    logger.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*share an object")
@pytest.mark.parametrize(
    ("how", "kind", "overrides"),
    [
        ("alone", "", {}),
        ("population", "", {}),
        ("alone", "Box", {"beta": 0.0}),
        ("alone", "Parts", {"policy": "MultiInputPolicy"}),
    ],
    ids=["MultiDiscrete", "MultiDiscrete in a population", "Box", "Dict"],
)
def test_environment_that_modifies_shared_arrays_does_not_change_results(how, kind, overrides, tmp_path):
    overrides = {"n_envs": 2, "n_steps": 16} | overrides
    tidy, untidy = (
        Training(how, f"{name}{kind}", tmp_path / name, overrides=overrides) for name in ("Tidy", "Untidy")
    )
    tidy.train()
    untidy.interrupt_at(6)
    for status in untidy.train():
        assert status.resumed_from == 160
        assert troubles(status) == []
    assert untidy.outcomes == tidy.outcomes


@pytest.mark.slow
@HOW
@pytest.mark.parametrize("env", ["LegacyRandom", "PythonRandom"])
def test_run_resumes_with_other_kinds_of_random_generators(how, env, tmp_path):
    whole, run = (Training(how, env, tmp_path / name) for name in ("whole", "run"))
    whole.train()
    run.interrupt_at(6)
    for status in run.train():
        assert status.resumed_from == 160
        assert troubles(status) == []
    assert run.outcomes == whole.outcomes


@HOW
@pytest.mark.parametrize("env", ["NoRandom", "RaisingRandom", "SystemRandom", "GlobalState"])
def test_run_with_unsavable_random_generator_trains_without_checkpoints(how, env, tmp_path):
    run = Training(how, env, tmp_path)
    for status in run.train(checkpoint_every=0):
        assert status.state == "done"
        (note,) = troubles(status)
        assert "no checkpoints are written: the state of" in note
        assert "np_random" in note
