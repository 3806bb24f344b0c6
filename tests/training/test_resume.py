"""Interrupted runs resume with bitwise-identical results."""

import copy
import csv
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from itertools import zip_longest

import numpy as np
import pytest
from gymnasium.spaces import Discrete
from stable_baselines3.common.buffers import RolloutBuffer

from srl import SA2C, SPPO
from srl.rundir.checkpoints import checkpoint_steps, last_checkpoint
from srl.rundir.directory import RunDirectory
from srl.training.attempt import RunFailed
from srl.training.callbacks import Evaluation
from srl.training.run import train_run
from srl.training.stacked import population
from srl.training.stacked.train import train_population
from srl.training.stacked.update import Updater
from srl.training.versions import package_versions
from tests.envs.unusual_spaces import UNUSUAL
from tests.small_runs import small_spec, until
from tests.training.stacked.comparison import assert_same_result

SPECS = {
    "SPPO": small_spec(n_timesteps=320, overrides={"advantage_flip_prob": 0.1}),
    "DSPPO with noise": small_spec(
        "dsppo", "HalfCheetah-v4", noise="gaussian:0.1", n_timesteps=320, eval_freq=96
    ),
    "DA2C": small_spec("da2c", "LunarLanderContinuous-v3", n_timesteps=320, eval_freq=96),
    "BipedalWalker": small_spec("dppo", "BipedalWalker-v3", n_timesteps=320, eval_freq=160),
    "Pong with flips": small_spec(
        "sppo", "PongNoFrameskip-v4", noise="flip:0.1", n_timesteps=160, eval_freq=160, n_eval_episodes=1
    ),
    "spaces with nonzero start": small_spec("sppo", UNUSUAL + "RoomsStart-v0", n_timesteps=320),
    "Dict observations": small_spec(
        "sppo", UNUSUAL + "DictStart-v0", n_timesteps=320,
        overrides={"policy": "MultiInputPolicy", "normalize": {"norm_obs_keys": ["place"]}},
    ),
    "gSDE": small_spec(
        "ppo", "Pendulum-v1", n_timesteps=320, eval_freq=96, overrides={"use_sde": True, "sde_sample_freq": 4}
    ),
}  # fmt: skip
DAMAGED = small_spec(noise="gaussian:0.1", n_timesteps=320, eval_freq=96, overrides={"normalize": True})
TIMES = ("time/fps", "time/time_elapsed")


class Interrupted(BaseException):
    """Not an Exception, so that no handler catches it."""


def interrupt_at(n, owner, name, action):
    """Run an action that is interrupted by the n-th call of a method."""
    method, calls = getattr(owner, name), []

    def counted(*args, **kwargs):
        calls.append(1)
        if len(calls) == n:
            raise Interrupted
        return method(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, counted)
        with pytest.raises(Interrupted):
            action()


def outcome(folder):
    """Return the results of a run that must not depend on interruptions."""
    with (folder / "progress.csv").open() as file:
        rows = [{key: row[key] for key in row if key not in TIMES} for row in csv.DictReader(file)]
    result = {"progress": rows}
    for name in (
        *("model.zip", "best_model.zip", "evaluations.npz", "vecnormalize.pkl", "best_vecnormalize.pkl"),
    ):
        if (folder / name).exists():
            result[name] = (folder / name).read_bytes()
    for file in sorted((folder / "monitor").iterdir()):
        lines = file.read_text().splitlines()[2:]
        result[file.name] = [line.rpartition(",")[0] for line in lines]
    return result


def differences(folder, other):
    """Return the differences of two outcomes: different files, and the first different line of each log."""
    here, there = outcome(folder), outcome(other)
    found = {}
    for name in here.keys() | there.keys():
        one, two = here.get(name), there.get(name)
        if one != two:
            found[name] = "bytes"
            if isinstance(one, list) and isinstance(two, list):
                pairs = enumerate(zip_longest(one, two))
                found[name] = next((n, *pair) for n, pair in pairs if pair[0] != pair[1])
    return found


