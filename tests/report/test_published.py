"""Published results match a report of the published data."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from srl.report.files import table_writers, write_files
from srl.report.report import make_report

ROOT = Path(__file__).resolve().parents[2]
ARCHIVES = sorted((ROOT / "results").glob("*.parquet"))


def test_published_data_is_small():
    assert ARCHIVES
    assert sum(archive.stat().st_size for archive in ARCHIVES) < 5e6


@pytest.mark.slow
@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda archive: archive.stem)
def test_published_page_contains_the_tables_of_a_report(archive, tmp_path):
    complete = make_report(archive)
    write_files(tmp_path, table_writers(complete.tables, [*complete.scores.left_out, *complete.notes]))
    page = (ROOT / "docs/results" / f"{archive.stem}.md").read_text()
    # A trend needs several noise levels
    tables = [tmp_path / f"{name}.md" for name in ("table", "improvement", "trend")]
    assert all(table.read_text() in page for table in tables if table.exists())
    assert tables[0].exists()
    assert tables[1].exists()


def test_readme_scores_match_the_published_page():
    page = (ROOT / "docs/results/study_discrete.md").read_text()
    lines = (ROOT / "README.md").read_text().partition("## Results")[2].splitlines()
    rows = [line.split("|")[2:-1] for line in lines if line.startswith(("| none", "| flip"))]
    assert len(rows) == 3
    assert all(f"{cell.strip()} (n=10)" in page for row in rows for cell in row)


def test_claims_have_probabilities_of_the_pages():
    pages = "".join(page.read_text() for page in (ROOT / "docs/results").glob("study_*.md")).replace("\\", "")
    claims = (ROOT / "docs/results/claims.md").read_text()
    found = re.findall(r"\d\.\d+ \[\d\.\d+, \d\.\d+\]", claims)
    assert len(found) >= 10
    assert all(f"{interval} (n=10)" in pages for interval in found)


def test_dsppo_and_rescaled_dppo_start_with_equal_updates():
    runs = pd.read_parquet(ROOT / "results/study_continuous.parquet")
    runs = runs[runs.state == "done"].set_index(["name", "environment", "noise", "seed"])
    figures = ["train/entropy_loss", "train/advantage_sign_change"]

    def equal_until(name, task):
        """The training steps at which the logs of DSPPO and another column begin to differ by 0.1%."""
        one, other = (np.stack(runs.loc[(which, *task)][figures]) for which in ("dsppo", name))
        different = np.abs(one - other) > 1e-3 * np.abs(one)
        return runs.loc[("dsppo", *task)][f"{figures[0]}/steps"][different.any(axis=0).argmax()]

    tasks = runs.loc["dppo-rescaled"].index
    assert len(tasks) >= 120
    assert min(equal_until("dppo-rescaled", task) for task in tasks) >= 8192
    assert max(equal_until("dppo", task) for task in tasks) <= 6144
