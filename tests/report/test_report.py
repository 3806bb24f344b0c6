"""Tables of intact and damaged run directories."""

import csv
import json
import math
import re
import subprocess
import sys
from io import StringIO

import numpy as np
import pytest

from srl.errors import UserError
from srl.report.files import write_tables
from srl.report.published import read_published
from srl.report.runs import UNFINISHED
from srl.report.scores import read_scores
from srl.report.table_formats import to_csv, to_markdown
from srl.rundir.directory import RunDirectory
from srl.rundir.plan import PlannedRun
from srl.rundir.status import Status
from tests.small_runs import contents, small_spec, srl


def lay_down(root, score=None, *, at=None, state="done", reason="", **changes):
    """Write a run directory whose final evaluation has this mean return."""
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


def rows(scores):
    return list(csv.DictReader(StringIO(to_csv(scores.table))))


def markdown(scores):
    return to_markdown(scores.table, scores.left_out)


def test_mean_and_standard_error_match_manual_calculation(tmp_path):
    for seed, score in enumerate((10.0, 20.0, 60.0)):
        lay_down(tmp_path, score, seed=seed)
    (row,) = rows(read_scores(tmp_path))
    # Mean 90 / 3; deviations -20, -10, 30; variance 1400 / 2; standard error sqrt(700 / 3)
    assert float(row["mean"]) == pytest.approx(30.0)
    assert float(row["standard_error"]) == pytest.approx(15.2752523165)
    assert (row["n_seeds"], row["environment"], row["noise"]) == ("3", "CartPole-v1", "none")
    assert (row["algorithm"], row["n_timesteps"], row["variant"]) == ("sppo", "64", "")
    assert "30.0 ± 15.3 (n=3)" in markdown(read_scores(tmp_path))


def test_single_seed_has_a_mean_without_standard_error(tmp_path):
    lay_down(tmp_path, 10.0)
    scores = read_scores(tmp_path)
    (row,) = rows(scores)
    assert (row["mean"], row["standard_error"], row["n_seeds"]) == ("10.0", "", "1")
    assert "10.0 (n=1)" in markdown(scores)
    assert "nan" not in markdown(scores) + to_csv(scores.table)


def test_small_scores_keep_significant_digits(tmp_path):
    for seed, score in enumerate((0.001, 0.003)):
        lay_down(tmp_path, score, seed=seed)
    assert "0.0020 ± 0.0010 (n=2)" in markdown(read_scores(tmp_path))


def test_table_has_a_row_per_environment_and_noise_and_a_column_per_algorithm(tmp_path):
    for score, (env, noise, algo) in enumerate(
        (env, noise, algo)
        for env in ("CartPole-v1", "Acrobot-v1")
        for noise in ("none", "flip:0.1")
        for algo in ("sppo", "ppo", "a2c")
    ):
        lay_down(tmp_path, 10.0 * score, env=env, noise=noise, algo=algo)
    scores = read_scores(tmp_path)
    assert scores.columns == ["A2C", "PPO", "SPPO"]
    assert [(row.env, row.noise) for row in scores.table.rows] == [
        ("Acrobot-v1", "none"),
        ("Acrobot-v1", "flip:0.1"),
        ("CartPole-v1", "none"),
        ("CartPole-v1", "flip:0.1"),
    ]
    assert scores.table.rows[-1].entries["A2C"].value == pytest.approx(50.0)
    assert len(rows(scores)) == 12