def troubles(status):
    """Return the notes of a status except those on how attempts ended."""
    return [note for note in status.notes if not note.startswith("attempt ")]


def algorithm(spec):
    return SPPO if spec.algorithm.family == "ppo" else SA2C


@pytest.mark.slow
@pytest.mark.parametrize("kind", SPECS)
def test_interrupted_run_resumes_with_identical_results(kind, tmp_path):
    spec = SPECS[kind]
    train_run(spec, tmp_path / "whole")
    attempt = partial(train_run, spec, tmp_path / "interrupted", checkpoint_every=0)
    for n in (3, 1, 2):
        interrupt_at(n, algorithm(spec), "train", attempt)
    status = attempt()
    assert status.resumed_from > 0
    assert status.attempts == 4
    assert troubles(status) == []
    assert outcome(tmp_path / "interrupted") == outcome(tmp_path / "whole")
    assert not (tmp_path / "interrupted" / "checkpoints").exists()


def test_run_interrupted_after_its_last_step_resumes_with_identical_results(tmp_path):
    train_run(DAMAGED, tmp_path / "whole")
    attempt = partial(train_run, DAMAGED, tmp_path / "interrupted", checkpoint_every=0)
    interrupt_at(1, Evaluation, "_on_training_end", attempt)
    assert attempt().resumed_from == 320
    assert outcome(tmp_path / "interrupted") == outcome(tmp_path / "whole")


def test_interrupted_run_logs_at_the_same_steps(tmp_path):
    # A2C logs every 100 updates
    spec = small_spec("a2c", n_timesteps=900, eval_freq=500, overrides={"n_steps": 4, "n_envs": 2})
    train_run(spec, tmp_path / "whole")
    attempt = partial(train_run, spec, tmp_path / "interrupted", checkpoint_every=0.02)
    interrupt_at(90, SA2C, "train", attempt)
    status = attempt()
    assert status.resumed_from > 0
    assert outcome(tmp_path / "interrupted") == outcome(tmp_path / "whole")


def test_checkpoints_do_not_change_results(tmp_path):
    spec = SPECS["SPPO"]
    train_run(spec, tmp_path / "without")
    train_run(spec, tmp_path / "with", checkpoint_every=0)
    assert outcome(tmp_path / "with") == outcome(tmp_path / "without")


def test_model_file_is_identical_after_copying_a_rollout_buffer(tmp_path, monkeypatch):
    # The first copy of an instance adds an attribute to its class
    monkeypatch.delattr(RolloutBuffer, "__slotnames__", raising=False)
    train_run(SPECS["SPPO"], tmp_path / "before")
    assert "__slotnames__" not in vars(RolloutBuffer)
    copy.copy(RolloutBuffer(1, Discrete(2), Discrete(2)))
    assert "__slotnames__" in vars(RolloutBuffer)
    train_run(SPECS["SPPO"], tmp_path / "after")
    assert differences(tmp_path / "after", tmp_path / "before") == {}


