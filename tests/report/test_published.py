"""Published results match a report of the published data."""

import re
from pathlib import Path

import pytest

from tests.small_runs import srl

ROOT = Path(__file__).resolve().parents[2]
ARCHIVES = sorted((ROOT / "results").glob("*.parquet"))


def test_published_data_is_small():
    assert ARCHIVES
    assert sum(archive.stat().st_size for archive in ARCHIVES) < 5e6


@pytest.mark.slow
@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda archive: archive.stem)
def test_published_page_contains_the_tables_of_a_report(archive, tmp_path):
    ended = srl("report", archive, "--out", tmp_path, "--figures", "png")
    assert ended.status == 0, ended.err
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
