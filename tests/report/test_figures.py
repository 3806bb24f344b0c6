"""Appearance of figures."""

import io
from itertools import combinations
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb
from matplotlib.text import Text
from PIL import Image

from srl.config.algorithms import ALGORITHMS
from srl.report import figures
from srl.report.aggregate import Aggregate
from srl.report.comparison import Comparison, Improvement, Matched
from srl.report.curves import Curve
from srl.report.intervals import Estimate
from srl.report.statistics import AGGREGATES
from tests.report.hostile import NAMES

CONTINUOUS = ("A2C", "PPO", "SA2C", "SPPO")
DISCRETIZED = ("DA2C", "DPPO", "DSA2C", "DSPPO")
ALL = [algorithm.label for algorithm in ALGORITHMS.values() if not algorithm.on_language_models]
LANGUAGE_MODELS = [algorithm.label for algorithm in ALGORITHMS.values() if algorithm.on_language_models]
#: Columns of the project's own study.
STUDY = ("DA2C", "DSA2C", "DPPO", "dppo-rescaled", "DSPPO", "dsppo-unweighted")
VARIANTS = [f"SPPO (beta={beta})" for beta in (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)]

#: Simulation of color vision deficiency of severity 1.0 on linear RGB: Machado, Oliveira and Fernandes, "A
#: Physiologically-based Model for Simulation of Color Vision Deficiency", IEEE Transactions on Visualization
#: and Computer Graphics 15(6), 2009.
SIGHTS = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
}


def lab(color, sight="normal"):
    """Return a perceived color in CIELAB with the white point D65."""
    srgb = np.array(to_rgb(color))
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(SIGHTS[sight] @ linear, 0.0, 1.0)
    to_xyz = [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.072175],
        [0.0193339, 0.119192, 0.9503041],
    ]
    xyz = np.array(to_xyz) @ seen / [0.95047, 1.0, 1.08883]
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * 841 / 108 + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def differ_in_shape(left, right):
    """Return whether lines, and points without lines, are distinguishable without color."""
    return left.marker != right.marker and (left.marker, left.dashes) != (right.marker, right.dashes)


@pytest.mark.parametrize("column", ALL)
def test_style_of_an_algorithm_does_not_depend_on_other_columns(column):
    variant = f"{column} (beta=2.0)"
    alone = figures.style(column, [column])
    for others in (ALL, ALL[::-1], [column, variant], [*ALL, *VARIANTS[:2]]):
        assert figures.style(column, others) == alone
    assert figures.style(variant, [*ALL, variant]).color == alone.color


@pytest.mark.parametrize("names", [ALL, LANGUAGE_MODELS], ids=len)
def test_algorithms_have_distinct_colors(names):
    for left, right in combinations(names, 2):
        colors = [lab(figures.style(name, names).color) for name in (left, right)]
        assert np.linalg.norm(colors[0] - colors[1]) > 30, (left, right)


@pytest.mark.parametrize("names", [CONTINUOUS, DISCRETIZED], ids=str)
@pytest.mark.parametrize("sight", ["greyscale", "protanopia", "deuteranopia"])
def test_common_sets_of_algorithms_are_distinguishable_without_full_color(names, sight):
    for left, right in combinations(names, 2):
        styles = [figures.style(name, names) for name in (left, right)]
        if sight == "greyscale":
            distance = abs(lab(styles[0].color)[0] - lab(styles[1].color)[0])
        else:
            distance = np.linalg.norm(lab(styles[0].color, sight) - lab(styles[1].color, sight))
        assert distance > 30 or differ_in_shape(*styles), (left, right, distance)


@pytest.mark.parametrize("name", ["A2C", "PPO", "DA2C", "DPPO", "LLM-PPO", "LLM-GRPO"])
def test_symmetric_algorithm_differs_from_baseline_in_lightness_and_dashes(name):
    """Readers without color vision can distinguish the pair by either property."""
    symmetric = name.replace("A2C", "SA2C").replace("PPO", "SPPO").replace("GRPO", "SGRPO")
    names = LANGUAGE_MODELS if name in LANGUAGE_MODELS else ALL
    styles = [figures.style(one, names) for one in (name, symmetric)]
    assert styles[1].dashes == "-" != styles[0].dashes
    assert lab(styles[0].color)[0] - lab(styles[1].color)[0] > 25


def test_colors_contrast_with_the_page():
    for name in ALL:
        assert lab(figures.style(name, ALL).color)[0] < 75, name