@pytest.mark.slow
def test_results_do_not_depend_on_the_hash_seed(tmp_path):
    code = (
        "import sys; from pathlib import Path; from srl.training.run import train_run\n"
        "from tests.training.test_resume import SPECS\n"
        "train_run(SPECS['Pong with flips'], Path(sys.argv[1]))"
    )
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", code, str(tmp_path / seed)], check=True, env=environment)
    assert outcome(tmp_path / "1") == outcome(tmp_path / "2")
    headers = [(tmp_path / seed / "progress.csv").read_text().partition("\n")[0] for seed in ("1", "2")]
    assert headers[0] == headers[1]


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A folder with an interrupted run that has two checkpoints, and the same run uninterrupted."""
    folder = tmp_path_factory.mktemp("begun")
    train_run(DAMAGED, folder / "whole")
    interrupt_at(5, SPPO, "train", partial(train_run, DAMAGED, folder / "run", checkpoint_every=0))
    assert checkpoint_steps(folder / "run") == [128, 96]
    return folder


@pytest.fixture
def interrupted(begun, tmp_path):
    """The spec of the run, a copy of the interrupted run, and the uninterrupted run."""
    shutil.copytree(begun / "run", tmp_path / "run")
    return DAMAGED, tmp_path / "run", begun / "whole"


def garble(file):
    file.write_bytes(np.random.default_rng(0).bytes(max(file.stat().st_size, 100)))


def test_damaged_checkpoint_is_named_and_the_previous_one_is_used(interrupted):
    spec, run, whole = interrupted
    garble(run / "checkpoints" / "128.npz")
    status = train_run(spec, run)
    assert status.resumed_from == 96
    assert "128.npz: damaged" in troubles(status)[0]
    assert outcome(run) == outcome(whole)


def test_run_without_intact_checkpoint_restarts_with_a_note(interrupted):
    spec, run, whole = interrupted
    for file in (run / "checkpoints").iterdir():
        garble(file)
    status = train_run(spec, run)
    assert status.resumed_from == 0
    assert len(troubles(status)) == 2
    assert outcome(run) == outcome(whole)


def test_run_started_with_other_package_versions_restarts_with_a_note(interrupted, monkeypatch):
    spec, run, whole = interrupted
    other = {**package_versions(), "torch": "1.0"}
    monkeypatch.setattr("srl.training.versions.package_versions", lambda: other)
    status = train_run(spec, run)
    assert status.resumed_from == 0
    assert "made with another packages" in troubles(status)[0]
    assert outcome(run) == outcome(whole)


def test_failed_run_resumes_from_its_checkpoint(tmp_path, monkeypatch):
    spec = SPECS["SPPO"]
    train_run(spec, tmp_path / "whole")

    def broken(self):
        if self.num_timesteps == 160:
            raise RuntimeError("the machine hiccups")
        return train(self)

    train = SPPO.train
    with monkeypatch.context() as patch:
        patch.setattr(SPPO, "train", broken)
        with pytest.raises(RunFailed, match="hiccups"):
            train_run(spec, tmp_path / "run", checkpoint_every=0)
    status = train_run(spec, tmp_path / "run")
    assert status.resumed_from == 128
    assert not (tmp_path / "run" / "error.txt").exists()
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


@pytest.mark.slow
def test_native_environments_keep_no_checkpoints_with_a_note(tmp_path):
    spec = small_spec(
        "sppo", "PongNoFrameskip-v4", n_timesteps=64, eval_freq=64, n_eval_episodes=1, env_backend="native"
    )
    status = train_run(spec, tmp_path, checkpoint_every=0)
    assert "no checkpoints are written" in troubles(status)[0]
    assert status.state == "done"


MEMBERS = {
    "CartPole": [small_spec(algo, seed=seed, n_timesteps=320) for algo in ("ppo", "sppo") for seed in (1, 2)],
    "HalfCheetah": [
        small_spec("dsppo", "HalfCheetah-v4", seed=seed, noise=noise, n_timesteps=256, eval_freq=96)
        for seed, noise in ((1, "none"), (2, "gaussian:0.1"))
    ],
    "A2C": [
        small_spec("dsa2c", "LunarLanderContinuous-v3", seed=seed, n_timesteps=256, eval_freq=96)
        for seed in (1, 2)
    ],
    "variants": [
        small_spec("sppo", n_timesteps=256, overrides=changes)
        for changes in (
            {"reverse_loss": "mae"},
            {"importance_weighting": False, "advantage_flip_prob": 0.1},
            {"policy_kwargs": {"optimizer_kwargs": {"eps": 1e-2, "betas": [0.8, 0.99]}}},
            {"clip_range_vf": "lin_0.2", "reverse_loss": "mae"},
        )
    ],
}


def folders(root, specs):
    return [root / str(place) for place in range(len(specs))]


@pytest.mark.slow
@pytest.mark.parametrize("kind", MEMBERS)
def test_interrupted_population_resumes_with_identical_results(kind, tmp_path, monkeypatch):
    specs = MEMBERS[kind]
    whole, paths = folders(tmp_path / "whole", specs), folders(tmp_path / "interrupted", specs)
    train_population(specs, whole)
    for n in (4, 1, 3):
        interrupt_at(n, Updater, "update", partial(train_population, specs, paths, checkpoint_every=0))
    statuses = train_population(specs, paths, checkpoint_every=0)
    assert all(status.state == "done" and status.resumed_from > 0 for status in statuses), statuses
    assert [outcome(path) for path in paths] == [outcome(path) for path in whole]


@pytest.mark.slow
def test_population_interrupted_during_checkpoint_writing_resumes(tmp_path, monkeypatch):
    specs = MEMBERS["CartPole"]
    whole, paths = folders(tmp_path / "whole", specs), folders(tmp_path / "interrupted", specs)
    train_population(specs, whole)
    # During the checkpoints of the fourth update
    interrupt_at(
        14, population, "write_checkpoint", partial(train_population, specs, paths, checkpoint_every=0)
    )
    assert len({checkpoint_steps(path)[0] for path in paths}) == 2
    statuses = train_population(specs, paths)
    assert {status.resumed_from for status in statuses} == {96}
    assert [outcome(path) for path in paths] == [outcome(path) for path in whole]


@pytest.mark.slow
def test_member_with_damaged_checkpoints_restarts_while_others_resume(tmp_path, monkeypatch):
    specs = MEMBERS["CartPole"]
    whole, paths = folders(tmp_path / "whole", specs), folders(tmp_path / "interrupted", specs)
    train_population(specs, whole)
    interrupt_at(5, Updater, "update", partial(train_population, specs, paths, checkpoint_every=0))
    for file in (paths[1] / "checkpoints").iterdir():
        garble(file)
    statuses = train_population(specs, paths)
    assert [status.resumed_from for status in statuses] == [128, 0, 128, 128]
    assert [outcome(path) for path in paths] == [outcome(path) for path in whole]


def test_run_started_in_a_population_resumes_alone(tmp_path, monkeypatch):
    specs = MEMBERS["CartPole"]
    whole, paths = folders(tmp_path / "whole", specs), folders(tmp_path / "interrupted", specs)
    train_population(specs, whole)
    interrupt_at(5, Updater, "update", partial(train_population, specs, paths, checkpoint_every=0))
    status = train_run(specs[2], paths[2])
    assert status.resumed_from == 128
    assert "started in a population" in troubles(status)[0]
    # Some CPUs round differently when a network is stacked
    assert_same_result(paths[2], whole[2])


KILLED = """
import sys
from pathlib import Path
from srl.training.run import train_run
from srl.training.stacked.train import train_population
from tests.training.test_resume import KILLED_SPECS
paths = [Path(sys.argv[1]) / str(place) for place in range(len(KILLED_SPECS))]
if sys.argv[2] == "alone":
    train_run(KILLED_SPECS[0], paths[0], checkpoint_every=0)
