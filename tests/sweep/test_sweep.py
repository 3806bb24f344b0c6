"""Sweeps: expansion, independent processes, resuming and stopping."""

import contextlib
import json
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest

from srl.config.sweep import load_sweep, parse_seeds
from srl.errors import UserError
from srl.rundir.directory import RunDirectory
from srl.rundir.plan import read_plan
from srl.rundir.status import Status
from srl.sweep import execution
from srl.sweep.plan import expand, make_plan
from tests.small_runs import BROKEN, SMALL_WORDS, contents, srl, start_srl, until

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("texts", "seeds"),
    [
        (["10000:10005"], [10000, 10001, 10002, 10003, 10004]),
        (["1", "2", "5:7"], [1, 2, 5, 6]),
        ([7], [7]),
        (["0"], [0]),
        (["2147483647"], [2147483647]),
        (["5:6", "3"], [5, 3]),
    ],
)
def test_seeds_are_numbers_and_half_open_ranges(texts, seeds):
    assert parse_seeds(texts) == seeds


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (["1", "1"], "1 is specified twice"),
        (["1:5", "3"], "3 is specified twice"),
        (["01", "1"], "1 is specified twice"),
        (["5:5"], "'5:5' is empty"),
        (["5:1"], "'5:1' is empty"),
        (["a"], "'a' is neither"),
        (["-1"], "'-1' is neither"),
        (["1.0"], "'1.0' is neither"),
        ([True], "True is neither"),
        ([None], "None is neither"),
        (["1:2:3"], "'1:2:3' is neither"),
        ([":5"], "':5' is neither"),
        (["5:"], "'5:' is neither"),
        ([""], "'' is neither"),
        (["²"], "'²' is neither"),
        (["2147483648"], "beyond"),
        (["0:1000000"], "the maximum is 100,000"),
        ([], "at least one"),
    ],
)
def test_duplicate_or_invalid_seeds_are_named_in_error(texts, says):
    with pytest.raises(UserError) as error:
        parse_seeds(texts)
    assert says in str(error.value)


MINE = """\
envs: [CartPole-v1]
algos: [ppo, sppo]
noise: [none]
seeds: ["0:2"]
n_timesteps: 64
quick:
  n_timesteps: 32
"""


@pytest.fixture
def mine(tmp_path):
    """A sweep file that tests may change."""
    file = tmp_path / "mine.yml"
    file.write_text(MINE)
    return file


def change(file, old, new):
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("[ppo, sppo]", "[ppo, spo]", 2, "key algos: .*Did you mean sppo"),
        ("[none]", "[none, flop:1]", 3, "key noise: .*Did you mean flip"),
        ("[none]", "[flip:1.5]", 3, r"key noise: .*flip:PROB"),
        ("[none]", "[null]", 3, "key noise"),
        ("[none]", "none", 3, "key noise"),
        ('["0:2"]', "[0, 1, 0]", 4, "key seeds: .*0 is specified twice"),
        ('["0:2"]', "[x]", 4, "key seeds: .*'x' is neither"),
        ('["0:2"]', "", 4, "key seeds"),
        ("[CartPole-v1]", "[]", 1, "key envs"),
        ("n_timesteps: 64", "n_timestep: 64", 5, "key n_timestep: there is no such key.*n_timesteps"),
        ("n_timesteps: 64", "n_timesteps: -1", 5, "key n_timesteps: -1"),
        ("n_timesteps: 64", "bins: 1", 5, "key bins: 1"),
        ("n_timesteps: 64", "overrides: 3", 5, "key overrides"),
        ("n_timesteps: 64", "overrides:\n  CartPole-v1: 5", 6, "overrides.CartPole-v1: must be a mapping"),
        ("n_timesteps: 64", "overrides:\n  CartPole-v1:", 6, "overrides.CartPole-v1: must be a mapping"),
        ("  n_timesteps: 32", "  overrides: {CartPole-v1: 5}", 7, "key quick.overrides.CartPole-v1: must be"),
        ("  n_timesteps: 32", "  overrides: {Acrobot-v1: {gamma: 1}}", 7, "key quick.overrides.Acrobot-v1"),
        ("n_timesteps: 64", "1: 3", 5, "1"),
        ("n_timesteps: 64", "yes: 3", 5, "yes"),
        ("  n_timesteps: 32", "  seeds: [1, 1]", 7, "key quick.seeds: .*1 is specified twice"),
        ("  n_timesteps: 32", "  n_timestep: 1", 7, "key quick.n_timestep: there is no such key"),
        ("quick:\n  n_timesteps: 32", "quick: 3", 6, "key quick: must be a mapping"),
        ("envs: [CartPole-v1]\n", "", None, "key envs: is missing"),
        ("n_timesteps: 64", "envs: [Acrobot-v1]", 5, "'envs' is specified twice"),
        ("[none]", "[none", 4, "mine.yml"),
        ("n_timesteps: 64", "x: !!python/object/apply:os.abort []", 5, "tags that make Python objects"),
    ],
)
def test_sweep_file_error_names_line_and_key(mine, old, new, line, says):
    change(mine, old, new)
    with pytest.raises(UserError, match=says) as error:
        load_sweep(mine)
    assert str(error.value).startswith(f"{mine}, line {line}" if line else f"{mine}, key")