@pytest.mark.parametrize("first", ["SPPO", "PPO"])
def test_variants_of_an_algorithm_share_its_color_and_have_distinct_lines(first):
    columns = [first, *(name.replace("SPPO", first) for name in VARIANTS)]
    styles = [figures.style(column, columns) for column in columns]
    assert len({style.color for style in styles}) == 1
    looks = [(style.dashes, style.marker) for style in styles]
    assert len(set(looks)) == len(looks)


def make_curve(height=1.0, n_seeds=30, **changes):
    steps = np.linspace(20_000, 2e6, 50)
    mean = height * (1.0 - np.exp(-steps / 4e5))
    return Curve(steps, mean, mean - 0.05 * height, mean + 0.05 * height, n_seeds, **changes)


def make_improvement(value, *, n_seeds=30, tasks=(("Ant-v4", 64),)):
    return Improvement(Estimate(value, value - 0.1, value + 0.1), n_seeds, tasks)


def make_comparison(symmetric, baseline, noise, envs):
    tasks = tuple((env, 2_000_000) for env in envs)
    per_task = {task: make_improvement(0.7, tasks=(task,)) for task in tasks}
    return Comparison(noise, symmetric, baseline, make_improvement(0.7, tasks=tasks), per_task, (), ())


def make_aggregate(noise, columns):
    estimates = {name: Estimate(0.5, 0.4, 0.6) for name in AGGREGATES}
    thresholds = np.linspace(0.0, 1.0, 11)
    return Aggregate(
        noise,
        "minmax",
        Matched(tuple(columns), (), (), {}, ()),
        {},
        dict.fromkeys(columns, estimates),
        thresholds,
        {column: [Estimate(1 - x, 0.9 - x, 1.1 - x) for x in thresholds] for column in columns},
    )


NOISES = ("none", "gaussian:0.05")
ENVS = ("HumanoidStandup-v4", "InvertedDoublePendulum-v4", "LunarLanderContinuous-v3")


def draw(kind, *, noises=NOISES, columns=DISCRETIZED, envs=ENVS, title=ENVS[-1], curve=make_curve, suffix=""):
    """Draw a figure of one kind with the values of a typical sweep."""
    pairs = [
        (name.replace("A2C", "SA2C").replace("PPO", "SPPO"), name) for name in columns if "S" not in name
    ]
    if "dppo-rescaled" in columns:
        pairs = [*pairs[:2], ("dsppo-unweighted", "DPPO"), ("DSPPO", "dppo-rescaled")]
    comparisons = [make_comparison(*pair, noise, envs) for noise in noises for pair in pairs]
    if kind == "curves":
        return figures.draw_curves(
            {noise: {column: curve() for column in columns} for noise in noises},
            columns,
            title=title,
            label="signs changed (%)" if suffix else "mean return",
            suffixes=dict.fromkeys(columns, suffix),
        )
    if kind == "improvements":
        return figures.draw_improvements(comparisons, columns)
    if kind == "improvements by environment":
        return figures.draw_task_improvements(comparisons, columns)
    aggregates = [make_aggregate(noise, columns) for noise in noises]
    return (figures.draw_aggregates if kind == "aggregates" else figures.draw_profiles)(aggregates, columns)


KINDS = ("curves", "improvements", "improvements by environment", "aggregates", "profiles")


def check_nothing_is_cut_off(figure):
    """Check that all artists, including labels, are inside the figure."""
    figure.canvas.draw()
    box = figure.get_tightbbox(figure.canvas.get_renderer())
    width, height = figure.get_size_inches()
    outside = {"left": -box.x0, "right": box.x1 - width, "bottom": -box.y0, "top": box.y1 - height}
    assert {side: round(by, 2) for side, by in outside.items() if by > 0.03} == {}


def check_no_names_overlap(figure):
    """Check that labels do not overlap."""
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    texts = [
        text
        for axes in figure.axes
        for text in (axes.yaxis.label, axes.title, *axes.get_yticklabels())
        if text.get_text()
    ]
    for left, right in combinations(texts, 2):
        a, b = (text.get_window_extent(renderer) for text in (left, right))
        depth = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert min(depth) < 2, f"{left.get_text()!r} and {right.get_text()!r} overlap"


#: The smallest and the largest figure.
SMALLEST_AND_LARGEST = pytest.mark.parametrize(
    ("columns", "noises"),
    [(("PPO", "SPPO"), ("none",)), (DISCRETIZED, NOISES), (STUDY, NOISES)],
    ids=["two algorithms, one noise", "four algorithms, two noises", "with variants"],
)


