"""Export of evaluations for other programs."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from srl.errors import UserError
from srl.report.export import export
from srl.report.scores import read_scores
from srl.rundir.directory import RunDirectory
from srl.rundir.names import EVALUATIONS
from tests.report.hostile import NAMES, SCRIPT
from tests.report.made_runs import lay_down
from tests.small_runs import contents, srl

NAMES_OF_COLUMNS = [
    *("run", "environment", "algorithm", "name", "variant", "noise", "seed", "n_timesteps", "state"),
    *("evaluation", "timesteps", "mean_return", "std_return", "n_episodes", "mean_ep_length"),
]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Runs in every state, a variant, and a run of another length."""
    root = tmp_path_factory.mktemp("sweep")
    generator = np.random.default_rng(0)

    def returns(n_evaluations, n_episodes=3):
        return 1000.0 * generator.normal(size=(n_evaluations, n_episodes))

    for algo in ("ppo", "sppo"):
        for seed in (0, 1):
            lay_down(root, returns(4), algo=algo, seed=seed)
    lay_down(root, returns(2), algo="ppo", seed=2, state="running", n_timesteps=128, eval_freq=32)
    lay_down(root, returns(3), algo="ppo", seed=3, state="failed", reason="x", n_timesteps=128, eval_freq=32)
    no_evaluation = dict(n_timesteps=128, eval_freq=32, n_eval_episodes=3, n_eval_envs=3)
    lay_down(root, None, algo="ppo", seed=4, state="failed", reason="at once", **no_evaluation)
    lay_down(root, returns(4), seed=0, at="more/beta", overrides={"beta": 2.0})
    lay_down(root, returns(8), seed=0, at="more/long")
    lay_down(root, returns(4), seed=0, noise="flip:0.1")
    damaged = lay_down(root, returns(4), algo="a2c")
    (damaged.path / EVALUATIONS).write_bytes(b"PK")
    no_number = lay_down(root, returns(4), algo="a2c", seed=1)
    with np.load(no_number.path / EVALUATIONS) as arrays:
        columns = dict(arrays)
    columns["results"][-1, 0] = np.nan
    np.savez(no_number.path / EVALUATIONS, **columns)
    return root


@pytest.fixture(scope="module")
def exported(sweep, tmp_path_factory):
    """Two folders, each with all three export formats of the sweep."""
    folders = [tmp_path_factory.mktemp("exported") for _ in range(2)]
    before = contents(sweep)
    for folder in folders:
        for kind in ("json", "parquet", "zoo"):
            outcome = srl("report", sweep, "--format", kind, "--out", folder)
            assert outcome.status == 0, outcome.err
    assert contents(sweep) == before
    return folders


def files(folder):
    return {name: content for name, (_, content) in contents(folder).items()}


def test_exports_are_deterministic(exported):
    first, second = map(files, exported)
    assert first == second
    assert {"evaluations.json", "evaluations.parquet"} < first.keys()


def test_json_has_a_row_per_run_and_evaluation_with_exact_values(sweep, exported):
    rows = json.loads((exported[0] / "evaluations.json").read_text(encoding="utf-8"))
    assert all(list(row) == NAMES_OF_COLUMNS for row in rows)
    by_run = {}
    for row in rows:
        by_run.setdefault(row["run"], []).append(row)
    runs = {run.path: run for run in read_scores(sweep).runs}
    assert by_run.keys() == {path for path, run in runs.items() if run.evaluations is not None}
    assert len(by_run) == 10
    for path, own in by_run.items():
        arrays = RunDirectory(sweep / path).read_evaluations()
        spec, run = RunDirectory(sweep / path).read_spec(), runs[path]
        assert [row["evaluation"] for row in own] == list(range(len(own)))
        assert [row["timesteps"] for row in own] == arrays["timesteps"].tolist()
        expected = [None if np.isnan(mean) else mean for mean in arrays["results"].mean(axis=1).tolist()]
        assert [row["mean_return"] for row in own] == expected
        if None not in expected:
            assert [row["std_return"] for row in own] == arrays["results"].std(axis=1).tolist()
        assert [row["mean_ep_length"] for row in own] == arrays["ep_lengths"].mean(axis=1).tolist()
        for row in own:
            assert row["n_episodes"] == 3
            assert (row["environment"], row["algorithm"]) == (spec.env, spec.algo)
            assert (row["noise"], row["seed"]) == (spec.noise, spec.seed)
            assert (row["n_timesteps"], row["state"]) == (spec.n_timesteps, run.state)