def test_sweep_file_without_noise_has_none(mine):
    change(mine, "noise: [none]\n", "")
    assert load_sweep(mine).noise == ["none"]


@pytest.mark.parametrize("text", ["1:5", "10:20", "[1:5]", "[10:30]"])
def test_seeds_that_yaml_parses_as_base_60_are_not_misread(mine, text):
    # In YAML 1.1, 1:5 without quotes is 65: one hour and five minutes
    change(mine, '["0:2"]', text)
    first, end = map(int, text.strip("[]").split(":"))
    try:
        seeds = load_sweep(mine).seeds
    except UserError:
        return
    assert seeds == list(range(first, end))


def test_quick_option_requires_a_quick_section(mine):
    assert load_sweep(mine, quick=True).n_timesteps == 32
    assert load_sweep(mine).n_timesteps == 64
    change(mine, "quick:\n  n_timesteps: 32\n", "")
    with pytest.raises(UserError, match="quick"):
        load_sweep(mine, quick=True)


def test_sweep_expands_to_the_product_of_all_options(mine):
    options = load_sweep(mine, envs=["CartPole-v1", "Acrobot-v1"], noise=["none", "flip:0.1"], seeds=["3:6"])
    specs, _ = expand(options)
    assert len(specs) == 2 * 2 * 2 * 3 == len({spec.path for spec in specs})
    # Ordered by seed, so that tables fill evenly
    assert [spec.seed for spec in specs] == [3] * 8 + [4] * 8 + [5] * 8


def test_runs_of_a_sweep_have_the_spec_of_single_runs(mine):
    from srl.config.spec import make_run_spec

    for spec in expand(load_sweep(mine))[0]:
        alone, _ = make_run_spec(spec.algo, spec.env, spec.seed, n_timesteps=64)
        assert spec == alone


def test_symmetric_overrides_apply_only_to_symmetric_algorithms(mine):
    options = load_sweep(mine, overrides={"gamma": 0.5}, symmetric_overrides={"beta": 7.0, "alpha": 0.25})
    by_algo = {spec.algo: spec.hyperparams for spec in expand(options)[0]}
    assert (by_algo["ppo"].gamma, by_algo["ppo"].alpha, by_algo["ppo"].beta) == (0.5, 1.0, 0.0)
    assert (by_algo["sppo"].gamma, by_algo["sppo"].alpha, by_algo["sppo"].beta) == (0.5, 0.25, 7.0)


