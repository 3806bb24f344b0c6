"""A failed member stops with a reason and does not affect the others."""

import re

import pytest
import torch as th

from srl.rundir.directory import RunDirectory
from srl.training import policy_options
from srl.training.stacked import train_population
from srl.training.stacked.train import execute_population
from tests.small_runs import BROKEN, contents, small_spec
from tests.training.broken_envs import BREAKS_FOR_ONE, BreaksForOne
from tests.training.stacked.comparison import assert_same_result, train_alone, train_together
from tests.training.stacked.small_envs import SMALL_ENVS

BAD = BreaksForOne.SEED
#: The seed that breaks is neither the first nor the last.
SEEDS = (0, BAD, 20)


def without_step(reason):
    """Return the reason of a failure without its step."""
    return re.sub(r"( \(at step [\d,]+\))+$", "", reason)


def assert_fails_as_alone(specs, failing, root):
    """Train as a population and alone; check that reasons of failures and results match."""
    paths, statuses = train_together(specs, root)
    alone = train_alone(specs, root)
    for index, (path, status) in enumerate(zip(paths, statuses, strict=True)):
        assert RunDirectory(path).read_status() == status
        assert not RunDirectory(path).in_progress
        theirs = RunDirectory(alone[index]).read_status()
        assert status.state == theirs.state
        assert without_step(status.reason) == without_step(theirs.reason)
        if index in failing:
            assert status.state == "failed"
            assert min(status.started, status.ended) > 0
            assert "\n" not in status.reason
            assert status.reason
            assert "Traceback" in (path / "error.txt").read_text()
            assert not (path / "model.zip").exists()
            if (alone[index] / "evaluations.npz").exists():
                evaluations = [
                    RunDirectory(folder).read_evaluations()["results"] for folder in (path, alone[index])
                ]
                assert (evaluations[0] == evaluations[1]).all()
        else:
            assert status.state == "done"
            assert not (path / "error.txt").exists()
            assert_same_result(path, alone[index])
    return statuses


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env", "normalize"),
    [
        *((env, False) for env in BREAKS_FOR_ONE),
        *((f"{what}ForOne-v0", True) for what in ("NanReward", "InfObservation", "NanInEvaluation")),
    ],
)
def test_member_with_broken_environment_fails_alone(env, normalize, tmp_path):
    specs = [
        small_spec("sppo", BROKEN + env, seed, eval_freq=32, n_eval_episodes=1,
                   overrides={"normalize": normalize})
        for seed in SEEDS
    ]  # fmt: skip
    statuses = assert_fails_as_alone(specs, {1}, tmp_path)
    in_evaluation = "InEvaluation" in env
    assert ("in the evaluation at step" in statuses[1].reason) == in_evaluation


@pytest.mark.parametrize(
    "env", [env for env in BREAKS_FOR_ONE if "InEvaluation" not in env] + ["HugeRewardForOne-v0"]
)
def test_failed_member_reports_the_same_step_as_its_single_run(env, tmp_path):
    specs = [small_spec("sppo", BROKEN + env, seed, overrides=dict(n_envs=2)) for seed in SEEDS]
    _, statuses = train_together(specs, tmp_path)
    (alone,) = train_alone(specs[1:2], tmp_path)
    assert statuses[1].reason == RunDirectory(alone).read_status().reason


@pytest.mark.slow
@pytest.mark.parametrize("env", ["NanRewardForOne-v0", "InfObservationForOne-v0", "RaisesForOne-v0"])
def test_broken_environment_of_a_member_is_named(env, tmp_path):
    # With two environments, the second one of the previous run breaks
    specs = [
        small_spec("sa2c", BROKEN + env, seed, n_timesteps=160, overrides=dict(n_envs=2, n_steps=8))
        for seed in (0, BAD - 1, 20)
    ]
    statuses = assert_fails_as_alone(specs, {1}, tmp_path)
    assert "in environment 1" in statuses[1].reason or "broken | for" in statuses[1].reason


@pytest.mark.slow
@pytest.mark.parametrize("normalize", [False, True], ids=["raw", "normalized"])
@pytest.mark.parametrize("n_timesteps", [32, 96], ids=["in the last update", "in an earlier update"])
def test_member_with_non_finite_network_fails_alone(n_timesteps, normalize, tmp_path):
    specs = [
        small_spec("sppo", BROKEN + "HugeRewardForOne-v0", seed, n_timesteps=n_timesteps,
                   overrides={"normalize": {"norm_reward": False} if normalize else False})
        for seed in SEEDS
    ]  # fmt: skip
    statuses = assert_fails_as_alone(specs, {1}, tmp_path)
    assert "the network is lost" in statuses[1].reason


