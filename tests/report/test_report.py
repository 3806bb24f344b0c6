"""Tables from run directories, also from broken ones."""

import csv
import json
import math
from io import StringIO

import numpy as np
import pytest

from srl.errors import UserError
from srl.experiment.store import PlannedRun, RunDirectory, Status
from srl.report.scores import group, read_scores
from srl.report.table import csv_text, format_cell, make_report, markdown, read_published, write_report
from tests.experiment.small_runs import contents, small_spec, srl


def lay_down(root, score=None, *, at=None, state="done", reason="", **changes):
    """A run directory as a run leaves it, whose final evaluation has this mean return."""
    stacked = changes.pop("stacked", False)
    spec = small_spec(**changes).model_copy(update={"stacked": stacked})
    directory = RunDirectory(root / (at or spec.path))
    with directory.claimed(spec):
        pass
    directory.write_status(Status(state, 64, 64, reason=reason))
    if score is not None:
        results = np.array([[0.0, 0.0], [score - 1, score + 1]])
        np.savez(
            directory.path / "evaluations.npz",
            timesteps=np.array([32, spec.n_timesteps]),
            results=results,
            ep_lengths=results.astype(int),
        )
    return directory


def plan(root, *specs):
    runs = [vars(PlannedRun.of(spec)) for spec in specs]
    (root / "sweep.json").write_text(json.dumps({"format": 1, "runs": runs}))


def rows(report):
    return list(csv.DictReader(StringIO(csv_text(report))))


def test_mean_and_standard_error_are_those_computed_by_hand(tmp_path):
    for seed, score in enumerate((10.0, 20.0, 60.0)):
        lay_down(tmp_path, score, seed=seed)
    (row,) = rows(make_report(tmp_path))
    # Mean 90 / 3; deviations -20, -10, 30; variance 1400 / 2; error sqrt(700 / 3)
    assert float(row["mean"]) == pytest.approx(30.0)
    assert float(row["standard_error"]) == pytest.approx(15.2752523165)
    assert (row["n_seeds"], row["environment"], row["noise"]) == ("3", "CartPole-v1", "none")
    assert (row["algorithm"], row["n_timesteps"], row["variant"]) == ("sppo", "64", "")
    assert "30.0 ± 15.3 (n=3)" in markdown(make_report(tmp_path))


def test_one_seed_has_a_mean_and_no_error(tmp_path):
    lay_down(tmp_path, 10.0)
    report = make_report(tmp_path)
    (row,) = rows(report)
    assert (row["mean"], row["standard_error"], row["n_seeds"]) == ("10.0", "", "1")
    assert "10.0 (n=1)" in markdown(report)
    assert "nan" not in markdown(report) + csv_text(report)


def test_small_scores_keep_their_digits(tmp_path):
    for seed, score in enumerate((0.001, 0.003)):
        lay_down(tmp_path, score, seed=seed)
    assert "0.0020 ± 0.0010 (n=2)" in markdown(make_report(tmp_path))


def test_table_has_a_row_for_each_environment_and_noise_and_a_column_for_each_algorithm(tmp_path):
    for score, (env, noise, algo) in enumerate(
        (env, noise, algo)
        for env in ("CartPole-v1", "Acrobot-v1")
        for noise in ("none", "flip:0.1")
        for algo in ("sppo", "ppo", "a2c")
    ):
        lay_down(tmp_path, 10.0 * score, env=env, noise=noise, algo=algo)
    report = make_report(tmp_path)
    assert report.columns == ["A2C", "PPO", "SPPO"]
    assert [row[:2] for row in report.rows] == [
        ("Acrobot-v1", "none"),
        ("Acrobot-v1", "flip:0.1"),
        ("CartPole-v1", "none"),
        ("CartPole-v1", "flip:0.1"),
    ]
    assert report.find(("CartPole-v1", "flip:0.1", 64), "A2C").mean == pytest.approx(50.0)
    assert len(rows(report)) == 12


