"""Sweep columns: named variants, grids and comparisons."""

from __future__ import annotations

from pathlib import Path

import pytest

from srl.config.population import population_key
from srl.config.sweep import load_sweep
from srl.config.variants import column_order
from srl.errors import UserError
from srl.rundir.plan import read_comparisons
from srl.sweep.plan import expand
from srl.training.run import train_run
from tests.small_runs import contents, srl

FILE = """envs: [CartPole-v1]
algos: [ppo, sppo]
variants:
  ppo-rescaled: {algo: ppo, vf_coef: 0.3, max_grad_norm: 0.3}
  sppo-unweighted: {algo: sppo, importance_weighting: false}
compare:
  - [sppo, ppo]
  - [sppo, ppo-rescaled]
noise: [none]
seeds: [0, 1]
n_timesteps: 64
eval_freq: 32
n_eval_episodes: 2
overrides: {n_steps: 32, batch_size: 32, n_epochs: 1}
"""


@pytest.fixture
def file(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.yml"
    path.write_text(FILE)
    return path


def columns(*args, **kwargs) -> dict[str, dict]:
    specs, _ = expand(load_sweep(*args, **kwargs))
    return {Path(spec.path).parts[1]: spec for spec in specs}


def test_variant_overrides_hyperparameters_of_its_algorithm_in_its_own_folder(file):
    found = columns(file)
    assert list(found) == ["ppo", "sppo", "ppo-rescaled", "sppo-unweighted"]
    rescaled = found["ppo-rescaled"]
    assert (rescaled.algo, rescaled.variant) == ("ppo", "ppo-rescaled")
    assert (rescaled.hyperparams.vf_coef, rescaled.hyperparams.max_grad_norm) == (0.3, 0.3)
    assert found["ppo"].variant is None
    changed = {"variant": "ppo-rescaled", "hyperparams": rescaled.hyperparams}
    assert found["ppo"].model_copy(update=changed) == rescaled


def test_grid_expands_to_one_column_per_combination_and_one_population_per_family(file):
    found = columns(file, algos=["sppo", "sa2c"], grid={"beta": [0, 1, 5, 20]})
    assert list(found) == [f"{algo}-beta-{beta}" for algo in ("sppo", "sa2c") for beta in (0, 1, 5, 20)]
    assert [spec.hyperparams.beta for spec in found.values()] == [0, 1, 5, 20] * 2
    assert found["sppo-beta-5"].variant == "sppo-beta=5"
    assert len({population_key(spec) for spec in found.values()}) == 2
    two = columns(file, algos=["sppo"], grid={"beta": [1, 5], "alpha": [0.5, 1]})
    assert list(two)[:2] == ["sppo-beta-1-alpha-0.5", "sppo-beta-1-alpha-1"]


@pytest.mark.parametrize(
    ("key", "values", "names"),
    [
        ("vf_coef", [0.12345671, 0.12345672, 0.25], ["0.12345671", "0.12345672", "0.25"]),
        ("learning_rate", [1e-05, 1000000.0, "lin_1e-3", 3], ["1e-05", "1e+06", "lin_1e-3", "3"]),
        ("clip_range_vf", [None, 0.1], ["none", "0.1"]),
    ],
)
def test_different_points_of_a_grid_have_different_names(key, values, names, file):
    options = load_sweep(file, algos=["sppo"], grid={key: values})
    assert [column.name for column in options.columns()] == [f"sppo-{key}={name}" for name in names]


@pytest.mark.parametrize(
    ("key", "values", "says"),
    [
        ("learning_rate", [0.5, 0.0001, "1e-4"], "sppo-learning_rate=0.0001 and sppo-learning_rate=1e-4"),
        ("importance_weighting", [True, "yes"], "sppo-importance_weighting=true and"),
        ("n_steps", [1000, "1e3"], "sppo-n_steps=1000 and sppo-n_steps=1e3"),
    ],
)
def test_points_of_a_grid_with_equal_values_are_refused(key, values, says, file):
    with pytest.raises(UserError, match=f"grid: the points {says}.* have equal values"):
        load_sweep(file, algos=["sppo"], grid={key: values})


@pytest.mark.slow
def test_beta_grid_trains_one_population_per_family_and_writes_one_table(tmp_path):
    words = ["--envs", "CartPole-v1", "--algos", "sppo", "sa2c", "--noise", "none", "--seeds", "0:2"]
    words += ["--grid", "beta=0,1,5,20", "--timesteps", "64", "--jobs", "2", "--out", tmp_path]
    small = ["--eval-freq", "32", "--eval-episodes", "2", "--hyperparams", "n_steps=32", "n_envs=1"]
    outcome = srl("sweep", "discrete_srl", *words, *small)
    assert outcome.status == 0, outcome.err
    assert "Pending: 16 in 2 populations of 8, 2 at a time" in outcome.out
    header, _, row = (line for line in (tmp_path / "table.md").read_text().splitlines() if "|" in line)
    columns = [f"{algo}-beta={beta}" for algo in ("sppo", "sa2c") for beta in (0, 1, 5, 20)]
    assert sorted(name.strip() for name in header.split("|") if "beta" in name) == sorted(columns)
    assert row.count("(n=2)") == 8


def test_variants_of_one_family_form_one_population(file):
    found = columns(
        file, algos=["sppo"], grid={"reverse_loss": ["rce", "mae"], "advantage_transform": ["none", "sign"]}
    )
    assert {spec.hyperparams.reverse_loss for spec in found.values()} == {"rce", "mae"}
    assert len({population_key(spec) for spec in [*found.values(), *columns(file).values()]}) == 1


def test_command_line_selects_columns_and_their_comparisons(file):
    options = load_sweep(file, algos=["ppo-rescaled", "sppo"])
    assert [column.name for column in options.columns()] == ["sppo", "ppo-rescaled"]
    assert options.compare == [["sppo", "ppo-rescaled"]]


@pytest.mark.slow
def test_changed_comparisons_replace_those_of_the_same_columns_without_training(file):
    first = FILE.replace("  - [sppo, ppo-rescaled]\n", "")
    file.write_text(first)
    words = ("sweep", "mine.yml", "--seeds", 0, "--algos", "ppo", "sppo", "--out", "runs")
    for spec in expand(load_sweep(file, seeds=["0"], algos=["ppo", "sppo"]))[0]:
        train_run(spec, Path("runs") / spec.path)
    assert srl(*words, "--dry-run").status == 0
    assert read_comparisons(Path("runs")) == []
    assert "Pending: 0" in srl(*words).out
    assert read_comparisons(Path("runs")) == [("sppo", "ppo")]
    # Pairs of columns that a sweep does not have are kept
    assert srl(*words[:-4], "ppo", *words[-2:]).status == 0
    assert read_comparisons(Path("runs")) == [("sppo", "ppo")]
    file.write_text(first.replace("  - [sppo, ppo]", "  - [ppo, sppo]"))
    assert srl(*words).status == 0
    assert read_comparisons(Path("runs")) == [("ppo", "sppo")]


def test_variants_are_selected_from_a_file_with_a_grid(file):
    pairs = "compare:\n  - [sppo, ppo]\n  - [sppo, ppo-rescaled]\n"
    file.write_text(FILE.replace("[ppo, sppo]", "[sppo]").replace(pairs, "grid: {beta: [0, 1]}\n"))
    assert [column.name for column in load_sweep(file, algos=["ppo-rescaled"]).columns()] == ["ppo-rescaled"]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("ppo-rescaled: {algo: ppo,", "ppo: {algo: ppo,", ["line 4", "variants.ppo", "name of an algorithm"]),
        ("sppo-unweighted:", "PPO-rescaled:", ["line 5", "'ppo-rescaled' is taken"]),
        ("sppo-unweighted:", "ppo=rescaled:", ["line 5", "ppo=rescaled", "of 'ppo-rescaled' is taken"]),
        ("sppo-unweighted:", "ppo-rescaled:", ["line 5", "first in line 4"]),
        ("algos: [ppo, sppo]", "algos: [ppo, sppo, PPO]", ["line 2", "key algos: 'ppo' is specified twice"]),
        ("sppo-unweighted:", "a/b:", ["line 5", "not a valid column name"]),
        ("{algo: ppo, vf_coef", "{algo: pppo, vf_coef", ["line 4", "Did you mean ppo"]),
        ("vf_coef: 0.3", "vf_coeff: 0.3", ["line 4", "not a hyperparameter of PPO", "Did you mean vf_coef"]),
        ("vf_coef: 0.3", "beta: 0.3", ["line 4", "not a hyperparameter of PPO"]),
        ("vf_coef: 0.3", "vf_coef: -0.3", ["line 4", "variants.ppo-rescaled.vf_coef", "-0.3"]),
        ("{algo: ppo, vf_coef", "{vf_coef", ["line 4", "key algo"]),
        ("[sppo, ppo-rescaled]", "[sppo, ppo-rescale]", ["line 8", "Did you mean ppo-rescaled"]),
        ("[sppo, ppo-rescaled]", "[sppo, sppo]", ["line 8", "two different columns"]),
        ("[sppo, ppo-rescaled]", "[sppo]", ["line 8", "two different columns"]),
        ("[sppo, ppo-rescaled]", "[ppo, sppo]", ["line 8", "compare.1", "the same as ['sppo', 'ppo']"]),
        ("seeds: [0, 1]", "seeds: [0, 1]\ngrid: {beta: [0, 1]}", ["line 11", "does not apply to PPO"]),
        ("algos: [ppo, sppo]", "algos: [sppo]\ngrid: {bet: [1]}", ["line 3", "Did you mean beta"]),
        ("algos: [ppo, sppo]", "algos: [sppo]\ngrid: {beta: 1}", ["line 3", "list of values"]),
        ("algos: [ppo, sppo]", "algos: [sppo]\ngrid: {beta: [1, 1.0]}", ["line 3", "is specified twice"]),
        ("algos: [ppo, sppo]", "algos: [sppo]\ngrid: {beta: [-1]}", ["line 3", "grid.beta", "-1"]),
        ("algos: [ppo, sppo]", "grid: {bet: [1]}", ["line 2", "key grid:", "algos is empty"]),
    ],
)  # fmt: skip
def test_variant_error_names_line_and_key(old, new, says, file):
    file.write_text(FILE.replace(old, new))
    before = contents(file.parent)
    outcome = srl("sweep", "mine.yml", "--out", "runs")
    assert outcome.status == 2
    assert all(word in outcome.err for word in says), outcome.err
    assert contents(file.parent) == before


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--grid", "beta=0,1"], "--grid beta: does not apply to PPO"),
        (["--algos", "sppo", "--grid", "beta=0,x"], "beta"),
        (["--algos", "sppo", "--grid", "beta"], "NAME=VALUE"),
        (["--algos", "ppo-rescale"], "ppo-rescale"),
        (["--algos", "ppo-rescaled", "--grid", "vf_coef=0.1,0.5"], "--grid: expands algorithms"),
    ],
)
def test_command_line_error_names_option(words, says, file):
    outcome = srl("sweep", "mine.yml", "--out", "runs", *words)
    assert outcome.status == 2
    assert says in outcome.err
    assert not Path("runs").exists()


def test_columns_are_ordered_by_the_numbers_in_their_names():
    rates = ["1e-05", "3e-4", "1e-3", "0.5", "2", "10"]
    names = ["sppo", *(f"sppo-learning_rate={rate}" for rate in rates)]
    assert sorted([*names[3:], *names[:3]], key=lambda name: column_order("sppo", name)) == names
