"""Plots of scores against a hyperparameter."""

from __future__ import annotations

import numpy as np
import pytest

from srl.report.ablation import find_ablations
from srl.report.cells import group
from srl.report.figures import draw_ablation
from srl.report.intervals import mean_band
from srl.report.runs import read_runs
from srl.report.tables import column_order
from tests.report.made_runs import lay_down

BETAS = (0.0, 1.0, 5.0, 20.0)


def put(root, score, seed=0, **spec):
    """Write a run with that score."""
    lay_down(root, [[0.0], [score]], seed=seed, **spec)


def put_grid(root, algos=("sppo",), noises=("none",), alphas=(None,), seeds=range(3)):
    for algo in algos:
        for noise in noises:
            for alpha in alphas:
                for beta in BETAS:
                    overrides = {"beta": beta} | ({} if alpha is None else {"alpha": alpha})
                    name = f"{algo}-beta={beta:g}" + ("" if alpha is None else f"-alpha={alpha:g}")
                    for seed in seeds:
                        put(
                            root, beta + seed, seed, algo=algo, noise=noise, variant=name, overrides=overrides
                        )


def ablations(root):
    return find_ablations(group(read_runs(root)[0]))


def test_grid_over_one_number_has_one_line_per_algorithm_and_noise(tmp_path):
    put_grid(tmp_path, ("sppo", "sa2c"), ("none", "flip:0.1"))
    (ablation,) = ablations(tmp_path)
    assert (ablation.task, ablation.name) == (("CartPole-v1", 64), "beta")
    assert list(ablation.lines) == ["none", "flip:0.1"]
    for lines in ablation.lines.values():
        assert sorted(line.label for line in lines) == ["SA2C", "SPPO"]
        for line in lines:
            mean, low, high = mean_band(np.array([[0.0], [1.0], [2.0]]))
            assert line.values == BETAS
            assert line.means == tuple(beta + mean[0] for beta in BETAS)
            assert line.lows == pytest.approx([beta + low[0] for beta in BETAS])
            assert line.highs == pytest.approx([beta + high[0] for beta in BETAS])
            assert line.n_seeds == (3,) * 4


def test_variants_that_differ_in_one_number_form_a_line_with_their_algorithm(tmp_path):
    put(tmp_path, 1.0, algo="sppo")
    put(tmp_path, 2.0, algo="sppo", variant="sppo-strong", overrides={"beta": 5.0})
    put(tmp_path, 3.0, algo="sppo", variant="sppo-other", overrides={"beta": 9.0, "vf_coef": 0.1})
    put(tmp_path, 4.0, algo="sppo", variant="sppo-unweighted", overrides={"importance_weighting": False})
    put(tmp_path, 5.0, algo="ppo")
    (ablation,) = ablations(tmp_path)
    ((line,),) = ablation.lines.values()
    assert (ablation.name, line.label, line.values, line.means) == ("beta", "SPPO", (1.0, 5.0), (1.0, 2.0))
    assert np.isnan([line.lows, line.highs]).all()


def test_grid_over_two_numbers_has_one_plot_per_number(tmp_path):
    put_grid(tmp_path, alphas=(0.5, 1.0), seeds=(0,))
    of_alpha, of_beta = ablations(tmp_path)
    assert (of_alpha.name, of_beta.name) == ("alpha", "beta")
    assert [line.label for line in of_beta.lines["none"]] == ["SPPO (alpha=0.5)", "SPPO (alpha=1.0)"]
    assert len(of_alpha.lines["none"]) == 4


@pytest.mark.parametrize(
    "changes",
    [{}, {"reverse_loss": "mae"}, {"learning_rate": "lin_1e-3"}, {"vf_coef": 0.1, "beta": 3.0}],
    ids=str,
)
def test_columns_that_differ_in_other_ways_form_no_line(changes, tmp_path):
    put(tmp_path, 1.0, algo="sppo")
    if changes:
        put(tmp_path, 2.0, algo="sppo", variant="other", overrides=changes)
    assert ablations(tmp_path) == []


def test_value_without_finished_run_is_omitted(tmp_path):
    put_grid(tmp_path)
    put(tmp_path, 1.0, algo="sppo", variant="sppo-beta=9", overrides={"beta": 9.0}, state="failed")
    ((line,),) = ablations(tmp_path)[0].lines.values()
    assert line.values == BETAS


def test_baselines_are_lines_of_their_own_unless_they_are_points(tmp_path):
    put_grid(tmp_path)
    for seed, score in enumerate((4.0, 6.0)):
        put(tmp_path, score, seed, algo="ppo")
        put(tmp_path, score, seed, algo="ppo", noise="flip:0.1")
    put(tmp_path, 9.0, algo="a2c")
    cells = group(read_runs(tmp_path)[0])
    point = next(cell.column for cell in cells if cell.name == "sppo-beta=1")
    compared = next(cell.column for cell in cells if cell.name == "sppo-beta=5")
    (ablation,) = find_ablations(cells, {(compared, "PPO"), (compared, point), ("PPO", "A2C")})
    ((baseline,),) = ablation.baselines.values()
    mean, low, high = mean_band(np.array([[4.0], [6.0]]))
    assert (baseline.column, baseline.n_seeds) == ("PPO", 2)
    assert (baseline.mean, baseline.low, baseline.high) == (mean[0], low[0], high[0])
    figure = draw_ablation(ablation, column_order(cells), title="a title")
    assert list(figure.axes[0].lines[-1].get_ydata()) == [5.0, 5.0]
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"SPPO", "PPO"}


def test_figure_labels_values_and_lines(tmp_path):
    put_grid(tmp_path, ("sppo", "sa2c"), ("none", "flip:0.1"))
    cells = group(read_runs(tmp_path)[0])
    figure = draw_ablation(find_ablations(cells)[0], column_order(cells), title="a title")
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["without noise", "with noise flip:0.1"]
    for axes in figure.axes:
        assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1", "5", "20"]
        assert axes.get_xlabel() == "beta"
        drawn = [list(container.lines[0].get_ydata()) for container in axes.containers]
        assert drawn == [[1.0, 2.0, 6.0, 21.0]] * 2
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"SPPO", "SA2C"}
