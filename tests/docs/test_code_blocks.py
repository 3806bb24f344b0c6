"""Every code block of README.md, CONTRIBUTING.md and docs/ runs with small settings or is checked."""

from __future__ import annotations

import os
import signal
from unittest.mock import patch

import pytest

from srl.envs.reward_noise import NOISE_PROCESSES
from srl.losses import REVERSE_FACTORS, REVERSE_LOSSES
from srl.rundir.find import find_runs
from tests.docs.blocks import ROOT, Runner, blocks, commands

#: The second page reads the runs that the first page trains.
TRAINED = [ROOT / "docs/tutorials/table-and-report.md", ROOT / "docs/reports.md"]
ENGINE = ROOT / "docs/how-to/engine.md"
PAGES = [
    page
    for page in sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
    if page not in [*TRAINED, ENGINE] and blocks(page.read_text())
]


@pytest.fixture
def make_runner(tmp_path, monkeypatch):
    """Factory of runners; restores signal handlers, environment variables and extensions afterwards."""
    runners = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    environment = dict(os.environ)

    def make(**options) -> Runner:
        runners.append(Runner(tmp_path, monkeypatch, **options))
        return runners[-1]

    with patch.dict(NOISE_PROCESSES), patch.dict(REVERSE_LOSSES), patch.dict(REVERSE_FACTORS):
        yield make
    for runner in runners:
        runner.forget()
    for number, handler in handlers.items():
        signal.signal(number, handler)
    os.environ.clear()
    os.environ.update(environment)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_code_blocks_run(page, make_runner):
    if page.name == "llm.md":
        pytest.importorskip("trl")
    runner = make_runner()
    runner.run(page)
    if runner.not_run:
        pytest.skip(f"blocks not run: {', '.join(set(runner.not_run))}")


@pytest.mark.slow
def test_tutorial_trains_runs_and_writes_reports(make_runner, tmp_path):
    runner = make_runner(execute=True)
    for page in TRAINED:
        runner.run(page)
    assert (tmp_path / "runs/cartpole/report.html").exists()
    assert (tmp_path / "results/cartpole/report.html").exists()


@pytest.mark.slow
def test_engine_from_how_to_page_executes_sweep(make_runner, tmp_path):
    make_runner(execute=True).run(ENGINE)
    events = [line.split(maxsplit=2)[1] for line in (tmp_path / "two.log").read_text().splitlines()]
    assert sorted(events) == ["end", "end", "start", "start"]
    assert [run.read_status().state for run in find_runs(tmp_path / "runs/two")] == ["done"] * 4


def test_runner_imports_saved_modules_and_detects_errors(make_runner, tmp_path):
    runner = make_runner()
    page = tmp_path / "page.md"
    page.write_text("```python\n# one.py\nx = 1\n```\n\n```python\nimport one\nassert one.x == 1\n```\n")
    runner.run(page)
    for block in (
        "```python\nassert False\n```",
        "```bash\nsrl train --algo sppo --env CartPole-v1 --no-such-option 1\n```",
        "```bash\nsrl sweep discrete_srl --envs CartPole-v1 --algos none\n```",
        "```bash\nsrl report runs --format none\n```",
        "```bash\npip install '.[none]'\n```",
        "```bash\nrm -r x\n```",
        "```\nno language\n```",
    ):
        page.write_text(f"{block}\n")
        with pytest.raises(AssertionError):
            runner.run(page)


def test_commands_are_split_like_in_a_shell():
    assert commands("a 'b c' \\\n    d  # e\n\n# f\ng\n") == [["a", "b c", "d"], ["g"]]
    loop = 'for x in 1 2; do for y in a:1 b; do\n    own="--seed $x"\n    c $own $y\ndone; done\nd\n'
    assert commands(loop) == [["c", "--seed", "1", "a:1"], ["d"]]