def test_hyperparameters_of_the_command_line_override_all_of_the_file(mine):
    change(
        mine,
        "n_timesteps: 64",
        "overrides: {n_epochs: 2, CartPole-v1: {gamma: 0.9, ent_coef: 0.1}}\n"
        "symmetric_overrides: {beta: 2, alpha: 0.7, vf_coef: 0.3}\nn_timesteps: 64",
    )
    given = {"gamma": 0.5, "beta": 5.0, "vf_coef": 0.4, "n_epochs": 3}
    symmetric = expand(load_sweep(mine, algos=["sppo"], overrides=given))[0][0].hyperparams
    assert {name: getattr(symmetric, name) for name in given} == given
    assert (symmetric.alpha, symmetric.ent_coef) == (0.7, 0.1)
    of_file = expand(load_sweep(mine, algos=["sppo"]))[0][0].hyperparams
    assert (of_file.gamma, of_file.beta, of_file.vf_coef, of_file.n_epochs) == (0.9, 2.0, 0.3, 2)


def test_unknown_mapping_among_hyperparameters_of_the_command_line_is_rejected(mine):
    with pytest.raises(UserError, match=r"polcy_kwargs.*Did you mean policy_kwargs"):
        expand(load_sweep(mine, overrides={"polcy_kwargs": {"net_arch": [16]}}))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(symmetric_overrides={"reverse_loss": "mae"}), "--reverse-loss: has no effect.*no symmetric"),
        (dict(bins=5), "--bins: has no effect.*no discretized"),
    ],
    ids=str,
)
def test_option_without_an_algorithm_that_it_applies_to_is_rejected(mine, changes, says):
    with pytest.raises(UserError, match=says):
        load_sweep(mine, algos=["ppo"], **changes)
    load_sweep(mine, algos=["ppo", "dsppo"], **changes)


def test_wrapper_of_an_environment_replaces_that_of_the_sweep(mine):
    limit = {"gymnasium.wrappers:TimeLimit": {"max_episode_steps": 20}}
    change(mine, "[CartPole-v1]", "[CartPole-v1, Acrobot-v1]")
    change(
        mine,
        "n_timesteps: 64",
        f"env_wrapper: {limit}\noverrides:\n  Acrobot-v1: {{env_wrapper: {{'gymnasium.wrappers:Autoreset': "
        "}}\nn_timesteps: 64",
    )

    def wrappers(**changes):
        options = load_sweep(mine, trust=True, **changes)
        return {spec.env: spec.hyperparams.env_wrapper for spec in expand(options, trust_file=True)[0]}

    assert wrappers() == {"CartPole-v1": [limit], "Acrobot-v1": ["gymnasium.wrappers:Autoreset"]}
    assert wrappers(envs=["CartPole-v1"]) == {"CartPole-v1": [limit]}
    other = "gymnasium.wrappers:OrderEnforcing"
    assert wrappers(env_wrapper=[other]) == {"CartPole-v1": [other], "Acrobot-v1": [other]}


@pytest.mark.parametrize(
    "changes",
    [
        dict(envs=["CartPole-v1", "CartPole-v1"]),
        dict(algos=["ppo", "PPO"]),
        dict(noise=["flip:0.1", "flip:0.10"]),
        dict(envs=["LunarLander-v2", "LunarLander-v3"]),
    ],
    ids=str,
)
def test_duplicate_entries_are_rejected(mine, changes):
    with pytest.raises(UserError, match="is specified twice"):
        expand(load_sweep(mine, **changes))


def test_plan_with_a_folder_of_another_spec_is_rejected(mine, tmp_path):
    specs, _ = expand(load_sweep(mine))
    other, _ = expand(load_sweep(mine, n_timesteps=128))
    with RunDirectory(tmp_path / "out" / other[3].path).claimed(other[3]):
        pass
    before = contents(tmp_path)
    with pytest.raises(UserError, match="n_timesteps is 128 there and 64 here"):
        make_plan(specs, tmp_path / "out")
    assert contents(tmp_path) == before


# A sweep with all kinds of failures, run once for the tests below

KILLED, NAN, FINE = (BROKEN + name for name in ("Killed-v0", "NanReward-v0", "Fine-v0"))
WORDS = [
    *("--envs", FINE, KILLED, NAN, "--algos", "sppo", "--noise", "none", "--seeds", "0:2"),
    *("--timesteps", "64", "--jobs", "2", "--retries", "1", "--population", "off", *SMALL_WORDS),
]