def test_tidy_data_contains_unfinished_runs_with_their_states(exported):
    rows = json.loads((exported[0] / "evaluations.json").read_text(encoding="utf-8"))
    counts = pd.Series([(row["algorithm"], row["seed"], row["state"]) for row in rows]).value_counts()
    assert counts["ppo", 2, "interrupted"] == 2
    assert counts["ppo", 3, "failed"] == 3
    assert counts["a2c", 1, "damaged"] == 4
    assert not [row for row in rows if (row["algorithm"], row["seed"]) in {("ppo", 4), ("a2c", 0)}]
    assert {row["variant"] for row in rows if row["run"] == "more/beta"} == {"beta=2.0"}


def test_parquet_has_the_same_rows_as_json(exported):
    rows = json.loads((exported[0] / "evaluations.json").read_text(encoding="utf-8"))
    table = pd.read_parquet(exported[0] / "evaluations.parquet")
    assert list(table.columns) == NAMES_OF_COLUMNS
    assert len(table) == len(rows)
    for name in NAMES_OF_COLUMNS:
        values = [None if value != value else value for value in table[name].tolist()]
        assert values == [row[name] for row in rows], name
    assert table["timesteps"].dtype == np.int64
    assert table["mean_return"].dtype == np.float64


def test_zoo_export_has_finished_runs_in_folder_layout_of_zoo_scripts(sweep, exported):
    zoo = exported[0] / "zoo"
    place = {
        "none_128-steps/sppo/CartPole-v1_0": "CartPole-v1/sppo/none/seed-0",
        "none_128-steps/sppo/CartPole-v1_1": "CartPole-v1/sppo/none/seed-1",
        "none_128-steps/ppo/CartPole-v1_0": "CartPole-v1/ppo/none/seed-0",
        "none_128-steps/ppo/CartPole-v1_1": "CartPole-v1/ppo/none/seed-1",
        "none_beta-2.0_128-steps/sppo/CartPole-v1_0": "more/beta",
        "none_256-steps/sppo/CartPole-v1_0": "more/long",
        "flip-0.1/sppo/CartPole-v1_0": "CartPole-v1/sppo/flip-0.1/seed-0",
    }
    found = {path.relative_to(zoo).as_posix() for path in zoo.rglob("*") if path.is_file()}
    assert found == {f"{path}/{EVALUATIONS}" for path in place}
    for path, run in place.items():
        assert (zoo / path / EVALUATIONS).read_bytes() == (sweep / run / EVALUATIONS).read_bytes()
        with np.load(zoo / path / EVALUATIONS) as arrays:
            assert arrays["results"].shape[1] == 3


def test_zoo_folders_of_a_plain_sweep_are_noise_algorithm_environment_and_seed(tmp_path):
    for algo, env, seed in (("ppo", "CartPole-v1", 0), ("sppo", "Acrobot-v1", 3)):
        lay_down(tmp_path, [[1.0], [2.0]], algo=algo, env=env, seed=seed, noise="gaussian:0.05")
    assert srl("report", tmp_path, "--format", "zoo").status == 0
    assert sorted(path.parent.relative_to(tmp_path).as_posix() for path in tmp_path.glob("zoo/**/*.npz")) == [
        "zoo/gaussian-0.05/ppo/CartPole-v1_0",
        "zoo/gaussian-0.05/sppo/Acrobot-v1_3",
    ]


@pytest.mark.parametrize("name", [*NAMES.values(), "../../../evil-v0", "/etc/evil", "...", "", "x" * 200])
def test_zoo_export_stays_in_its_folder_for_any_environment_name(name, tmp_path):
    lay_down(tmp_path / "runs", [[1.0], [2.0]], env=name, at="run")
    before = set(contents(tmp_path))
    export(tmp_path / "runs", "zoo", tmp_path / "out")
    (new,) = set(contents(tmp_path)) - before - {"out/.srl-report.json", "out/.srl-report.lock"}
    assert new.startswith("out/zoo/none/sppo/")
    assert new.endswith(f"_0/{EVALUATIONS}")
    assert new.count("/") == 5
    assert not set(new) & set("<>&\"'$\\\n{}* ")


