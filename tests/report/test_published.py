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
    *always, trend = [tmp_path / f"{name}.md" for name in ("table", "robust", "improvement", "trend")]
    assert all(table.read_text() in page for table in always)
    assert not trend.exists() or trend.read_text() in page


#: Rows of README's table, and the columns of the page that they show.
HEADLINES = {
    "DSPPO over DPPO": "DSPPO over DPPO",
    "DSPPO without importance weighting over DPPO": "dsppo-unweighted over DPPO",
    "DSPPO over DPPO with the equivalent coefficients": "DSPPO over dppo-rescaled",
    "DSA2C over DA2C": "DSA2C over DA2C",
}


def cells_of(row):
    """The cells of a row of a Markdown table, without the counts of seeds and p-values."""
    return [cell.partition(" (n=")[0].replace("\\", "").strip() for cell in row.split("|")[1:-1]]


def test_readme_table_matches_the_published_page():
    page = (ROOT / "docs/results/study_continuous.md").read_text().partition("## Comparisons")[2].splitlines()
    header = cells_of(next(line for line in page if line.startswith("| environment")))
    overall = [cells_of(line) for line in page if line.startswith("| all environments in common")]
    published = {row[1]: dict(zip(header, row, strict=True)) for row in overall}
    readme = (ROOT / "README.md").read_text().partition("## Results")[2].splitlines()
    rows = {row[0]: row[1:] for row in map(cells_of, readme) if row and row[0] in HEADLINES}
    assert rows == {
        name: [published["none"][column], published["gaussian:0.05"][column]]
        for name, column in HEADLINES.items()
    }


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
    assert len(tasks) == 140
    assert min(equal_until("dppo-rescaled", task) for task in tasks) >= 8192
    assert max(equal_until("dppo", task) for task in tasks) <= 6144
