"""The documentation has no placeholders, dead links or missing files."""

import re
from itertools import pairwise, product
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from srl.config.algorithms import ALGORITHMS

ROOT = Path(__file__).resolve().parents[1]
TOP = [ROOT / f"{name}.md" for name in ("README", "CHANGELOG", "CONTRIBUTING")]
PAGES = sorted([*TOP, *(ROOT / "docs").rglob("*.md")])

#: Capitalized names besides the algorithms. Any other capitalized word outside of code counts as a
#: placeholder.
NAMES = """
    ALE AMD AMX API ARM AVX BSD CITATION
    CLI CNN CONTRIBUTING CPU CSS CSV CUDA CHANGELOG DDP DLR DOI DPO EGL EPYC EULA
    FAQ FFT FIRE GAE GIF GPT GPU GRPO H10 H11 HTML HTTP HTTPS ICLR ICML IEEE IMDB IQM JAX JSON LICENSE LLM
    LSTM MAE MANIFEST
    MDP MIT MLP MP4 NFS NTP NUMA PATH PDF PEFT PID PNG POSIX RAM README RGB RLHF RNG SB3 SBX SHA SIGHUP SIGINT
    SIGKILL SIGTERM SQL SSD SSH SVG TCP TOML TPU TRL TRPO URL USA UTC UTF WSL XLA YAML
"""
KNOWN = {algorithm.label for algorithm in ALGORITHMS.values()} | set(NAMES.split())
CAPITALS = re.compile(r"\b[A-Z][A-Z0-9_]{2,}\b")
#: Placeholders in text and code.
PLACEHOLDERS = re.compile(
    r"\b(?:TODO|TBD|TBA|TBC|FIXME|TK|TKTK|WIP|PLACEHOLDER|X{2,}|X\.X+)\b|\?{3,}|(?i:lorem ipsum|coming soon)"
)
#: Paths of the repository; capitals are wildcards.
PATHS = re.compile(
    r"(?<![\w/.*-])(?:\.{1,2}/)*((?:\.ci|configs|docs|scripts|srl|tests)/[\w./{},*-]*|run_\w+\.sh)"
)


def parts(text):
    """Return text, code and link targets of a Markdown page."""
    words, code, links = [], [], []
    for block in MarkdownIt("commonmark").enable("table").parse(text):
        for token in (block, *(block.children or [])):
            if token.type in ("code_inline", "code_block", "fence"):
                code.append(token.content)
            elif token.type in ("html_block", "html_inline"):
                links += re.findall(r"""(?:href|src)\s*=\s*["']([^"']*)""", token.content)
            elif token.type == "text":
                words.append(token.content)
            links += [token.attrs[name] for name in ("href", "src") if name in token.attrs]
    return words, code, links


def placeholders(text):
    """Return the placeholders in a page."""
    words, code, _ = parts(text)
    found = {match[0] for part in (*words, *code) for match in PLACEHOLDERS.finditer(part)}
    return sorted(found | {word for part in words for word in CAPITALS.findall(part) if word not in KNOWN})


def anchors(text):
    """Return the anchors of headings in GitHub's format."""
    found = []
    tokens = MarkdownIt("commonmark").parse(text)
    for heading, inline in pairwise(tokens):
        if heading.type == "heading_open":
            title = "".join(child.content for child in inline.children)
            slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
            found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return found


def dead_links(page, text):
    """Return links to missing files and headings, and references without a target."""
    words, _, links = parts(text)
    dead = [match[0] for part in words for match in re.finditer(r"\[[^\]]+\]\[[^\]]*\]", part)]
    for link in links:
        if re.match(r"\w+:", link):
            continue
        target, _, anchor = link.partition("#")
        file = (page.parent / target).resolve() if target else page
        if not file.exists() or (
            anchor and anchor not in anchors(text if file == page else file.read_text())
        ):
            dead.append(link)
    return dead


def missing_files(root, text):
    """Return named repository files that do not exist."""
    words, code, _ = parts(text)
    named = [match[1].rstrip(".,") for part in (*words, *code) for match in PATHS.finditer(part)]
    return [path for path in named if not all(any(root.glob(pattern)) for pattern in patterns(path))]


def patterns(path):
    """Return the glob patterns of a path: ``a/{b,c}/NAME.yml`` is ``a/b/*.yml`` and ``a/c/*.yml``."""
    pieces = [piece.split(",") for piece in re.split(r"[{}]", re.sub(r"[A-Z]{3,}", "*", path))]
    return ["".join(chosen).rstrip("/") for chosen in product(*pieces)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_page_has_no_placeholders_dead_links_or_missing_files(page):
    text = page.read_text()
    assert placeholders(text) == []
    assert dead_links(page, text) == []
    assert missing_files(ROOT, text) == []


@pytest.mark.parametrize(
    "text",
    [
        "reach 1.6 times SB3's speed in place of SPEED2.",
        "Medians of 5:\n\nTABLE\n\nMore",
        "| game | speed |\n| --- | --- |\n| Pong | NUMBER |",
        "## RESULTS_HERE",
        "TODO: say more",
        "a link [to FIGURE](x.md)",
        "`--alpha TBD`",
        "```\nsrl train --env XXX\n```",
        "takes ??? hours",
        "Lorem ipsum dolor",
        "It takes X.X hours.",
    ],
)
def test_placeholders_are_detected(text):
    assert len(placeholders(text)) == 1


@pytest.mark.parametrize(
    "text",
    ["PPO, A2C and DSPPO on a GPU", "`srl report DIR`", "```\nOUT=runs/NAME\n```", "up'n Down", "A or B?"],
)
def test_names_are_not_placeholders(text):
    assert placeholders(text) == []


def test_dead_links_are_detected(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "other.md").write_text("# Two `words`, here\n\n## Twice\n\n## Twice\n")
    page = tmp_path / "docs" / "page.md"
    alive = (
        "[a](other.md) [b](other.md#two-words-here) [c](#own) [d](../docs) [e](https://x.org/none#y) "
        "[f](other.md#twice-1)\n\n# Own\n"
    )
    page.write_text(alive)
    assert dead_links(page, alive) == []
    dead = "[a](none.md) ![b](none.png) [c](other.md#none) [d](#none) [e][none]\n\n<a href='gone.md'>f</a>\n"
    assert dead_links(page, dead) == ["[e][none]", "none.md", "none.png", "other.md#none", "#none", "gone.md"]


def test_missing_files_are_detected(tmp_path):
    (tmp_path / "configs" / "sweeps").mkdir(parents=True)
    for name in ("a.yml", "b.yml"):
        (tmp_path / "configs" / "sweeps" / name).touch()
    there = (
        "configs/ `configs/sweeps/{a,b}.yml`, see configs/sweeps/a.yml. `configs/sweeps/NAME.yml` `runs/x`"
    )
    assert missing_files(tmp_path, there) == []
    gone = (
        "see docs/none.md.\n\n`configs/sweeps/{a,c}.yml` `./run_none.sh`\n\n```\ntests/test_none.py::x\n```\n"
    )
    assert missing_files(tmp_path, gone) == [
        *("docs/none.md", "configs/sweeps/{a,c}.yml", "run_none.sh", "tests/test_none.py")
    ]
