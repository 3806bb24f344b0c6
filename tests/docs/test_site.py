"""The documentation site builds without warnings and covers all options and public names."""

from __future__ import annotations

import re
import subprocess
import sys
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml

import srl
import srl.envs
from srl.cli import main
from tests.docs.blocks import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site built with warnings as errors."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-d", str(folder / "doctrees")]
    built = subprocess.run(
        [*command, str(ROOT / "docs"), str(folder / "html")], capture_output=True, text=True, check=False
    )
    assert (built.returncode, built.stderr) == (0, "")
    return folder / "html"


@pytest.mark.slow
def test_site_has_no_dead_internal_links(site):
    pages = {page: page.read_text() for page in site.rglob("*.html")}
    anchors = {page: set(re.findall(r'\bid="([^"]+)"', text)) for page, text in pages.items()}
    dead = []
    for page, text in pages.items():
        for link in re.findall(r'\b(?:href|src)="([^"]+)"', text):
            if re.match(r"\w+:|//", link):
                continue
            target, _, anchor = unquote(unescape(link)).partition("#")
            file = (page.parent / target.partition("?")[0]).resolve() if target else page
            if not file.exists() or (anchor and file in anchors and anchor not in anchors[file]):
                dead.append((page.name, link))
    assert dead == []


@pytest.mark.slow
def test_reference_covers_every_option_and_public_name(site, capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    commands = re.search(r"\{([a-z,]+)\}", capsys.readouterr().out)[1].split(",")
    page = (site / "cli.html").read_text()
    for command in commands:
        assert f'id="srl-{command}"' in page
        with pytest.raises(SystemExit):
            main([command, "--help"])
        for option in re.findall(r"^\W*(--[a-z][\w-]*)", capsys.readouterr().out, re.MULTILINE):
            assert re.search(rf'"pre">{option}</span>', page), f"srl {command} {option}"
    names = {f"srl.{name}" for name in srl.__all__ if not name.startswith("_")}
    names |= {f"srl.envs.{name}" for name in srl.envs.__all__}
    documented = {
        name for page in site.rglob("*.html") for name in re.findall(r'id="(srl\.[\w.]+)"', page.read_text())
    }
    assert names <= documented


def test_citation_names_paper_and_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == srl.__version__
    assert citation["preferred-citation"]["title"].startswith("Symmetric Reinforcement Learning Loss")
    assert f"{{{srl.__version__}}}" in (ROOT / "docs/citing.md").read_text()