@SMALLEST_AND_LARGEST
@pytest.mark.parametrize("kind", KINDS)
def test_no_artist_is_cut_off(kind, columns, noises):
    check_nothing_is_cut_off(draw(kind, columns=columns, noises=noises))


@SMALLEST_AND_LARGEST
def test_legend_with_note_on_normalization_is_not_cut_off(columns, noises):
    check_nothing_is_cut_off(draw("curves", columns=columns, noises=noises, suffix=", not normalized"))


@pytest.mark.parametrize("kind", ["curves", "improvements by environment", "profiles"])
def test_legend_with_many_variants_is_not_cut_off(kind):
    columns = ["PPO", *VARIANTS[:5]]
    if kind == "improvements by environment":
        comparisons = [make_comparison(name, "PPO", noise, ENVS) for noise in NOISES for name in columns[1:]]
        figure = figures.draw_task_improvements(comparisons, columns)
    else:
        figure = draw(kind, columns=columns)
    check_nothing_is_cut_off(figure)


@pytest.mark.parametrize("title", ["InvertedDoublePendulum-v4, 2,000,000 steps", "package.envs:A" + "x" * 40])
def test_long_environment_names_are_not_cut_off(title):
    check_nothing_is_cut_off(draw("curves", noises=("none",), title=title))


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("envs", [ENVS[:1], ENVS[:2], ENVS], ids=len)
@pytest.mark.parametrize("kind", ["improvements", "improvements by environment", "aggregates"])
def test_labels_do_not_overlap(kind, envs):
    check_no_names_overlap(draw(kind, columns=("PPO", "SPPO"), envs=envs))
    check_no_names_overlap(draw(kind, columns=("PPO", "SPPO"), envs=envs, noises=("none",)))


def test_intervals_have_butt_line_caps():
    for kind in ("improvements", "improvements by environment", "aggregates"):
        bars = [line for axes in draw(kind).axes for line in axes.lines if line.get_linewidth() > 3]
        assert bars
        # Any other cap extends a thick line beyond its interval
        assert {bar.get_solid_capstyle() for bar in bars} == {"butt"}, kind


def legend_of(figure):
    (legend,) = figure.legends
    return list(zip([text.get_text() for text in legend.get_texts()], legend.legend_handles, strict=True))


def test_each_pair_has_distinct_markers_in_improvements_by_environment():
    columns = ["PPO", "A2C", "SA2C", *VARIANTS[:3]]
    pairs = [(name, "PPO") for name in VARIANTS[:3]] + [("SA2C", "A2C")]
    comparisons = [make_comparison(*pair, "none", ENVS) for pair in pairs]
    looks = [
        (
            to_hex(point.get_color()),
            point.get_marker(),
            point.get_fillstyle(),
            to_hex(point.get_markerfacecolor()),
        )
        for _, point in legend_of(figures.draw_task_improvements(comparisons, columns))
    ]
    assert len(set(looks)) == len(pairs)


def test_comparisons_of_one_column_with_two_baselines_have_distinct_markers():
    pairs = [("DSPPO", "DPPO"), ("DSPPO", "dppo-rescaled"), ("dsppo-unweighted", "DPPO")]
    comparisons = [make_comparison(*pair, "none", ENVS) for pair in pairs]
    figure = figures.draw_task_improvements(comparisons, STUDY)
    markers = [point.get_marker() for _, point in legend_of(figure)]
    assert len(set(markers)) == len(pairs)
    # A column has its usual marker
    usual = [figures.style(column, STUDY).marker for column in ("DSPPO", "dsppo-unweighted")]
    assert [markers[0], markers[2]] == usual


def test_panels_of_improvements_are_wide_enough_for_their_label():
    figure = draw("improvements", columns=STUDY)
    figure.canvas.draw()
    axes = figure.axes[0]
    label = axes.xaxis.label.get_window_extent(figure.canvas.get_renderer())
    assert axes.get_window_extent().width > label.width


def test_curves_have_algorithm_colors_and_numbers_of_seeds():
    curves = {"none": {"PPO": make_curve(1.0, 3), "SPPO": make_curve(2.0, 5, finished=False)}}
    figure = figures.draw_curves(curves, ALL, title="Ant-v4", label="mean return")
    (axes,) = figure.axes
    assert [to_hex(line.get_color()) for line in axes.lines] == [
        figures.style(name, ALL).color.lower() for name in ("PPO", "SPPO")
    ]
    np.testing.assert_array_equal(axes.lines[1].get_ydata(), curves["none"]["SPPO"].mean)
    assert [name for name, _ in legend_of(figure)] == ["PPO (n=3)", "SPPO (n=5, not finished)"]