else:
    train_population(KILLED_SPECS, paths, checkpoint_every=0)
"""
KILLED_SPECS = [small_spec(seed=seed, n_timesteps=6400, eval_freq=640) for seed in (1, 2)]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["alone", "population"])
def test_run_killed_at_random_moments_resumes_with_identical_results(how, tmp_path):
    n = 1 if how == "alone" else 2
    whole = folders(tmp_path / "whole", KILLED_SPECS)
    if how == "alone":
        train_run(KILLED_SPECS[0], whole[0])
    else:
        train_population(KILLED_SPECS, whole)
    command = [sys.executable, "-c", KILLED, str(tmp_path / "killed"), how]
    killed = folders(tmp_path / "killed", KILLED_SPECS)[:n]
    n_killed = 0
    for steps in (200, 2000):
        process = subprocess.Popen(command)
        # On a busy machine, the run can finish before it is killed
        until(lambda steps=steps, run=process: last_checkpoint(killed[0]) >= steps or run.poll() == 0)
        process.send_signal(signal.SIGKILL)
        n_killed += process.wait() == -signal.SIGKILL
    assert n_killed > 0
    subprocess.run(command, check=True)
    notes = [RunDirectory(path).read_status().notes for path in killed]
    assert list(map(differences, killed, whole)) == [{}] * n, notes