def folder(root, env, seed):
    return root / env.replace(":", "-") / "sppo" / "none" / f"seed-{seed}"


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """The folder of a sweep in which most runs fail, and the outcome of its command."""
    root = tmp_path_factory.mktemp("swept") / "out"
    return root, srl("sweep", "discrete_srl", "--out", root, *WORDS)


@pytest.mark.slow
def test_failed_runs_do_not_stop_other_runs(swept):
    root, _ = swept
    states = {
        (env, seed): RunDirectory(folder(root, env, seed)).read_status()
        for env in (FINE, KILLED, NAN)
        for seed in (0, 1)
    }
    for (env, _), status in states.items():
        assert status.state == ("done" if env == FINE else "failed")
        assert min(status.started, status.ended) > 0
    assert states[NAN, 0].reason.endswith("(NaN) in environment 0. (at step 40)")
    assert states[KILLED, 1].reason.startswith("its process was killed by SIGKILL")


@pytest.mark.slow
def test_exit_status_and_last_lines_name_failed_runs(swept):
    _, outcome = swept
    assert outcome.status == 1
    lines = outcome.err.strip().splitlines()
    assert "4 of 6 runs failed" in lines[-5]
    assert len([line for line in lines if "seed-" in line]) == 4
    assert "(at step 40)" in outcome.err
    assert "SIGKILL" in outcome.err
    assert "Traceback" not in outcome.out + outcome.err


@pytest.mark.slow
def test_sweep_table_counts_failed_runs(swept):
    root, outcome = swept
    assert re.search(r"over (n|2)\s+seeds", outcome.out)
    assert "8.0 ± 0.0" in outcome.out
    # One environment is killed, one returns a NaN
    assert len(re.findall(r" +2 failed *\n", outcome.out)) == 2
    table = (root / "table.csv").read_text()
    assert f"{FINE},none,64,sppo,sppo,,8.0,0.0,2,0,0,0,0,0,0,0" in table
    assert f"{NAN},none,64,sppo,sppo,,,,0,0,0,0,2,0,0,0" in table


@pytest.mark.slow
def test_run_in_a_sweep_matches_the_single_run(swept, tmp_path):
    root, _ = swept
    alone = srl(
        *(
            "train",
            "--algo",
            "sppo",
            "--env",
            FINE,
            "--seed",
            1,
            "--timesteps",
            64,
            "--out",
            tmp_path / "alone",
        ),
        *SMALL_WORDS,
    )
    assert alone.status == 0, alone.err
    in_sweep = folder(root, FINE, 1)
    assert (tmp_path / "alone" / "spec.json").read_bytes() == (in_sweep / "spec.json").read_bytes()
    ours, theirs = (
        RunDirectory(path).read_evaluations()["results"] for path in (tmp_path / "alone", in_sweep)
    )
    assert np.array_equal(ours, theirs)
    from srl import SPPO

    states = [SPPO.load(path / "model.zip").policy.state_dict() for path in (tmp_path / "alone", in_sweep)]
    assert all(bool((states[0][name] == states[1][name]).all()) for name in states[0])


@pytest.mark.slow
def test_rerunning_the_command_skips_finished_runs(swept):
    root, _ = swept
    done = [folder(root, FINE, seed) for seed in (0, 1)]
    before = [contents(path) for path in done]
    failed_before = RunDirectory(folder(root, NAN, 0)).read_status()
    # An interrupted run: its status says that it is running, but its process is gone
    interrupted = RunDirectory(folder(root, KILLED, 0))
    interrupted.write_status(Status("running", timesteps=10, n_timesteps=64, pid=2**22, host="elsewhere"))
    again = srl("sweep", "discrete_srl", "--out", root, *WORDS)
    assert again.status == 1
    assert "Finished: 2. Pending: 4" in again.out
    assert "4 of 4 runs failed" in again.err
    assert [contents(path) for path in done] == before
    assert RunDirectory(folder(root, NAN, 0)).read_status().attempts > failed_before.attempts
    assert interrupted.read_status().reason.startswith("its process was killed by SIGKILL")