def test_runs_of_another_length_are_a_row_of_their_own(tmp_path):
    lay_down(tmp_path, 10.0, at="short")
    lay_down(tmp_path, 20.0, at="long", n_timesteps=128)
    assert [(row["n_timesteps"], row["mean"]) for row in rows(make_report(tmp_path))] == [
        ("64", "10.0"),
        ("128", "20.0"),
    ]


def break_evaluations(directory):
    file = directory.path / "evaluations.npz"
    file.write_bytes(file.read_bytes()[:100])


BREAKAGES = {
    "truncated evaluations": (break_evaluations, "damaged"),
    "no evaluations": (lambda directory: (directory.path / "evaluations.npz").unlink(), "damaged"),
    "not a number": (
        lambda directory: np.savez(
            directory.path / "evaluations.npz", timesteps=[64], results=[[math.nan, 1.0]]
        ),
        "damaged",
    ),
    "evaluated too early": (
        lambda directory: np.savez(directory.path / "evaluations.npz", timesteps=[32], results=[[1.0, 1.0]]),
        "damaged",
    ),
    "text for figures": (
        lambda directory: np.savez(directory.path / "evaluations.npz", timesteps=[64], results=[["a"]]),
        "damaged",
    ),
    "broken spec": (lambda directory: (directory.path / "spec.json").write_text("{"), None),
    "spec of a later version": (
        lambda directory: (directory.path / "spec.json").write_text('{"format": 2}'),
        None,
    ),
    "broken status": (lambda directory: (directory.path / "status.json").write_text("{"), "interrupted"),
    "no status": (lambda directory: (directory.path / "status.json").unlink(), "interrupted"),
    "failed": (
        lambda directory: directory.write_status(Status("failed", reason="it | broke")),
        "failed",
    ),
    "gone while running": (
        lambda directory: directory.write_status(Status("running", 10, 64)),
        "interrupted",
    ),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_broken_run_is_left_out_and_counted_and_the_rest_is_right(breakage, tmp_path):
    break_, state = BREAKAGES[breakage]
    for seed in range(3):
        lay_down(tmp_path, 10.0 * (seed + 1), seed=seed)
    break_(RunDirectory(tmp_path / small_spec(seed=1).path))
    before = contents(tmp_path)
    report = make_report(tmp_path)
    (row,) = rows(report)
    assert (row["mean"], row["n_seeds"]) == ("20.0", "2")
    assert float(row["standard_error"]) == pytest.approx(10.0)
    states = ("running", "interrupted", "failed", "damaged", "missing")
    counts = {name: row[f"n_{name}"] for name in states}
    assert counts == {name: "1" if name == state else "0" for name in states}
    if state:
        assert f"1 {state}" in markdown(report)
    if state != "interrupted":
        assert "seed-1" in "".join(report.notes)
    assert contents(tmp_path) == before


def test_run_that_trains_now_is_running(tmp_path):
    lay_down(tmp_path, 10.0)
    directory = lay_down(tmp_path, state="running", seed=1)
    with directory.claimed(small_spec(seed=1)):
        (row,) = rows(make_report(tmp_path))
    assert (row["n_running"], row["n_seeds"]) == ("1", "1")


def test_planned_runs_that_are_not_there_are_missing(tmp_path):
    lay_down(tmp_path, 10.0)
    plan(tmp_path, *(small_spec(seed=seed) for seed in range(3)), small_spec("ppo"))
    report = make_report(tmp_path)
    ppo, sppo = rows(report)
    assert (sppo["n_missing"], sppo["n_seeds"], sppo["mean"]) == ("2", "1", "10.0")
    assert (ppo["n_missing"], ppo["n_seeds"], ppo["mean"]) == ("1", "0", "")
    assert "2 missing" in markdown(report)


def test_missing_runs_are_marked_in_a_report_on_several_sweeps(tmp_path):
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    lay_down(sweep, 10.0)
    plan(sweep, small_spec(), small_spec(seed=1))
    (row,) = rows(make_report(tmp_path))
    assert row["n_missing"] == "1"


@pytest.mark.parametrize(
    "change", [dict(algo="sapo"), dict(n_timesteps="many"), dict(seed=None), dict(env=3)], ids=str
)
def test_plan_with_entries_of_another_kind_is_named_and_left_out(change, tmp_path):
    lay_down(tmp_path, 10.0)
    lay_down(tmp_path, 10.0, seed=1)
    entry = vars(PlannedRun.of(small_spec(seed=2))) | change
    (tmp_path / "sweep.json").write_text(json.dumps({"format": 1, "runs": [entry]}))
    report = make_report(tmp_path)
    assert any("sweep.json: not the plan of a sweep" in note for note in report.notes)
    (row,) = rows(report)
    assert (row["n_seeds"], row["n_missing"]) == ("2", "0")


def test_same_run_in_two_folders_is_one_seed(tmp_path):
    for folder in ("first", "copy"):
        lay_down(tmp_path / folder, 10.0, seed=0)
    lay_down(tmp_path / "first", 30.0, seed=1)
    report = make_report(tmp_path)
    (row,) = rows(report)
    assert row["n_seeds"] == "2"
    assert row["mean"] == "20.0"
    assert any("seed-0" in note for note in report.notes)


def test_variants_of_one_algorithm_are_kept_apart_and_named(tmp_path):
    for beta, score in ((1.0, 10.0), (2.0, 20.0)):
        for seed in (0, 1):
            lay_down(tmp_path, score, at=f"beta-{beta}/{seed}", seed=seed, overrides={"beta": beta})
    report = make_report(tmp_path)
    assert report.columns == ["SPPO (beta=1.0)", "SPPO (beta=2.0)"]
    assert [(row["variant"], row["mean"], row["n_seeds"]) for row in rows(report)] == [
        ("beta=1.0", "10.0", "2"),
        ("beta=2.0", "20.0", "2"),
    ]


def test_variants_that_nest_their_settings_differently_are_all_in_the_table(tmp_path):
    variants = [None, {"clip_obs": 10.0}, {"clip_obs": 5.0}]
    for score, normalize in enumerate(variants):
        lay_down(tmp_path, 10.0 * score, at=str(score), overrides={"normalize": normalize})
    report = make_report(tmp_path)
    assert len(set(report.columns)) == 3
    assert sorted(row["mean"] for row in rows(report)) == ["0.0", "10.0", "20.0"]
    assert all(row["n_seeds"] == "1" for row in rows(report))


def test_how_a_run_was_executed_does_not_tell_it_apart(tmp_path):
    lay_down(tmp_path, 10.0, seed=0)
    lay_down(tmp_path, 20.0, seed=1, threads=2)
    lay_down(tmp_path, 15.0, seed=2, stacked=True)
    (cell,) = group(read_scores(tmp_path)[0])
    assert cell.mean == 15.0
    assert cell.variant == ""


def test_environments_of_another_backend_are_another_row_or_column(tmp_path):
    lay_down(tmp_path, 10.0, env=GAME, at="gymnasium")
    lay_down(tmp_path, 20.0, env=GAME, at="native", env_backend="native")
    cells = group(read_scores(tmp_path)[0])
    assert sorted(cell.mean for cell in cells) == [10.0, 20.0]


GAME = "AlienNoFrameskip-v4"


def test_published_figure_stands_beside_ours_with_a_mark_where_the_steps_differ(tmp_path):
    lay_down(tmp_path, 1000.0, env=GAME)
    lay_down(tmp_path, 900.0, env=GAME, algo="ppo", n_timesteps=5_000_000)
    report = make_report(tmp_path)
    text = markdown(report)
    assert r"\[published 1081 ± 79 †\]" in text
    assert r"\[published 1128 ± 105\]" in text
    assert "† published after 5,000,000 steps, not the row's" in text
    assert "arXiv 2405.17618" in text
    by_algo = {row["algorithm"]: row for row in rows(report)}
    assert (by_algo["ppo"]["published_mean"], by_algo["ppo"]["published_n_timesteps"]) == (
        "1128.0",
        "5000000",
    )


def test_published_figures_are_not_set_beside_noise_or_other_algorithms(tmp_path):
    lay_down(tmp_path, 1000.0, env=GAME, noise="flip:0.1")
    lay_down(tmp_path, 1000.0, env=GAME, algo="a2c")
    lay_down(tmp_path, 1000.0)
    assert "published" not in markdown(make_report(tmp_path))


def test_published_figures_are_eight_games_of_two_algorithms():
    published = read_published()
    assert len(published) == 16
    assert {algo for _, _, algo in published} == {"ppo", "sppo"}


@pytest.mark.parametrize(
    "text",
    [
        "scores: {}\n",
        "protocol: 3\nsource: x\nscores: {A-v0: {ppo: [1, 2]}}\n",
        "a: [\n",
        "protocol: {noise: none}\n",
    ],
)
def test_malformed_published_file_is_named(text, tmp_path):
    (tmp_path / "mine.yml").write_text(text)
    with pytest.raises(UserError, match=r"mine\.yml"):
        read_published(tmp_path)


@pytest.mark.parametrize(
    "reason", ["a | pipe", "<b>bold</b>", "*stars* and _lines_", "[link](x)", "`code`", "a\nb", r"back\slash"]
)
def test_reasons_are_text_in_markdown(reason, tmp_path):
    lay_down(tmp_path, state="failed", reason=reason)
    text = markdown(make_report(tmp_path))
    (note,) = [line for line in text.splitlines() if line.startswith("- ")]
    for character in "|*_[]`":
        assert note.count(character) == note.count("\\" + character)
    assert "<b>" not in text
    assert text.count("\n| ") == 3


def test_variants_names_are_text_in_the_markdown_table(tmp_path):
    for score, net_arch in enumerate(([8], [16, 16])):
        lay_down(tmp_path, 10.0, at=str(score), overrides={"policy_kwargs": {"net_arch": net_arch}})
    header = next(line for line in markdown(make_report(tmp_path)).splitlines() if "environment" in line)
    assert header.count("|") - header.count("\\|") == 6
    assert r"net\_arch=\[8\]" in header


def test_report_prints_and_writes_the_table_and_touches_no_run(tmp_path):
    lay_down(tmp_path, 10.0)
    lay_down(tmp_path, 20.0, seed=1)
    before = contents(tmp_path)
    outcome = srl("report", tmp_path)
    assert outcome.status == 0, outcome.err
    assert "15.0 ± 5.0 (n=2)" in outcome.out
    after = contents(tmp_path)
    assert after.keys() - before.keys() == {"table.md", "table.csv"}
    assert {name: after[name] for name in before} == before
    again = srl("report", tmp_path)
    assert again.status == 0
    assert {name: content for name, (_, content) in contents(tmp_path).items()} == {
        name: content for name, (_, content) in after.items()
    }


def test_report_of_failed_runs_alone_is_a_table_too(tmp_path):
    lay_down(tmp_path, state="failed", reason="it broke")
    outcome = srl("report", tmp_path)
    assert outcome.status == 0, outcome.err
    assert "1 failed" in outcome.out
    assert "seed-0: failed: it broke" in outcome.out


def test_report_of_unreadable_runs_alone_names_them(tmp_path):
    directory = lay_down(tmp_path, 10.0)
    (directory.path / "spec.json").write_text("{")
    outcome = srl("report", tmp_path)
    assert outcome.status == 2
    assert "spec.json" in outcome.err


def test_table_of_a_folder_that_cannot_be_written_names_it(tmp_path):
    lay_down(tmp_path, 10.0)
    report = make_report(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        write_report(report, tmp_path / "file")


def test_empty_cell_is_a_dash(tmp_path):
    lay_down(tmp_path, 10.0)
    lay_down(tmp_path, 10.0, algo="ppo", env="Acrobot-v1")
    report = make_report(tmp_path)
    assert format_cell(report, report.find(("Acrobot-v1", "none", 64), "SPPO")) == ["-"]
    assert markdown(report).count("| - |") == 2