def test_curves_with_different_numbers_of_seeds_name_their_noise():
    curves = {"none": {"PPO": make_curve(1.0, 4)}, "gaussian:0.05": {"PPO": make_curve(1.0, 3)}}
    figure = figures.draw_curves(curves, ["PPO"], title="Ant-v4", label="mean return")
    names = [name for name, _ in legend_of(figure)]
    # Two identical lines in the legend would be ambiguous
    assert len(names) == 1 or all("gaussian" in name or "noise" in name for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["mathematics", "a script", "a line break", "marks of direction"])
def test_names_in_figures_are_plain_text(what):
    name = NAMES[what]
    figure = draw("curves", title=name, columns=("PPO", f"PPO ({name})"))
    png, svg = figures.render(figure, "png"), figures.render(figure, "svg")
    with Image.open(io.BytesIO(png)) as image:
        image.load()
        assert min(image.size) > 100
    tags = {element.tag.rpartition("}")[2] for element in ElementTree.fromstring(svg).iter()}
    assert tags <= {
        "svg",
        "metadata",
        "RDF",
        "Work",
        "type",
        "format",
        "creator",
        "Agent",
        "title",
        "date",
    } | {*("defs", "style", "g", "path", "use", "clipPath", "rect")}
    assert png != figures.render(draw("curves", title="", columns=("PPO", f"PPO ({name})")), "png")


def test_mathematics_in_names_is_not_rendered():
    figure = draw("curves", title="$x^2$", columns=("PPO", "PPO ($x^2$)"))
    texts = [text for text in figure.findobj(Text) if "$x^2$" in text.get_text()]
    assert len(texts) == 2
    assert not any(text.get_parse_math() for text in texts)
    plain = figures.render(draw("curves", title="x2", columns=("PPO", "PPO ($x^2$)")), "png")
    assert figures.render(figure, "png") != plain


def test_figures_are_deterministic_and_ignore_user_settings(monkeypatch):
    first = [figures.render(draw("curves"), kind) for kind in figures.FORMATS]
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 30.0)
    monkeypatch.setitem(matplotlib.rcParams, "lines.linewidth", 9.0)
    monkeypatch.setitem(matplotlib.rcParams, "axes.facecolor", "black")
    assert [figures.render(draw("curves"), kind) for kind in figures.FORMATS] == first


def test_figures_contain_no_metadata():
    svg = figures.render(draw("curves"), "svg").decode()
    assert "date" not in svg.lower()
    with Image.open(io.BytesIO(figures.render(draw("curves"), "png"))) as image:
        assert set(image.info) <= {"dpi"}


def test_curve_of_one_evaluation_is_a_point_with_error_bar():
    curve = Curve(np.array([64.0]), np.array([3.0]), np.array([2.0]), np.array([4.0]), 2)
    figure = figures.draw_curves({"none": {"PPO": curve}}, ["PPO"], title="Ant-v4", label="mean return")
    (axes,) = figure.axes
    assert axes.lines[0].get_markevery() is None
    low, high = axes.get_ylim()
    assert low < 2 < 4 < high
    (bar,) = axes.containers
    assert bar.has_yerr


def test_small_axis_values_have_no_unit_prefix():
    numbers = figures._Numbers()
    shown = [numbers(value, 0) for value in (0.5, 0.30000000000000004, 0.0, -0.25, 1.0, 500.0, 1500.0, 2e6)]
    assert shown == ["0.5", "0.3", "0", "\N{MINUS SIGN}0.25", "1", "500", "1.5k", "2M"]


def test_figure_without_title_keeps_panel_titles():
    def texts(figure):
        return [text.get_text() for text in figure.findobj(Text) if text.get_text()]

    titled, plain = draw("curves", title="Pong"), figures.without_title(draw("curves", title="Pong"))
    assert "Pong" in texts(titled)
    assert "Pong" not in texts(plain)
    assert "without noise" in texts(plain)


def test_figure_has_the_requested_resolution():
    figure = draw("curves")
    sizes = []
    for dpi in (100, 300):
        with Image.open(io.BytesIO(figures.render(figure, "png", dpi))) as image:
            sizes.append(image.size)
    assert sizes[1] == pytest.approx((3 * sizes[0][0], 3 * sizes[0][1]), abs=3)
    assert figures.render(figure, "pdf").startswith(b"%PDF")
