"""How much disk space runs take, held against the files of real runs."""

import errno
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from srl.config.files import configs_dir
from srl.config.spec import make_run_spec
from srl.envs import make_train_env
from srl.errors import OutOfSpace, UserError
from srl.sweep import space
from srl.sweep.engines import Job
from srl.sweep.plan import load_sweep
from srl.sweep.space import (
    check_space,
    checkpoint_bytes,
    finished_bytes,
    free_bytes,
    naming_full_disk,
    needed_bytes,
    run_bytes,
    says_full,
    size,
)
from srl.training import run as run_module
from srl.training.run import make_model, train_run
from tests.small_runs import contents, small_spec

Usage = namedtuple("Usage", "total used free")
#: What an estimate may be of what is measured.
LOWEST, HIGHEST = 0.8, 2.0


def on_disk(*files: Path) -> int:
    return sum(file.lstat().st_blocks * 512 for file in files)


def measured(monkeypatch, spec, path):
    """Train a run: the bytes that it ends with, and those of its largest checkpoint on the way."""
    write, largest = run_module.write_checkpoint, []

    def watched(folder, steps, state):
        write(folder, steps, state)
        largest.append(on_disk(folder / "checkpoints" / f"{steps}.npz"))

    monkeypatch.setattr(run_module, "write_checkpoint", watched)
    assert train_run(spec, path, checkpoint_every=0).state == "done"
    return on_disk(path, *path.rglob("*")), max(largest)