@pytest.mark.slow
def test_plan_of_two_sweeps_in_one_folder_contains_the_runs_of_both(tmp_path):
    words = ["--algos", "sppo", "--noise", "none", "--timesteps", "32", "--out", tmp_path, *SMALL_WORDS]
    first = srl("sweep", "discrete_srl", "--envs", FINE, "--seeds", "0", *words)
    second = srl("sweep", "discrete_srl", "--envs", FINE, "--seeds", "1", *words)
    assert (first.status, second.status) == (0, 0), first.err + second.err
    assert [run.seed for run in read_plan(tmp_path)] == [0, 1]
    assert re.search(r"over\s+2\s+seeds", second.out)
    assert "Finished: 0. Pending: 1" in second.out


@pytest.mark.slow
def test_sweep_waits_for_a_run_of_another_process_and_takes_over_if_that_dies(tmp_path, monkeypatch):
    from tests.rundir.test_directory import claiming

    look, n_waited_for = execution._Execution._check_elsewhere, []

    def kill_before_the_second_look(sweep):
        n_waited_for.append(len(sweep._elsewhere))
        if len(n_waited_for) == 2:
            process.kill()
            process.wait()
        look(sweep)

    monkeypatch.setattr(execution, "_ELSEWHERE_INTERVAL", 0.0)
    monkeypatch.setattr(execution._Execution, "_check_elsewhere", kill_before_the_second_look)
    path = tmp_path / "CartPole-v1" / "sppo" / "none" / "seed-0"
    with claiming(path) as process:
        outcome = srl(
            *("sweep", "discrete_srl", "--envs", "CartPole-v1", "--algos", "sppo", "--noise", "none"),
            *("--seeds", "0", "--timesteps", "64", "--out", tmp_path, *SMALL_WORDS),
        )
        assert outcome.status == 0, outcome.err
        assert "trains 1 of these runs: waited for." in outcome.out
        assert n_waited_for[:2] == [1, 1]
        assert RunDirectory(path).read_status().state == "done"


@pytest.fixture
def long_sweep(tmp_path):
    """A sweep of three long runs in its own process group, two of which are training, and the runs."""
    words = ["sweep", "discrete_srl", "--envs", "CartPole-v1", "--algos", "sppo", "--noise", "none"]
    words += ["--seeds", "0:3", "--timesteps", "100000000", "--jobs", "2", "--out", str(tmp_path / "out")]
    words += ["--population", "off"]
    words += ["--hyperparams", "n_steps=32", "batch_size=32", "n_epochs=1", "n_envs=1"]
    process = start_srl(*words, start_new_session=True)
    runs = [RunDirectory(tmp_path / "out" / "CartPole-v1" / "sppo" / "none" / f"seed-{i}") for i in range(3)]
    try:
        until(lambda: all((run.read_status() or Status("running")).timesteps > 0 for run in runs[:2]))
        yield process, runs
    finally:
        # The process group contains only this sweep
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name
)
def test_stopped_sweep_stops_its_runs_and_can_be_resumed(number, long_sweep, tmp_path):
    process, runs = long_sweep
    # A terminal sends SIGINT and SIGHUP to the process group, kill signals a single process
    (os.kill if number == signal.SIGTERM else os.killpg)(process.pid, number)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 130
    assert "stopped" in err
    assert "Traceback" not in out + err
    assert not runs[2].path.exists()
    for run in runs[:2]:
        assert not run.in_progress
        assert (run.read_status().state, run.read_status().reason) == ("interrupted", "the sweep was stopped")
    assert len(json.loads((tmp_path / "out" / "sweep.json").read_text())["runs"]) == 3
    plan = make_plan([run.read_spec() for run in runs[:2]], tmp_path / "out")
    assert len(plan.to_do) == 2


@pytest.mark.slow
def test_runs_of_a_killed_sweep_exit(long_sweep):
    # Otherwise they hold their folders, and the sweep cannot be resumed
    process, runs = long_sweep
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    until(lambda: not any(run.in_progress for run in runs[:2]))
