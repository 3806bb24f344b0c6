"""Options of figures: formats, resolution, titles and selection."""

import re

import pytest

from tests.report.made_runs import lay_down
from tests.small_runs import contents, srl


@pytest.fixture
def runs(tmp_path):
    for algo in ("ppo", "sppo"):
        for seed in range(3):
            lay_down(tmp_path / "runs", [[seed], [seed + 1.0]], seed=seed, algo=algo)
    return tmp_path / "runs"


@pytest.mark.slow
def test_figures_are_written_in_the_requested_formats(runs, tmp_path):
    outcome = srl("report", runs, "--out", tmp_path, "--figures", "pdf,png", "--dpi", 300, "--reps", 100)
    assert outcome.status == 0, outcome.err
    files = [file for file in (tmp_path / "figures").rglob("*") if file.is_file()]
    assert {file.suffix for file in files} == {".pdf", ".png"}
    page = (tmp_path / "report.html").read_text()
    assert srl("report", runs, "--out", tmp_path, "--no-titles", "--reps", 100).status == 0
    assert {file.suffix for file in (tmp_path / "figures").rglob("*.*")} == {".png", ".svg"}
    # The page has its own resolution, and always has titles
    again = (tmp_path / "report.html").read_text()
    assert re.findall("<img [^>]*>", again) == re.findall("<img [^>]*>", page)


@pytest.mark.slow
def test_performance_profiles_need_enough_runs(runs, tmp_path):
    words = ("report", runs, "--normalize", "minmax", "--reps", 100, "--figures", "png", "--out", tmp_path)
    assert srl(*words).status == 0
    assert not list((tmp_path / "figures").glob("profile*"))
    assert list((tmp_path / "figures").glob("aggregate*"))
    for algo in ("ppo", "sppo"):
        for seed in range(3, 10):
            lay_down(runs, [[seed], [seed + 1.0]], seed=seed, algo=algo)
    assert srl(*words).status == 0
    assert list((tmp_path / "figures").glob("profile*"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--figures", "pdg"], "Did you mean"),
        (["--figures", "png,png"], "once"),
        (["--figures", ","], "--figures"),
        (["--dpi", 3], "--dpi 3: must be from 30 to 1200"),
        (["--format", "json", "--no-titles"], "--no-titles: no effect with --format json"),
    ],
)
def test_mistake_is_one_line_error_and_writes_nothing(words, says, runs):
    before = contents(runs)
    outcome = srl("report", runs, *words)
    assert outcome.status == 2
    assert says in outcome.err
    assert outcome.err.count("\n") == 1
    assert contents(runs) == before
