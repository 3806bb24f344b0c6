"""The documentation has no placeholders, and what it links to and names is there."""

import re
from itertools import pairwise, product
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from srl.config.algorithms import ALGORITHMS

ROOT = Path(__file__).resolve().parents[1]
TOP = [ROOT / f"{name}.md" for name in ("README", "CHANGELOG", "CONTRIBUTING")]
PAGES = sorted([*TOP, *(ROOT / "docs").rglob("*.md")])

#: Words in capitals that are names, besides the algorithms. Any other one outside of code is taken for a
#: placeholder.
NAMES = """
    ALE AMD AMX API ARM AVX BSD CITATION
    CLI CNN CONTRIBUTING CPU CSS CSV CUDA CHANGELOG DDP DLR DOI DPO EGL EPYC EULA
    FAQ FFT FIRE GAE GIF GPT GPU GRPO HTML HTTP HTTPS ICLR ICML IEEE IMDB IQM JAX JSON LICENSE LLM LSTM
    MAE MANIFEST
    MDP MIT MLP MP4 NFS NTP NUMA PATH PDF PEFT PID PNG POSIX RAM README RGB RLHF RNG SB3 SBX SHA SIGHUP SIGINT
    SIGKILL SIGTERM SQL SSD SSH SVG TCP TOML TPU TRL TRPO URL USA UTC UTF WSL XLA YAML
"""
KNOWN = {algorithm.label for algorithm in ALGORITHMS.values()} | set(NAMES.split())
CAPITALS = re.compile(r"\b[A-Z][A-Z0-9_]{2,}\b")
#: Placeholders wherever they are, in code too.
PLACEHOLDERS = re.compile(
    r"\b(?:TODO|TBD|TBA|TBC|FIXME|TK|TKTK|WIP|PLACEHOLDER|X{2,}|X\.X+)\b|\?{3,}|(?i:lorem ipsum|coming soon)"
)
#: What looks like a file of the repository; capitals in it are for what the reader fills in.
PATHS = re.compile(
    r"(?<![\w/.*-])(?:\.{1,2}/)*((?:\.ci|configs|docs|scripts|srl|tests)/[\w./{},*-]*|run_\w+\.sh)"
)


def parts(text):
    """The words outside of code, the code, and the targets of links of a page in Markdown."""
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
    """What is still to be filled in."""
    words, code, _ = parts(text)
    found = {match[0] for part in (*words, *code) for match in PLACEHOLDERS.finditer(part)}
    return sorted(found | {word for part in words for word in CAPITALS.findall(part) if word not in KNOWN})


def anchors(text):
    """The anchors of headings, as GitHub makes them."""
    found = []
    tokens = MarkdownIt("commonmark").parse(text)
    for heading, inline in pairwise(tokens):
        if heading.type == "heading_open":
            title = "".join(child.content for child in inline.children)
            slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
            found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return found


def dead_links(page, text):
    """Links to files and headings that are not there, and references without a target."""
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
    """Names of files of the repository that are not there."""
    words, code, _ = parts(text)
    named = [match[1].rstrip(".,") for part in (*words, *code) for match in PATHS.finditer(part)]
    return [path for path in named if not all(any(root.glob(pattern)) for pattern in patterns(path))]


def patterns(path):
    """The glob patterns of a path: ``a/{b,c}/NAME.yml`` is ``a/b/*.yml`` and ``a/c/*.yml``."""
    pieces = [piece.split(",") for piece in re.split(r"[{}]", re.sub(r"[A-Z]{3,}", "*", path))]
    return ["".join(chosen).rstrip("/") for chosen in product(*pieces)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_page_has_no_placeholder_and_no_dead_link(page):
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
def test_placeholder_is_found(text):
    assert len(placeholders(text)) == 1


@pytest.mark.parametrize(
    "text",
    ["PPO, A2C and DSPPO on a GPU", "`srl report DIR`", "```\nOUT=runs/NAME\n```", "up'n Down", "A or B?"],
)
def test_name_is_no_placeholder(text):
    assert placeholders(text) == []


def test_dead_links_are_found(tmp_path):
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


def test_missing_files_are_found(tmp_path):
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