@pytest.mark.parametrize(
    ("algo", "env", "changes"),
    [
        ("sppo", "CartPole-v1", dict(n_timesteps=2048, eval_freq=512)),
        ("a2c", "CartPole-v1", dict(n_timesteps=2048, eval_freq=512, overrides={"n_envs": 4, "n_steps": 5})),
        ("dsppo", "HalfCheetah-v4", dict(n_timesteps=256, eval_freq=256, n_eval_episodes=1)),
        ("ppo", "Pendulum-v1", dict(n_timesteps=512, eval_freq=512)),
        (
            "sppo",
            "CartPole-v1",
            dict(overrides={"policy_kwargs": {"net_arch": {"pi": [256, 256], "vf": [400]}}}),
        ),
        pytest.param(
            "sppo",
            "PongNoFrameskip-v4",
            dict(n_timesteps=64, eval_freq=10_000, n_eval_episodes=1),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_estimates_are_close_to_real_files_and_not_below(algo, env, changes, monkeypatch, tmp_path):
    spec = small_spec(algo, env, **changes)
    finished, checkpoint = measured(monkeypatch, spec, tmp_path / "run")
    assert LOWEST < finished_bytes(spec) / finished < HIGHEST
    assert LOWEST < checkpoint_bytes(spec) / checkpoint < HIGHEST
    assert run_bytes(spec) >= finished + 2 * checkpoint


@pytest.mark.parametrize(
    ("algo", "env", "overrides"),
    [
        ("sppo", "CartPole-v1", {}),
        ("sa2c", "CartPole-v1", {}),
        ("dsppo", "HalfCheetah-v4", {}),
        ("ppo", "HalfCheetah-v4", {}),
        ("sa2c", "CartPole-v1", {"use_rms_prop": False}),
        ("sppo", "CartPole-v1", {"frame_stack": 3, "policy_kwargs": {"net_arch": [32]}}),
        ("sppo", "CartPole-v1", {"policy_kwargs": {"net_arch": []}}),
        ("sppo", "PongNoFrameskip-v4", {}),
        ("a2c", "PongNoFrameskip-v4", {}),
        ("sppo", "PongNoFrameskip-v4", {"policy_kwargs": {"share_features_extractor": False}}),
        ("sppo", "PongNoFrameskip-v4", {"policy": "MlpPolicy"}),
    ],
)
def test_parameters_are_counted_as_the_network_has_them(algo, env, overrides):
    spec = small_spec(algo, env, overrides=overrides)
    venv = make_train_env(spec.env_spec())
    try:
        policy = make_model(spec, venv).policy
    finally:
        venv.close()
    n_parameters = sum(parameter.numel() for parameter in policy.parameters())
    moments = 1 if algo.endswith("a2c") and overrides.get("use_rms_prop", True) else 2
    tensors = 200 * 12 * 8
    expected = 4 * n_parameters * (1 + moments)
    # Games are taken to have all 18 actions
    assert expected <= space._network(spec).saved <= 1.01 * expected + tensors
    kept = 4 * sum(tensor.numel() for tensor in policy.state_dict().values()) + 4 * n_parameters * moments
    assert kept <= space._network(spec).kept <= 1.01 * kept + tensors


@pytest.mark.parametrize("env", space._ENVIRONMENTS)
def test_known_environments_are_as_they_are_said_to_be(env):
    discretised = not space._ENVIRONMENTS[env].discrete
    spec = small_spec("dsppo" if discretised else "sppo", env)
    venv = make_train_env(spec.env_spec())
    known = space._ENVIRONMENTS[env]
    try:
        assert venv.observation_space.shape == (known.observation,)
        n_actions = len(venv.action_space.nvec) if discretised else venv.action_space.n
        assert n_actions == known.actions
    finally:
        venv.close()
    assert known.episode <= space._episode_limit(spec) <= 1600


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [("continuous_srl", 3e9, 12e9), ("discrete_srl", 8e9, 24e9)],
)
def test_sweeps_of_the_protocol_are_estimated(name, least, most):
    options = load_sweep(configs_dir() / "sweeps" / f"{name}.yml")
    specs = [
        make_run_spec(algo, env, 0, noise=noise, device="cpu")[0]
        for env in options.envs
        for algo in options.algos
        for noise in options.noise
    ]
    specs = [spec.model_copy(update={"seed": seed}) for seed in options.seeds for spec in specs]
    assert least < needed_bytes(specs, 2) < most


def test_longer_runs_take_more():
    for bytes_of in (finished_bytes, checkpoint_bytes, run_bytes):
        found = [bytes_of(small_spec(n_timesteps=steps)) for steps in (64, 6400, 640_000, 64_000_000)]
        assert found == sorted(found)
        assert found[-1] > 10 * found[0]


@pytest.mark.parametrize(
    "changes",
    [
        dict(eval_freq=8, n_timesteps=6400),
        dict(n_eval_episodes=1000, n_timesteps=6400),
        dict(overrides={"n_envs": 64}),
        dict(overrides={"normalize": True}),
        dict(overrides={"frame_stack": 50}),
        dict(overrides={"policy_kwargs": {"net_arch": [512, 512]}}),
        dict(env="tests.training.broken_envs:NanRewardForOne-v0"),
        dict(env="PongNoFrameskip-v4"),
    ],
    ids=str,
)
def test_larger_runs_take_more(changes):
    least = small_spec(n_timesteps=changes.get("n_timesteps", 64))
    assert run_bytes(small_spec(**changes)) > run_bytes(least)


def test_what_is_needed_has_checkpoints_only_of_runs_that_train_at_once():
    small, large = small_spec(), small_spec(overrides={"policy_kwargs": {"net_arch": [512, 512]}})
    specs = [small, small, large]
    finished = sum(map(finished_bytes, specs))
    assert needed_bytes([], 3) == 0
    one, two, many = (needed_bytes(specs, n) for n in (1, 2, 100))
    assert one > finished + 3 * checkpoint_bytes(large)
    assert two - one == 3 * checkpoint_bytes(small)
    assert many - two == 3 * checkpoint_bytes(small)
    assert one - finished - 3 * checkpoint_bytes(large) < 10e6


def test_free_space_is_that_of_the_nearest_folder(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(Path(path)) or Usage(9, 4, 5))
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    monkeypatch.chdir(tmp_path)
    paths = [tmp_path, tmp_path / "a" / "b" / "c", tmp_path / "broken" / "x", Path("not/yet"), Path()]
    assert [free_bytes(path) for path in paths] == [5] * 5
    assert asked == [tmp_path] * 5
    assert free_bytes(Path("/")) == 5


def test_real_free_space_is_read(tmp_path):
    status = os.statvfs(tmp_path)
    assert free_bytes(tmp_path / "x") == pytest.approx(status.f_bavail * status.f_frsize, abs=500e6)


def jobs(root, *specs):
    return [Job(spec, root / spec.path) for spec in specs]


def test_file_system_that_does_not_say_refuses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 0))
    needed, free = check_space(tmp_path, jobs(tmp_path, small_spec()), 1)
    assert 0 < needed < free


