"""The command line: accepted and rejected options, and exit statuses."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

from srl import __version__
from srl.rundir.directory import RunDirectory
from tests.small_runs import BROKEN, SMALL_WORDS, contents, srl

SRL = Path(sys.executable).with_name("srl")
TRAIN = ["train", "--algo", "sppo", "--env", "CartPole-v1"]
SWEEP = [
    "sweep",
    "discrete_srl",
    "--envs",
    "CartPole-v1",
    "--algos",
    "sppo",
    "--noise",
    "none",
    "--seeds",
    "0",
]


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    """An empty working directory."""
    folder = tmp_path / "somewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_train_writes_run_directory_and_exits_0(somewhere):
    outcome = srl(
        *("train", "--algo", "SPPO", "--env", "CartPole-v1", "--seed", 10000, "--noise", "flip:0.1"),
        *("--timesteps", 64, "--alpha", 0.25, "--beta", 3, "--z", -2, *SMALL_WORDS),
    )
    assert outcome.status == 0, outcome.err
    assert "Final evaluation at step 64: mean return" in outcome.out
    path = somewhere / "runs" / "CartPole-v1" / "sppo" / "flip-0.1" / "seed-10000"
    spec = RunDirectory(path).read_spec()
    assert (spec.seed, spec.noise, spec.n_timesteps, spec.device) == (10000, "flip:0.1", 64, "cpu")
    hyperparams = spec.hyperparams
    assert (hyperparams.alpha, hyperparams.beta, hyperparams.z, hyperparams.n_steps) == (0.25, 3.0, -2.0, 32)
    before = contents(path)
    again = srl(
        *("train", "--algo", "SPPO", "--env", "CartPole-v1", "--seed", 10000, "--noise", "flip:0.1"),
        *("--timesteps", 64, "--alpha", 0.25, "--beta", 3, "--z", -2, *SMALL_WORDS),
    )
    assert again.status == 0
    assert "holds this run already, finished" in again.out
    assert contents(path) == before


def test_trained_baseline_loads_with_sb3(somewhere):
    outcome = srl(
        *("train", "--algo", "ppo", "--env", "CartPole-v1", "--timesteps", 32, "--out", "run", *SMALL_WORDS)
    )
    assert outcome.status == 0, outcome.err
    model = PPO.load("run/model.zip", env=make_vec_env("CartPole-v1"), device="cpu")
    model.learn(32)


def test_discretized_run_records_its_bins(somewhere):
    words = [
        "train",
        "--algo",
        "dsppo",
        "--env",
        "Pendulum-v1",
        "--timesteps",
        32,
        "--bins",
        5,
        "--out",
        "run",
    ]
    outcome = srl(*words, *SMALL_WORDS)
    assert outcome.status == 0, outcome.err
    assert RunDirectory(Path("run")).read_spec().bins == 5
    assert PPO.load("run/model.zip", device="cpu").action_space.nvec.tolist() == [5]


def test_failed_run_exits_1_with_reason():
    words = ["train", "--algo", "sppo", "--env", BROKEN + "NanReward-v0", "--timesteps", 64, "--out", "run"]
    outcome = srl(*words, *SMALL_WORDS)
    assert outcome.status == 1
    assert "the run failed: The environment gave a non-finite reward (NaN)" in outcome.err
    assert "(at step 40)" in outcome.err
    assert "Traceback" not in outcome.err + outcome.out
    assert "Traceback" in Path("run/error.txt").read_text()


MISTAKES = [
    (["train", "--algo", "spo", "--env", "CartPole-v1"], "Did you mean sppo"),
    (["train", "--algo", "sppo", "--env", "CartPol-v1"], "Did you mean CartPole-v1"),
    ([*TRAIN, "--noise", "flop:0.1"], "Did you mean flip"),
    ([*TRAIN, "--noise", "flip:1.5"], "flip:PROB"),
    ([*TRAIN, "--noise", "gaussian:nan"], "gaussian:STD"),
    ([*TRAIN, "--hyperparams", "n_stepz=3"], "Did you mean n_steps"),
    ([*TRAIN, "--hyperparams", "n_steps"], "NAME=VALUE"),
    ([*TRAIN, "--hyperparams", "n_steps="], "NAME=VALUE"),
    ([*TRAIN, "--hyperparams", "n_steps=1", "n_steps=2"], "n_steps: is given twice"),
    ([*TRAIN, "--hyperparams", "n_steps=["], "not a YAML value"),
    ([*TRAIN, "--hyperparams", "n_steps=2024-13-45"], "n_steps"),
    ([*TRAIN, "--hyperparams", "n_steps=!!python/object/apply:os.abort []"], "not a YAML value"),
    ([*TRAIN, "--hyperparams", "policy_kwargs=dict(net_arch=[8])"], "Python code"),
    ([*TRAIN, "--hyperparams", "policy=CnnPolicy"], "MlpPolicy"),
    ([*TRAIN, "--beta", "2", "--hyperparams", "beta=3"], "beta"),
    (
        [*TRAIN, "--advantage-transform", "sign", "--hyperparams", "advantage_transform=bins"],
        "advantage_transform",
    ),
    ([*TRAIN, "--beta", "-1"], "beta"),
    ([*TRAIN, "--beta", "nan"], "beta"),
    ([*TRAIN, "--beta", "x"], "--beta"),
    ([*TRAIN, "--alpha", "inf"], "alpha"),
    ([*TRAIN, "--z", "0"], "z"),
    ([*TRAIN, "--z", "1"], "z"),
    ([*TRAIN, "--bins", "11"], "dsppo"),
    (["train", "--algo", "dsppo", "--env", "Pendulum-v1", "--bins", "1"], "bins"),
    (["train", "--algo", "dsppo", "--env", "CartPole-v1"], "cannot be discretized"),
    (["train", "--algo", "sppo", "--env", "Pendulum-v1"], "Discretize the actions with --algo dsppo"),
    (["train", "--algo", "ppo", "--env", "CartPole-v1", "--beta", "1"], "Use sppo"),
    ([*TRAIN, "--seed", "-1"], "seed"),
    ([*TRAIN, "--seed", "one"], "seed"),
    ([*TRAIN, "--seed", "1", "--seed", "2"], "--seed is given 2 times"),
    ([*TRAIN, "--seed=1", "--seed", "2"], "--seed is given 2 times"),
    ([*TRAIN, "--eval-freq", "9", "--eval_freq", "8"], "--eval-freq is given 2 times"),
    ([*TRAIN, "--timesteps", "0"], "timesteps"),
    ([*TRAIN, "--threads", "0"], "threads"),
    ([*TRAIN, "--profile", "author"], "Did you mean authors"),
    ([*TRAIN, "--device", "gpu"], "auto, cpu, cuda"),
    ([*TRAIN, "--out", "file"], "is a file"),
    ([*TRAIN, "--out", "file/below"], "is a file"),
    ([*TRAIN, "--out", "/proc/run"], "cannot be written"),
    ([*TRAIN, "--out", "."], "is not a run directory"),
    ([*TRAIN, "--no-such-option"], "no-such-option"),
    (["train", "--algo", "sppo"], "--env"),
    (["trian"], "train"),
    ([], "train"),
    (["sweep", "nowhere"], "no such sweep"),
    (["sweep", "nowhere.yml"], "no such sweep"),
    (["sweep", "discrete_slr"], "Did you mean discrete_srl"),
    (["sweep", "malformed.yml"], "malformed.yml, line 2"),
    ([*SWEEP[:-1], "1,1"], "1 is specified twice"),
    ([*SWEEP[:-1], "0:5", "3"], "3 is specified twice"),
    ([*SWEEP[:-1], "x"], "'x' is neither"),
    ([*SWEEP[:-1], ","], "seeds"),
    ([*SWEEP[:-1], ""], "seeds"),
    ([*SWEEP[:-1]], "seeds"),
    ([*SWEEP, "--timesteps", "0"], "--timesteps"),
    ([*SWEEP, "--eval-episodes", "0"], "--eval-episodes"),
    ([*SWEEP, "--bins", "1"], "--bins"),
    ([*SWEEP, "--jobs", "0"], "--jobs 0"),
    ([*SWEEP, "--out", "file"], "is a file"),
    ([*SWEEP, "--out", "/proc/sweep"], "cannot be written"),
    ([*SWEEP, "--seeds", "2"], "--seeds is given 2 times"),
    ([*SWEEP, "--hyperparams", "n_stepz=3"], "Did you mean n_steps"),
    ([*SWEEP, "--profile", "author"], "Did you mean authors"),
    ([*SWEEP, "--z", "0.5"], "z"),
    (["sweep", "discrete_srl", "--envs", "CartPol-v1"], "Did you mean CartPole-v1"),
    (["sweep", "discrete_srl", "--algos", "spo"], "Did you mean sppo"),
    (["sweep", "discrete_srl", "--noise", "flop:1"], "Did you mean flip"),
    (["sweep", "discrete_srl", "--envs", "Pendulum-v1"], "Discretize the actions with --algo ds"),
    (["sweep", "discrete_srl", "--envs", "CartPole-v1,CartPole-v1"], "is specified twice"),
    (["report", "nowhere"], "no such folder"),
    (["report", "file"], "neither a folder nor an archive"),
    (["report", "."], "contains no runs"),
]


@pytest.mark.parametrize(
    ("words", "says"), MISTAKES, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_mistake_exits_2_with_message_and_writes_nothing(words, says, somewhere, monkeypatch):
    monkeypatch.setattr("srl.training.run.train_run", lambda *args, **kwargs: pytest.fail("it trains"))
    (somewhere / "file").write_text("mine")
    (somewhere / "malformed.yml").write_text("envs: [CartPole-v1\nalgos: [ppo]\n")
    before = contents(somewhere)
    outcome = srl(*words, *(["--dry-run"] if words[:1] == ["sweep"] else []))
    assert outcome.status == 2
    assert says in outcome.err
    assert "Traceback" not in outcome.err + outcome.out
    assert contents(somewhere) == before
    assert sorted(file.name for file in somewhere.iterdir()) == ["file", "malformed.yml"]


@pytest.mark.skipif(th.cuda.is_available(), reason="there is CUDA here")
@pytest.mark.parametrize("words", [TRAIN, SWEEP], ids=["train", "sweep"])
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_cuda_device_without_cuda_exits_2(words, device, somewhere):
    outcome = srl(*words, "--device", device)
    assert outcome.status == 2
    assert f"device='{device}'" in outcome.err
    assert "--device cpu" in outcome.err
    assert not any(somewhere.iterdir())


@pytest.mark.parametrize("command", [TRAIN, SWEEP], ids=["train", "sweep"])
def test_folder_with_a_run_of_another_spec_is_rejected_unmodified(command, somewhere):
    run = ["train", "--algo", "sppo", "--env", "CartPole-v1", "--timesteps", 32, *SMALL_WORDS]
    out = "out" if command is TRAIN else "out/CartPole-v1/sppo/none/seed-0"
    assert srl(*run, "--out", out).status == 0
    before = contents(somewhere)
    outcome = srl(*command, "--timesteps", 64, "--out", "out", *SMALL_WORDS)
    assert outcome.status == 2
    assert "n_timesteps is 32 there and 64 here" in outcome.err
    assert contents(somewhere) == before


def test_dry_run_lists_pending_runs_and_writes_nothing(somewhere):
    outcome = srl(*SWEEP[:-1], "1,2", "5:7", "--timesteps", 64, "--dry-run")
    assert outcome.status == 0
    lines = [line for line in outcome.out.splitlines() if line.startswith("pending")]
    assert [line.split()[1].rpartition("-")[2] for line in lines] == ["1", "2", "5", "6"]
    assert "4 runs (1 combinations of environment, algorithm and noise x 4 seeds)" in outcome.out
    assert "256 training steps" in outcome.out
    assert "Dry run: nothing was trained or written" in outcome.out
    assert not any(somewhere.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "n_runs"),
    [("discrete_basic", 240), ("discrete_srl", 240), ("continuous_basic", 1080), ("continuous_srl", 2160)],
)
def test_dry_run_of_shipped_sweep_checks_all_runs(name, n_runs, somewhere):
    outcome = srl("sweep", name, "--dry-run")
    assert outcome.status == 0, outcome.err
    assert sum(line.startswith("pending") for line in outcome.out.splitlines()) == n_runs
    assert f"into runs/{name}." in outcome.out
    assert not any(somewhere.iterdir())


def test_quick_sweep_has_its_own_folder():
    outcome = srl("sweep", "continuous_srl", "--quick", "--dry-run")
    assert outcome.status == 0
    assert "into runs/continuous_srl-quick." in outcome.out
    assert "2,048 steps" in outcome.out


@pytest.mark.parametrize("words", [["--version"], ["-V"]])
def test_version_option_prints_version(words):
    outcome = srl(*words)
    assert (outcome.status, outcome.out) == (0, f"srl {__version__}\n")


@pytest.mark.parametrize(
    "words", [["--help"], ["train", "--help"], ["sweep", "--help"], ["report", "--help"]]
)
def test_help_exits_0(words):
    outcome = srl(*words)
    assert outcome.status == 0
    assert "usage: srl" in outcome.out


@pytest.mark.slow
def test_installed_command_has_exit_status_2_and_stderr(somewhere):
    ended = subprocess.run(
        [SRL, "train", "--algo", "spo", "--env", "CartPole-v1"], capture_output=True, text=True
    )
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith("srl: There is no algorithm 'spo'.")


@pytest.mark.slow
def test_closed_stdout_is_no_error():
    # Like `srl sweep ... --dry-run | head -1`
    process = subprocess.Popen(
        [SRL, "sweep", "continuous_srl", "--envs", "Hopper-v4", "--seeds", "0:200", "--dry-run"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": ""},
    )
    process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read().decode()
    process.wait()
    assert "Traceback" not in err
    assert "Exception ignored" not in err


@pytest.mark.slow
@pytest.mark.parametrize("words", [[*TRAIN, "--out", "out"], [*SWEEP, "--out", "out", "--jobs", "1"]])
def test_write_failures_are_named_without_traceback_and_the_command_can_be_rerun(words, somewhere):
    words = [*map(str, words), "--timesteps", "32", *SMALL_WORDS]
    # Limit files to 1 KiB: most writes fail, like on a full disk
    full = subprocess.run(
        ["bash", "-c", 'ulimit -f 1; exec "$@"', "bash", SRL, *words],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert full.returncode == 1, full.stderr
    assert "Traceback" not in full.stdout + full.stderr
    assert "out" in full.stderr
    assert "File too large" in full.stderr
    assert "error.txt" not in full.stderr or list(somewhere.rglob("error.txt"))
    again = srl(*words)
    assert again.status == 0, again.err
    assert list(somewhere.rglob("model.zip"))