def test_environments_with_the_same_safe_name_have_separate_zoo_folders(tmp_path):
    """For example, ALE/Pong-v5 and ALE-Pong-v5."""
    for number, env in enumerate(("ALE/Pong-v5", "ALE-Pong-v5", "ALE:Pong-v5")):
        lay_down(tmp_path, [[1.0], [float(number)]], env=env, at=str(number))
    (folder,), _ = export(tmp_path, "zoo", tmp_path / "out")
    finals = []
    for file in folder.rglob(EVALUATIONS):
        with np.load(file) as arrays:
            finals.append(arrays["results"][-1, 0])
    assert sorted(finals) == [0.0, 1.0, 2.0]


def test_tidy_data_preserves_hostile_names(tmp_path):
    for number, name in enumerate(NAMES.values()):
        lay_down(tmp_path / "runs", [[1.0], [2.0]], env=name, at=f"{number} {SCRIPT.replace('/', '|')}")
    for kind in ("json", "parquet"):
        export(tmp_path / "runs", kind, tmp_path)
    rows = json.loads((tmp_path / "evaluations.json").read_text(encoding="utf-8"))
    assert {row["environment"] for row in rows} == set(NAMES.values())
    assert set(pd.read_parquet(tmp_path / "evaluations.parquet")["environment"]) == set(NAMES.values())


def test_removed_runs_are_missing_from_a_new_export(tmp_path):
    for seed in (0, 1):
        lay_down(tmp_path, [[1.0], [2.0]], seed=seed)
    export(tmp_path, "zoo", tmp_path)
    shutil.rmtree(tmp_path / "CartPole-v1" / "sppo" / "none" / "seed-0")
    export(tmp_path, "zoo", tmp_path)
    assert [path.name for path in sorted((tmp_path / "zoo" / "none" / "sppo").iterdir())] == ["CartPole-v1_1"]


@pytest.mark.parametrize("above", [False, True], ids=["sweep folder", "parent folder"])
def test_report_ignores_files_of_an_earlier_export(above, tmp_path):
    sweep = tmp_path / "runs" / "sweep"
    for seed in (0, 1):
        lay_down(sweep, [[1.0], [2.0]], seed=seed)
    root = sweep.parent if above else sweep
    before = [run.score for run in read_scores(root).runs]
    for kind in ("json", "parquet", "zoo"):
        export(sweep, kind, sweep)
    scores = read_scores(root)
    assert [run.score for run in scores.runs] == before
    assert scores.left_out == []


def test_failed_export_keeps_the_previous_one(tmp_path, monkeypatch):
    for seed in (0, 1):
        lay_down(tmp_path, [[1.0], [2.0]], seed=seed)
    export(tmp_path, "zoo", tmp_path)
    before = files(tmp_path)
    copy = shutil.copyfile

    def no_space(source, target):
        if "seed-1" in str(source):
            raise OSError(28, "No space left on device")
        copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", no_space)
    outcome = srl("report", tmp_path, "--format", "zoo")
    assert outcome.status == 1
    assert "No space left" in outcome.err
    assert files(tmp_path) == before
    assert read_scores(tmp_path).left_out == []


@pytest.mark.parametrize("kind", ["json", "parquet", "zoo"])
def test_export_of_runs_without_evaluations_is_rejected_in_every_format(kind, tmp_path):
    lay_down(tmp_path, None, state="failed", reason="at once", n_timesteps=64)
    before = contents(tmp_path)
    with pytest.raises(UserError, match="no run"):
        export(tmp_path, kind, tmp_path)
    assert contents(tmp_path) == before


def test_unrecorded_episode_lengths_are_exported_as_missing(tmp_path):
    directory = lay_down(tmp_path, [[1.0], [2.0]])
    with np.load(directory.path / EVALUATIONS) as arrays:
        columns = {name: arrays[name] for name in ("timesteps", "results")}
    np.savez(directory.path / EVALUATIONS, **columns)
    for kind in ("json", "parquet"):
        export(tmp_path, kind, tmp_path)
    rows = json.loads((tmp_path / "evaluations.json").read_text(encoding="utf-8"))
    assert [row["mean_ep_length"] for row in rows] == [None, None]
    assert pd.read_parquet(tmp_path / "evaluations.parquet")["mean_ep_length"].isna().all()