def test_file_system_that_cannot_be_asked_is_a_mistake(tmp_path, monkeypatch):
    def fails(path):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(shutil, "disk_usage", fails)
    with pytest.raises(UserError, match="free space cannot be read: Input/output error"):
        check_space(tmp_path, jobs(tmp_path, small_spec()), 1)


def test_too_little_space_is_refused_and_nothing_written(tmp_path, monkeypatch):
    specs = [small_spec(seed=seed) for seed in range(1200)]
    root = tmp_path / "runs" / "mine"
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, 34_000_000))
    needed = needed_bytes(specs, 2)
    with pytest.raises(UserError) as caught:
        check_space(root, jobs(root, *specs), 2)
    assert str(caught.value) == (
        f"{root}: too little disk space. The 1,200 runs to do need up to {size(needed)}, and 34 MB are free "
        f"there, {size(needed - 34_000_000)} too little. Make room, or name a folder on another disk with "
        "--out, or use --ignore-space; nothing was written."
    )
    assert check_space(root, jobs(root, *specs), 2, or_ignore=True) == (needed, 34_000_000)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, 1000))
    with pytest.raises(UserError, match="The run needs up to "):
        check_space(root, jobs(root, *specs[:1]), 2)


def test_as_much_as_is_needed_is_enough(tmp_path, monkeypatch):
    specs = [small_spec()]
    needed = needed_bytes(specs, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, needed))
    assert check_space(tmp_path, jobs(tmp_path, *specs), 1) == (needed, needed)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, needed - 1))
    with pytest.raises(UserError, match="1 byte too little"):
        check_space(tmp_path, jobs(tmp_path, *specs), 1)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_is_named_with_what_is_needed(number, tmp_path):
    says = rf"the disk of {tmp_path} is full: pending runs need up to [\d.]+ MB more, and .* is free"
    with pytest.raises(OutOfSpace, match=says), naming_full_disk(tmp_path, jobs(tmp_path, small_spec()), 1):
        raise OSError(number, os.strerror(number))
    assert says_full(f"OSError: [Errno {number}] {os.strerror(number)}: '/x/1.npz' (at step 64)")


def test_other_errors_of_the_system_stay_what_they_are(tmp_path):
    with pytest.raises(PermissionError), naming_full_disk(tmp_path, [], 0):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    assert not says_full("PermissionError: [Errno 13] Permission denied")


def test_nothing_to_do_needs_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, 0))
    assert check_space(tmp_path, [], 2) == (0, 0)


def test_what_an_unfinished_run_has_written_is_not_needed_again(tmp_path):
    spec = small_spec()
    before, _ = check_space(tmp_path, jobs(tmp_path, spec), 1)
    folder = tmp_path / spec.path / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "32.npz").write_bytes(bytes(100_000))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(bytes(10_000_000))
    (folder / "link").symlink_to(elsewhere)
    taken = on_disk(folder, *folder.iterdir())
    kept = contents(tmp_path)
    after, _ = check_space(tmp_path, jobs(tmp_path, spec), 1)
    assert before - after == taken
    # Files that are none of the run's do not count for more than the run
    (folder / "large").write_bytes(bytes(20_000_000))
    assert before - check_space(tmp_path, jobs(tmp_path, spec), 1)[0] == run_bytes(spec)
    (folder / "large").unlink()
    assert contents(tmp_path) == kept


@pytest.mark.parametrize(
    ("n_bytes", "expected"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (9949, "9.9 kB"),
        (9951, "10 kB"),
        (640_000, "640 kB"),
        (999_499, "999 kB"),
        (999_500, "1.0 MB"),
        (1_300_000_000, "1.3 GB"),
        (73_400_000_000, "73 GB"),
        (5 * 10**15, "5.0 PB"),
    ],
)
def test_sizes_are_for_people(n_bytes, expected):
    assert size(n_bytes) == expected