def test_ppo_member_with_too_large_learning_rate_fails_alone(tmp_path):
    specs = [
        small_spec("ppo", SMALL_ENVS + "Levers-v0", seed, n_timesteps=160, overrides={"learning_rate": rate})
        for seed, rate in ((0, 1e-3), (1, 1e30), (2, 1e-3))
    ]
    assert_fails_as_alone(specs, {1}, tmp_path)


def test_a2c_member_with_too_large_learning_rate_fails_alone(tmp_path):
    specs = [
        small_spec("sa2c", SMALL_ENVS + "Dials-v0", seed, n_timesteps=160, overrides={"learning_rate": rate})
        for seed, rate in ((0, 1e-3), (1, 1e30), (2, 1e-3))
    ]
    assert_fails_as_alone(specs, {1}, tmp_path)


@pytest.mark.parametrize(
    "env", ["NanReward-v0", "InfObservation-v0", "NanInEvaluation-v0", "Raises-v0", "HugeReward-v0"]
)
def test_all_members_can_fail(env, tmp_path):
    changes = dict(eval_freq=4) if env == "NanInEvaluation-v0" else {}
    specs = [small_spec("sppo", BROKEN + env, seed, **changes) for seed in (1, 2)]
    assert_fails_as_alone(specs, {0, 1}, tmp_path)


def test_environment_that_cannot_be_created_fails_all_members(tmp_path):
    specs = [small_spec("sppo", BROKEN + "CannotBeMade-v0", seed) for seed in (1, 2)]
    statuses = assert_fails_as_alone(specs, {0, 1}, tmp_path)
    assert all("no simulator here" in status.reason for status in statuses)


def test_two_members_that_fail_in_the_same_step_report_their_own_reasons(tmp_path):
    specs = [small_spec("sppo", SMALL_ENVS + "TwoWays-v0", seed) for seed in (10, 20, 30)]
    assert_fails_as_alone(specs, {0, 1}, tmp_path)


def test_failed_member_can_be_retrained_alone(tmp_path):
    specs = [small_spec("sppo", BROKEN + "NanRewardForOne-v0", seed) for seed in SEEDS]
    paths, _ = train_together(specs, tmp_path)
    done = [contents(path) for path in (paths[0], paths[2])]
    # The others are finished and stay unmodified; the failed member fails again
    statuses = train_population(specs, paths)
    assert [status.state for status in statuses] == ["done", "failed", "done"]
    for path, before in zip((paths[0], paths[2]), done, strict=True):
        after = contents(path)
        assert {name: after[name] for name in after if name != "run.lock"} == {
            name: before[name] for name in before if name != "run.lock"
        }


def test_policy_that_cannot_be_stacked_fails_all_members_with_advice(tmp_path, monkeypatch):
    # Simulate another activation function
    monkeypatch.setitem(policy_options.ACTIVATIONS, "tanh", th.nn.LogSigmoid)
    overrides = dict(policy_kwargs=dict(activation_fn="tanh"))
    specs = [small_spec("sppo", seed=seed, overrides=overrides) for seed in (1, 2)]
    _, statuses = train_together(specs, tmp_path)
    for status in statuses:
        assert status.state == "failed"
        assert status.reason == (
            "A population cannot stack LogSigmoid. Train these runs with --population off."
        )


def test_population_exit_status_tells_whether_all_members_finished(tmp_path):
    fine = [small_spec(seed=seed) for seed in (1, 2)]
    assert execute_population(fine, [tmp_path / "fine" / str(seed) for seed in (1, 2)], "") == 0
    specs = [small_spec("sppo", BROKEN + "NanRewardForOne-v0", seed) for seed in SEEDS]
    assert execute_population(specs, [tmp_path / "failing" / str(seed) for seed in SEEDS], "") == 1


def test_population_in_a_folder_of_another_run_exits_1_with_message(tmp_path, capsys):
    specs = [small_spec(seed=seed) for seed in (1, 2)]
    (other,) = train_alone([small_spec(seed=9)], tmp_path)
    before = contents(other)
    assert execute_population(specs, [tmp_path / "mine", other], "") == 1
    assert "holds a run of another spec" in capsys.readouterr().err
    assert contents(other) == before
