"""Training of a single run and the files that it writes."""

import csv
import json
import pickle

import numpy as np
import pytest
import torch as th
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import load_results
from stable_baselines3.common.vec_env import VecNormalize

from srl import SPPO
from srl.config.spec import RunSpec
from srl.envs import make_train_env
from srl.envs.seeding import Stream, seed_globals, seed_numpy, seed_sequence
from srl.rundir.directory import RunDirectory
from srl.training import run
from srl.training.attempt import RunFailed
from srl.training.run import execute_run, train_run
from srl.training.versions import RECORDED_PACKAGES
from tests.small_runs import BROKEN, contents, small_spec


def parameters(path, cls=SPPO):
    return cls.load(path / "model.zip", device="cpu").policy.state_dict()


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert th.equal(ours[name], theirs[name]), name


def evaluations(path):
    with np.load(path / "evaluations.npz", allow_pickle=False) as data:
        return dict(data)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run with noise, normalization, two environments and schedules."""
    path = tmp_path_factory.mktemp("finished") / "run"
    spec = small_spec(
        noise="flip:0.1",
        overrides=dict(normalize=True, n_envs=2, n_steps=16, learning_rate="lin_1e-3", clip_range="lin_0.2"),
    )
    told = []
    status = train_run(spec, path, command="srl train of a test", tell=told.append)
    assert told[-1].timesteps == 64
    assert status.state == "done"
    return spec, path


def test_run_directory_contains_exactly_the_documented_files(finished):
    names = {
        "events" if file.name.startswith("events.out.tfevents.") else file.name
        for file in finished[1].iterdir()
    }
    assert names == {
        "spec.json", "status.json", "versions.json", "monitor", "progress.csv", "events", "evaluations.npz",
        "model.zip", "vecnormalize.pkl", "best_model.zip", "best_vecnormalize.pkl", "final_state.npz",
        "run.lock",
    }  # fmt: skip


def test_saved_spec_matches_the_run(finished):
    spec, path = finished
    assert RunDirectory(path).read_spec() == spec
    on_disk = json.loads((path / "spec.json").read_text())
    assert on_disk["hyperparams"]["learning_rate"] == "lin_0.001"
    assert on_disk["hyperparams"]["vf_coef"] == 0.5  # SB3's defaults are recorded too
    assert RunSpec(**on_disk) == spec


def test_versions_and_commit_are_recorded(finished):
    versions = json.loads((finished[1] / "versions.json").read_text())
    assert versions["command"] == "srl train of a test"
    assert versions["packages"].keys() == set(RECORDED_PACKAGES)
    assert versions["packages"]["torch"] == th.__version__ or versions["packages"]["torch"] in th.__version__
    assert len(versions["commit"].removesuffix("-dirty")) == 40


def test_status_records_completion_and_times(finished):
    status = RunDirectory(finished[1]).read_status()
    assert (status.state, status.timesteps, status.n_timesteps, status.reason) == ("done", 64, 64, "")
    assert min(status.started, status.updated, status.ended) > 0
    assert status.steps_per_second > 0
    assert status.pid
    assert status.host


def test_evaluations_have_the_format_of_eval_callback(finished):
    data = evaluations(finished[1])
    assert data.keys() == {"timesteps", "results", "ep_lengths"}
    assert data["timesteps"].tolist() == [32, 64]
    assert data["results"].shape == data["ep_lengths"].shape == (2, 2)


def test_evaluations_use_raw_rewards_without_noise(finished):
    # The reward of CartPole is 1 per step
    data = evaluations(finished[1])
    assert np.array_equal(data["results"], data["ep_lengths"])


def test_monitor_records_raw_returns_of_each_environment(finished):
    assert sorted(file.name for file in (finished[1] / "monitor").iterdir()) == [
        "0.monitor.csv",
        "1.monitor.csv",
    ]
    results = load_results(str(finished[1] / "monitor"))
    assert len(results) > 0
    assert np.array_equal(results["r"], results["l"])


def test_best_model_is_from_the_best_evaluation_and_affects_no_other_file(tmp_path, monkeypatch):
    spec = small_spec(n_timesteps=160, overrides=dict(normalize=True, learning_rate=0.01))
    saved = []
    save = run.save

    def spy(path, model, normalize, *, best=False):
        saved.append((model.num_timesteps, best))
        save(path, model, normalize, best=best)

    monkeypatch.setattr(run, "save", spy)
    train_run(spec, tmp_path / "with")
    means = evaluations(tmp_path / "with")["results"].mean(axis=1)
    rising = [32 * (i + 1) for i in range(5) if means[i] > means[:i].max(initial=-np.inf)]
    assert saved == [*((steps, True) for steps in rising), (160, False)]
    assert rising[-1] < 160, "choose a seed whose last evaluation is not its best"
    best = SPPO.load(tmp_path / "with" / "best_model.zip", device="cpu")
    assert best.num_timesteps == rising[-1]
    statistics = pickle.loads((tmp_path / "with" / "best_vecnormalize.pkl").read_bytes())
    assert statistics.obs_rms.count == pytest.approx(rising[-1] + 1, abs=0.01)
    monkeypatch.setattr(run, "save", lambda *args, best=False: None if best else save(*args))
    train_run(spec, tmp_path / "without")
    for name in ("model.zip", "vecnormalize.pkl", "evaluations.npz"):
        assert (tmp_path / "with" / name).read_bytes() == (tmp_path / "without" / name).read_bytes(), name


def test_progress_is_logged_as_csv_and_for_tensorboard(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with (finished[1] / "progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {"rollout/ep_rew_mean", "eval/mean_reward", "train/reverse_loss"} <= rows[-1].keys()
    events = EventAccumulator(str(finished[1]))
    events.Reload()
    steps = [event.step for event in events.Scalars("eval/mean_reward")]
    assert steps == [32, 64]


def test_normalization_statistics_load_with_sb3(finished):
    venv = VecNormalize.load(str(finished[1] / "vecnormalize.pkl"), make_vec_env("CartPole-v1"))
    assert venv.obs_rms.count > 60
    assert venv.gamma == finished[0].hyperparams.gamma
    with (finished[1] / "vecnormalize.pkl").open("rb") as file:
        assert type(pickle.load(file)) is VecNormalize


def test_saved_model_predicts_and_keeps_its_schedules(finished):
    model = SPPO.load(finished[1] / "model.zip", device="cpu")
    assert (model.alpha, model.beta, model.z) == (0.5, 1.0, -1.0)
    assert [model.lr_schedule(left) for left in (1.0, 0.5, 0.0)] == [0.001, 0.0005, 0.0]
    assert [model.clip_range(left) for left in (1.0, 0.5, 0.0)] == [0.2, 0.1, 0.0]
    model.predict(np.zeros(4, dtype=np.float32))


def test_same_spec_gives_identical_model_evaluations_and_monitor(finished, tmp_path):
    spec, path = finished
    np.random.seed(5)
    th.manual_seed(5)
    train_run(spec, tmp_path)
    assert_same(parameters(tmp_path), parameters(path))
    for name, value in evaluations(path).items():
        assert np.array_equal(evaluations(tmp_path)[name], value)
    for ours, theirs in zip(
        *(load_results(str(folder / "monitor"))["r"] for folder in (tmp_path, path)), strict=True
    ):
        assert ours == theirs


@pytest.mark.parametrize(
    ("algo", "env"),
    [("sppo", "CartPole-v1"), ("sa2c", "CartPole-v1"), ("sppo", BROKEN + "GlobalRandom-v0")],
)
def test_evaluation_does_not_affect_training(algo, env, tmp_path):
    trained = []
    for eval_freq in (8, 64, 1000):
        spec = small_spec(algo, env, eval_freq=eval_freq, overrides={"normalize": True, "n_steps": 16})
        train_run(spec, tmp_path / str(eval_freq))
        trained.append(SPPO.load(tmp_path / str(eval_freq) / "model.zip", device="cpu").policy.state_dict())
    assert len(evaluations(tmp_path / "8")["timesteps"]) == 8
    assert_same(trained[0], trained[1])
    assert_same(trained[0], trained[2])


def test_seed_noise_and_loss_affect_the_result(tmp_path):
    changed = [dict(), dict(seed=1), dict(noise="gaussian:0.5"), dict(overrides={"beta": 5.0})]
    values = []
    for index, changes in enumerate(changed):
        train_run(small_spec(**changes), tmp_path / str(index))
        values.append(parameters(tmp_path / str(index))["value_net.weight"].numpy().tobytes())
        values.append(parameters(tmp_path / str(index))["action_net.weight"].numpy().tobytes())
    assert len(set(values[1::2])) == len(changed)


@pytest.mark.parametrize("noise", ["none", "gaussian:0.5"])
def test_reward_noise_affects_training_but_not_evaluations(noise, tmp_path):
    train_run(small_spec(env=BROKEN + "NoisyScore-v0", noise=noise), tmp_path)
    assert np.all(evaluations(tmp_path)["results"] == 0)
    assert np.all(load_results(str(tmp_path / "monitor"))["r"] == 0)
    with (tmp_path / "progress.csv").open() as file:
        losses = [float(row["train/value_loss"]) for row in csv.DictReader(file) if row["train/value_loss"]]
    assert (max(losses) > 0.2) == (noise != "none")


@pytest.mark.parametrize(("algo", "theirs"), [("ppo", PPO), ("a2c", A2C)])
def test_baseline_run_is_bitwise_identical_to_sb3(algo, theirs, tmp_path):
    overrides = dict(normalize=True, gamma=0.9)
    kwargs = dict(n_steps=32, gamma=0.9)
    if algo == "ppo":
        overrides |= dict(gae_lambda=0.8, learning_rate="lin_0.001", clip_range="lin_0.2")
        kwargs |= dict(batch_size=32, n_epochs=1, gae_lambda=0.8)
        kwargs |= dict(learning_rate=lambda left: left * 0.001, clip_range=lambda left: left * 0.2)
    spec = small_spec(algo, overrides=overrides)
    train_run(spec, tmp_path)
    env = make_train_env(spec.env_spec())
    seed_globals(seed_sequence(spec.seed, Stream.WEIGHTS))
    model = theirs("MlpPolicy", env, device="cpu", **kwargs)
    seed_globals(seed_sequence(spec.seed, Stream.ACTIONS))
    seed_numpy(seed_sequence(spec.seed, Stream.MINIBATCHES))
    model.learn(64)
    assert_same(parameters(tmp_path, theirs), model.policy.state_dict())


@pytest.mark.parametrize(
    ("env", "changes", "reason"),
    [
        ("NanReward-v0", {}, "The environment gave a non-finite reward (NaN) in environment 0. (at step 40)"),
        (
            "NanReward-v0",
            dict(n_timesteps=128, overrides={"n_envs": 2}),
            "The environment gave a non-finite reward (NaN) in environment 0. (at step 80)",
        ),
        (
            "InfObservation-v0",
            {},
            "The environment gave a non-finite observation (infinite) in environment 0. (at step 36)",
        ),
        (
            "NanInEvaluation-v0",
            dict(eval_freq=4),
            "The environment gave a non-finite reward (NaN) in environment 0. (in the evaluation at step 8)",
        ),
        ("Raises-v0", {}, "KeyError: "),
    ],
)
@pytest.mark.parametrize("normalize", [False, True])
def test_non_finite_number_fails_the_run_and_names_the_step(env, changes, reason, normalize, tmp_path):
    changes = dict(eval_freq=1000) | changes
    changes["overrides"] = {"normalize": normalize} | changes.get("overrides", {})
    with pytest.raises(RunFailed) as error:
        train_run(small_spec(env=BROKEN + env, **changes), tmp_path)
    assert str(error.value).startswith(reason)
    status = RunDirectory(tmp_path).read_status()
    assert status.state == "failed"
    assert status.reason == str(error.value)
    assert "\n" not in status.reason
    assert status.ended > 0
    assert "Traceback" in (tmp_path / "error.txt").read_text()
    assert not (tmp_path / "model.zip").exists()


@pytest.mark.parametrize("n_timesteps", [32, 96], ids=["in the last update", "in an earlier update"])
def test_non_finite_network_fails_the_run(n_timesteps, tmp_path):
    spec = small_spec(env=BROKEN + "HugeReward-v0", n_timesteps=n_timesteps)
    with pytest.raises(RunFailed, match=r"loss is .* after an update"):
        train_run(spec, tmp_path)
    assert RunDirectory(tmp_path).read_status().state == "failed"


def test_failed_run_can_be_retrained_and_leaves_no_error_file(tmp_path, monkeypatch):
    spec = small_spec()
    with monkeypatch.context() as broken:
        broken.setattr(SPPO, "train", lambda self: 1 / 0)
        with pytest.raises(RunFailed, match=r"ZeroDivisionError: division by zero \(at step 32\)"):
            train_run(spec, tmp_path)
    assert RunDirectory(tmp_path).compare(spec) == "unfinished"
    assert train_run(spec, tmp_path).state == "done"
    assert not (tmp_path / "error.txt").exists()
    assert len(list(tmp_path.glob("events.*"))) == 1


def test_error_without_text_names_the_line_that_raised_it(tmp_path):
    # SB3's Monitor has added what this wrapper wants to add
    spec = small_spec(overrides={"env_wrapper": "gymnasium.wrappers.RecordEpisodeStatistics"})
    with pytest.raises(
        RunFailed, match=r"AssertionError: assert .* not in info \(common.py, line \d+\) \(at step"
    ):
        train_run(spec, tmp_path)


def test_stopped_run_is_marked_and_restarts_without_checkpoints(tmp_path):
    spec = small_spec()

    def stop(status):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_run(spec, tmp_path / "stopped", tell=stop)
    status = RunDirectory(tmp_path / "stopped").read_status()
    assert (status.state, status.reason) == ("interrupted", "stopped by the user")
    train_run(spec, tmp_path / "stopped")
    train_run(spec, tmp_path / "straight")
    assert_same(parameters(tmp_path / "stopped"), parameters(tmp_path / "straight"))


def test_execute_run_returns_1_for_a_folder_of_another_run_unmodified(finished, capsys):
    spec, path = finished
    before = contents(path)
    assert execute_run(path, spec.model_copy(update={"seed": 9}), "") == 1
    assert "holds a run of another spec" in capsys.readouterr().err
    assert contents(path) == before


def test_final_evaluation_follows_the_last_step_for_any_frequency(tmp_path):
    for eval_freq, expected in ((1000, [64]), (40, [40, 64]), (64, [64])):
        train_run(small_spec(eval_freq=eval_freq), tmp_path / str(eval_freq))
        assert evaluations(tmp_path / str(eval_freq))["timesteps"].tolist() == expected