def test_runs_of_different_lengths_have_separate_rows(tmp_path):
    lay_down(tmp_path, 10.0, at="short")
    lay_down(tmp_path, 20.0, at="long", n_timesteps=128)
    assert [(row["n_timesteps"], row["mean"]) for row in rows(read_scores(tmp_path))] == [
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
    "missing final evaluation": (
        lambda directory: np.savez(directory.path / "evaluations.npz", timesteps=[32], results=[[1.0, 1.0]]),
        "damaged",
    ),
    "text instead of numbers": (
        lambda directory: np.savez(directory.path / "evaluations.npz", timesteps=[64], results=[["a"]]),
        "damaged",
    ),
    "broken spec": (lambda directory: (directory.path / "spec.json").write_text("{"), None),
    "spec of a later version": (
        lambda directory: (directory.path / "spec.json").write_text('{"format": 2}'),
        None,
    ),
    "broken status": (lambda directory: (directory.path / "status.json").write_text("{"), "damaged"),
    "no status": (lambda directory: (directory.path / "status.json").unlink(), "interrupted"),
    "failed": (
        lambda directory: directory.write_status(Status("failed", reason="it | broke")),
        "failed",
    ),
    "process ended while running": (
        lambda directory: directory.write_status(Status("running", 10, 64)),
        "interrupted",
    ),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_unfinished_or_damaged_run_is_excluded_and_counted(breakage, tmp_path):
    break_, state = BREAKAGES[breakage]
    for seed in range(3):
        lay_down(tmp_path, 10.0 * (seed + 1), seed=seed)
    break_(RunDirectory(tmp_path / small_spec(seed=1).path))
    before = contents(tmp_path)
    scores = read_scores(tmp_path)
    (row,) = rows(scores)
    assert (row["mean"], row["n_seeds"]) == ("20.0", "2")
    assert float(row["standard_error"]) == pytest.approx(10.0)
    counts = {name: row[f"n_{name}"] for name in UNFINISHED}
    assert counts == {name: "1" if name == state else "0" for name in UNFINISHED}
    if state:
        assert f"1 {state}" in markdown(scores)
    assert "seed-1" in "".join(scores.left_out)
    assert contents(tmp_path) == before


def test_running_run_is_counted_as_running(tmp_path):
    lay_down(tmp_path, 10.0)
    directory = lay_down(tmp_path, state="running", seed=1)
    with directory.claimed(small_spec(seed=1)):
        (row,) = rows(read_scores(tmp_path))
    assert (row["n_running"], row["n_seeds"]) == ("1", "1")


def test_absent_planned_runs_are_counted_as_missing(tmp_path):
    lay_down(tmp_path, 10.0)
    plan(tmp_path, *(small_spec(seed=seed) for seed in range(3)), small_spec("ppo"))
    scores = read_scores(tmp_path)
    ppo, sppo = rows(scores)
    assert (sppo["n_missing"], sppo["n_seeds"], sppo["mean"]) == ("2", "1", "10.0")
    assert (ppo["n_missing"], ppo["n_seeds"], ppo["mean"]) == ("1", "0", "")
    assert "2 missing" in markdown(scores)


def test_interrupted_run_that_is_the_folder_itself_is_named_by_its_seed(tmp_path):
    lay_down(tmp_path, at=".", state="interrupted", seed=3)
    assert read_scores(tmp_path).left_out == [".: interrupted: seed-3."]


def test_missing_runs_are_counted_in_a_report_on_several_sweeps(tmp_path):
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    lay_down(sweep, 10.0)
    plan(sweep, small_spec(), small_spec(seed=1))
    (row,) = rows(read_scores(tmp_path))
    assert row["n_missing"] == "1"


@pytest.mark.parametrize(
    "change", [dict(algo="sapo"), dict(n_timesteps="many"), dict(seed=None), dict(env=3)], ids=str
)
def test_plan_with_invalid_entries_is_reported_and_ignored(change, tmp_path):
    lay_down(tmp_path, 10.0)
    lay_down(tmp_path, 10.0, seed=1)
    entry = vars(PlannedRun.of(small_spec(seed=2))) | change
    (tmp_path / "sweep.json").write_text(json.dumps({"format": 1, "runs": [entry]}))
    scores = read_scores(tmp_path)
    assert any("sweep.json: not the plan of a sweep" in note for note in scores.left_out)
    (row,) = rows(scores)
    assert (row["n_seeds"], row["n_missing"]) == ("2", "0")


@pytest.mark.parametrize("compare", [3, ["sppo"], [["sppo", "ppo", "a2c"]], {"sppo": "ppo"}], ids=str)
def test_plan_with_invalid_pairs_is_reported_and_ignored(compare, tmp_path):
    lay_down(tmp_path, 10.0)
    (tmp_path / "sweep.json").write_text(json.dumps({"format": 1, "compare": compare, "runs": []}))
    scores = read_scores(tmp_path)
    assert any("sweep.json: not the plan of a sweep" in note for note in scores.left_out)
    assert scores.compare == []


def test_same_run_in_two_folders_counts_once(tmp_path):
    for folder in ("first", "copy"):
        lay_down(tmp_path / folder, 10.0, seed=0)
    lay_down(tmp_path / "first", 30.0, seed=1)
    scores = read_scores(tmp_path)
    (row,) = rows(scores)
    assert row["n_seeds"] == "2"
    assert row["mean"] == "20.0"
    assert any("seed-0" in note for note in scores.left_out)


def test_variants_of_one_algorithm_have_separate_named_columns(tmp_path):
    for beta, score in ((1.0, 10.0), (2.0, 20.0)):
        for seed in (0, 1):
            lay_down(tmp_path, score, at=f"beta-{beta}/{seed}", seed=seed, overrides={"beta": beta})
    scores = read_scores(tmp_path)
    assert scores.columns == ["SPPO (beta=1.0)", "SPPO (beta=2.0)"]
    assert [(row["variant"], row["mean"], row["n_seeds"]) for row in rows(scores)] == [
        ("beta=1.0", "10.0", "2"),
        ("beta=2.0", "20.0", "2"),
    ]


def test_variants_with_nested_settings_have_separate_columns(tmp_path):
    variants = [None, {"clip_obs": 10.0}, {"clip_obs": 5.0}]
    for score, normalize in enumerate(variants):
        lay_down(tmp_path, 10.0 * score, at=str(score), overrides={"normalize": normalize})
    scores = read_scores(tmp_path)
    assert len(set(scores.columns)) == 3
    assert sorted(row["mean"] for row in rows(scores)) == ["0.0", "10.0", "20.0"]
    assert all(row["n_seeds"] == "1" for row in rows(scores))


def test_execution_settings_do_not_distinguish_runs(tmp_path):
    lay_down(tmp_path, 10.0, seed=0)
    lay_down(tmp_path, 20.0, seed=1, threads=2)
    lay_down(tmp_path, 15.0, seed=2, stacked=True)
    (cell,) = read_scores(tmp_path).cells
    assert cell.mean == 15.0
    assert cell.variant == ""


def test_environments_of_different_backends_are_separate(tmp_path):
    lay_down(tmp_path, 10.0, env=GAME, at="gymnasium")
    lay_down(tmp_path, 20.0, env=GAME, at="native", env_backend="native")
    cells = read_scores(tmp_path).cells
    assert sorted(cell.mean for cell in cells) == [10.0, 20.0]


GAME = "AlienNoFrameskip-v4"


PUBLISHED_PROTOCOL = dict(env=GAME, n_timesteps=5_000_000, n_eval_episodes=10)


def test_published_score_is_shown_next_to_own_score(tmp_path):
    for seed in range(5):
        lay_down(tmp_path, 1000.0 + seed, seed=seed, **PUBLISHED_PROTOCOL)
    scores = read_scores(tmp_path)
    assert r"\[published 1081 ± 79\]" in markdown(scores)
    assert "arXiv 2405.17618" in markdown(scores)
    (row,) = rows(scores)
    assert (row["published_mean"], row["published_n_timesteps"]) == ("1081.0", "5000000")


@pytest.mark.parametrize(
    ("algo", "change", "seeds", "note"),
    [
        ("sppo", dict(n_timesteps=64), 5, "published after 5,000,000 steps, not the row's"),
        ("sppo", {}, 4, "published over 5 seeds"),
        ("sppo", dict(n_eval_episodes=2), 5, "published with n_eval_episodes=10, ours has 2"),
        ("ppo", {}, 5, "published with normalize_advantage=false, ours has true"),
    ],
)
def test_published_score_is_marked_where_its_protocol_differs(algo, change, seeds, note, tmp_path):
    for seed in range(seeds):
        lay_down(tmp_path, 900.0, algo=algo, seed=seed, **PUBLISHED_PROTOCOL | change)
    text = markdown(read_scores(tmp_path))
    assert re.search(r"\[published \d+ ± \d+ †\\\]", text)
    assert f"- † {note}." in text.replace("\\_", "_")
    assert "‡" not in text


def test_each_protocol_difference_has_its_own_mark(tmp_path):
    lay_down(tmp_path, 1000.0, env=GAME)
    text = to_markdown(read_scores(tmp_path, last=2).table)
    marks = re.search(r"published 1081 ± 79 ([^\\]+)", text)[1]
    assert marks == "†‡§¶"
    assert [line[2] for line in text.splitlines() if line.startswith("- ") and "Byun" not in line] == list(
        marks
    )


def test_published_scores_are_not_shown_for_noise_or_other_algorithms(tmp_path):
    lay_down(tmp_path, 1000.0, env=GAME, noise="flip:0.1")
    lay_down(tmp_path, 1000.0, env=GAME, algo="a2c")
    lay_down(tmp_path, 1000.0)
    assert "published" not in markdown(read_scores(tmp_path))


def test_published_scores_cover_eight_games_and_two_algorithms():
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
def test_published_file_error_names_file(text, tmp_path):
    (tmp_path / "mine.yml").write_text(text)
    with pytest.raises(UserError, match=r"mine\.yml"):
        read_published(tmp_path)


@pytest.mark.parametrize(
    "reason", ["a | pipe", "<b>bold</b>", "*stars* and _lines_", "[link](x)", "`code`", "a\nb", r"back\slash"]
)
def test_reasons_are_escaped_in_markdown(reason, tmp_path):
    lay_down(tmp_path, state="failed", reason=reason)
    text = markdown(read_scores(tmp_path))
    (note,) = [line for line in text.splitlines() if line.startswith("- ")]
    for character in "|*_[]`":
        assert note.count(character) == note.count("\\" + character)
    assert "<b>" not in text
    assert text.count("\n| ") == 3


def test_variant_names_are_escaped_in_markdown_table(tmp_path):
    for score, net_arch in enumerate(([8], [16, 16])):
        lay_down(tmp_path, 10.0, at=str(score), overrides={"policy_kwargs": {"net_arch": net_arch}})
    header = next(line for line in markdown(read_scores(tmp_path)).splitlines() if "environment" in line)
    assert header.count("|") - header.count("\\|") == 6
    assert r"net\_arch=\[8\]" in header


def test_tables_are_written_without_modifying_runs(tmp_path):
    lay_down(tmp_path, 10.0)
    lay_down(tmp_path, 20.0, seed=1)
    before = contents(tmp_path)
    scores = read_scores(tmp_path)
    write_tables([scores.table], tmp_path, scores.left_out)
    after = contents(tmp_path)
    new = {"table.md", "table.csv", "table.tex", ".srl-report.json", ".srl-report.lock"}
    assert after.keys() - before.keys() == new
    assert {name: after[name] for name in before} == before


def test_report_of_only_failed_runs_has_a_table(tmp_path):
    lay_down(tmp_path, state="failed", reason="it broke")
    outcome = srl("report", tmp_path)
    assert outcome.status == 0, outcome.err
    assert "1 failed" in outcome.out
    assert "seed-0: failed: it broke" in outcome.out


def test_report_of_only_unreadable_runs_names_them(tmp_path):
    directory = lay_down(tmp_path, 10.0)
    (directory.path / "spec.json").write_text("{")
    outcome = srl("report", tmp_path)
    assert outcome.status == 2
    assert "spec.json" in outcome.err


def test_unwritable_table_folder_is_named_in_error(tmp_path):
    lay_down(tmp_path, 10.0)
    scores = read_scores(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        write_tables([scores.table], tmp_path / "file", [])


def test_empty_cell_is_shown_as_a_dash(tmp_path):
    lay_down(tmp_path, 10.0)
    lay_down(tmp_path, 10.0, algo="ppo", env="Acrobot-v1")
    scores = read_scores(tmp_path)
    assert markdown(scores).count("| - |") == 2


@pytest.mark.slow
def test_sweep_table_does_not_import_the_report_extra():
    code = (
        "import sys, srl.report.files, srl.report.scores\n"
        "print(*{'rliable', 'jinja2', 'pyarrow', 'arch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
