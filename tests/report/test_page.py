"""The HTML page of a report and the files written with it."""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from html import unescape
from itertools import product
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from srl.report.curves import training_curves
from srl.report.scores import read_scores
from srl.report.source import Folders
from srl.rundir.directory import RunDirectory
from srl.sweep.engines import Job
from srl.sweep.plan import Plan, write_plan
from tests.report.hostile import NAMES, SCRIPT, parse
from tests.report.made_runs import MADE_VERSIONS, lay_down, make_sweep
from tests.small_runs import contents, small_spec, srl

#: Environments of the hostile sweep; its folders also have hostile names.
HOSTILE_ENVS = (
    SCRIPT,
    NAMES["the end of a script"] + NAMES["an attribute"],
    NAMES["a template"] + NAMES["mathematics"] + NAMES["a line break"] + NAMES["marks of direction"],
)
REASON = f"{SCRIPT}</td></table>{NAMES['a template']}{NAMES['an attribute']}"
COMMAND = f"srl train '</pre></details>{SCRIPT}{NAMES['an attribute']}\n{{{{ 7*7 }}}}"
#: The only free-text hyperparameter: it becomes a column name.
OPTION = f"{SCRIPT}{NAMES['an attribute']}"
LONG = "Unbreakable" * 8 + "-v0"


def folder_name(text, number):
    """Return a hostile folder name that file systems accept."""
    return f"{number}{text.replace('/', '∕')[:60]}"  # noqa: RUF001


def report(root, out, *words):
    outcome = srl("report", root, "--out", out, "--reps", 100, *words)
    assert outcome.status == 0, outcome.err
    assert "Traceback" not in outcome.err
    return out / "report.html"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A folder of runs with hostile names."""
    root = tmp_path_factory.mktemp("hostile") / folder_name(SCRIPT, 0)
    generator = np.random.default_rng(0)
    for number, (env, algo, seed) in enumerate(product(HOSTILE_ENVS, ("ppo", "sppo"), (0, 1))):
        if (env, algo, seed) == (SCRIPT, "ppo", 1):
            changes = dict(state="failed", reason=REASON, n_timesteps=64, eval_freq=32)
        else:
            changes = {}
        at = f"{folder_name(env, 0)}/{folder_name(env, number)}"
        directory = lay_down(
            root, generator.normal(size=(2, 2)), env=env, algo=algo, seed=seed, at=at, **changes
        )
        versions = MADE_VERSIONS | {"command": COMMAND}
        (directory.path / "versions.json").write_text(json.dumps(versions), encoding="utf-8")
    options = {"policy_kwargs": {"optimizer_kwargs": {OPTION: 1.0}}}
    lay_down(root, [[1.0, 2.0], [3.0, 4.0]], env=SCRIPT, at="variant", overrides=options)
    lay_down(root, [[1.0, 2.0], [3.0, 4.0]], env=LONG, algo="a2c")
    broken = lay_down(root, None, env=SCRIPT, at=folder_name(SCRIPT, "broken"), seed=9)
    (broken.path / "spec.json").write_text("{")
    planned = [small_spec(algo, seed=seed).model_copy(update={"env": SCRIPT}) for algo, seed in (("a2c", 7),)]
    write_plan(Plan(root, [Job(spec, root / spec.path) for spec in planned]))
    return root


@pytest.fixture(scope="module")
def hostile_page(hostile, tmp_path_factory):
    before = contents(hostile)
    page = report(hostile, tmp_path_factory.mktemp("report"))
    assert contents(hostile) == before
    return page


def read(page):
    # Keep line endings
    return parse(page.read_bytes().decode("utf-8"))


@pytest.fixture(scope="module")
def tree(hostile_page):
    return read(hostile_page)


#: Allowed tags of a page with their attributes.
TAGS = {
    "html": {"lang"},
    "head": set(),
    "meta": {"charset", "name", "content", "http-equiv"},
    "title": set(),
    "style": set(),
    "body": set(),
    "header": set(),
    "nav": {"aria-label"},
    "main": set(),
    "section": {"id"},
    "div": {"class", "tabindex", "role", "aria-label"},
    "a": {"href"},
    "img": {"src", "width", "height", "alt"},
    "figure": {"class"},
    "figcaption": set(),
    "table": {"class", "id"},
    "thead": set(),
    "tbody": set(),
    "tr": set(),
    "th": {"class", "scope"},
    "td": {"class", "data-value"},
    "details": {"id", "open"},
    "summary": set(),
    "pre": {"id"},
    "label": set(),
    "input": {"type", "id", "autocomplete"},
    "script": set(),
    **{tag: set() for tag in ("h1", "h2", "h3", "li", "small", "strong", "br")},
    **{tag: {"class"} for tag in ("p", "ul")},
}


@pytest.mark.slow
def test_names_reasons_and_commands_create_no_html(tree):
    found = {(one.tag, name) for one in tree.everything() for name in (*one.attributes, None)}
    allowed = {(tag, name) for tag, names in TAGS.items() for name in (*names, None)}
    assert found - allowed == set()
    assert [len(tree.all(tag)) for tag in ("script", "style", "input", "html", "title")] == [1] * 5


def rows(table):
    """Return the cell texts of each body row of a table."""
    (body,) = table.all("tbody")
    return [[cell.text for cell in row.children] for row in body.all("tr")]


@pytest.mark.slow
def test_names_and_reasons_are_displayed_unchanged(tree):
    table = rows(tree.by_id("run-table"))
    assert {row[0] for row in table} == {*HOSTILE_ENVS, LONG}
    assert any(row[5] == f"failed: {REASON}" for row in table)
    assert any(OPTION in row[1] for row in table)
    assert any(OPTION in cell.text for cell in tree.by_id("scores").all("th"))
    assert {row[0] for row in rows(tree.by_id("scores"))} == {*HOSTILE_ENVS, LONG}
    left_out = [line.text for line in tree.by_id("left-out").all("li")]
    assert any(REASON in line for line in left_out)
    assert any("spec.json" in line and SCRIPT.replace("/", "∕") in line for line in left_out)  # noqa: RUF001
    assert any(COMMAND in summary.text for summary in tree.all("summary"))
    assert any(json.loads(pre.text).get("command") == COMMAND for pre in tree.all("pre"))
    captions = [caption.text for caption in tree.all("figcaption")]
    assert f"{SCRIPT}: mean return" in captions
    assert "49" not in "".join([*captions, *left_out])


def test_every_run_is_listed_with_status_spec_versions_and_command(hostile, tree):
    table = rows(tree.by_id("run-table"))
    states = {run.path: run.state for run in read_scores(hostile).runs}
    assert {row[-1]: row[5].partition(":")[0] for row in table} == states
    assert len(table) == len(states) == 15
    for row in table:
        directory = RunDirectory(hostile / row[-1])
        if row[5] == "missing":
            assert row[8:10] == ["-", "-"]
            continue
        spec = directory.read_spec()
        assert (row[0], row[2], row[3]) == (spec.env, spec.noise, str(spec.seed))
        assert row[1].lower().startswith(spec.algo)
        shown = json.loads(tree.by_id(f"spec-{row[8]}").all("pre")[0].text)
        assert shown == spec.model_dump(mode="json", exclude={"seed"})
        shown = json.loads(tree.by_id(f"versions-{row[9]}").all("pre")[0].text)
        assert shown == directory.read_versions()
        assert shown["command"] in tree.by_id(f"versions-{row[9]}").all("summary")[0].text


def test_internal_links_have_targets(tree):
    ids = [one.attributes["id"] for one in tree.everything() if "id" in one.attributes]
    assert len(set(ids)) == len(ids)
    targets = [link.attributes["href"] for link in tree.all("a")]
    assert len(targets) > 10
    assert {target[1:] for target in targets} <= set(ids)
    assert all(target.startswith("#") for target in targets)


def test_page_is_self_contained(hostile_page, tree):
    assert len(tree.all("img")) > 5
    for one in tree.everything():
        for name in ("src", "href", "action", "data", "poster", "background", "srcset", "style"):
            value = one.attributes.get(name) or "#"
            assert value.startswith(("#", "data:image/png;base64,")), (one.tag, name, value[:80])
    (style,), (script,) = tree.all("style"), tree.all("script")
    for text in (style.text, script.text):
        assert not re.search(r"@import|url\s*\(|https?:|//\w+\.|fetch|XMLHttpRequest|\bimport\b", text)
    assert "tabindex" in hostile_page.read_text(encoding="utf-8")


def test_page_allows_only_its_own_script(tree):
    (policy,) = [
        meta.attributes["content"]
        for meta in tree.all("meta")
        if meta.attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    rules = {rule.split()[0]: rule.split()[1:] for rule in policy.split(";")}
    (script,) = tree.all("script")
    digest = base64.b64encode(hashlib.sha256(script.text.encode()).digest()).decode()
    assert rules["default-src"] == ["'none'"]
    assert rules["script-src"] == [f"'sha256-{digest}'"]
    assert rules["img-src"] == ["data:"]
    assert "script" in script.text or "document" in script.text


@pytest.mark.slow
def test_every_environment_has_png_and_svg_figures(hostile_page):
    for kind in ("learning_curve", "sign_change", "entropy"):
        files = sorted((hostile_page.parent / "figures" / kind).iterdir())
        assert len({file.stem for file in files}) == len(HOSTILE_ENVS) + 1
        assert [file.suffix for file in files] == [".png", ".svg"] * 4
        for file in files:
            if file.suffix == ".png":
                with Image.open(file) as image:
                    image.load()
                    assert len(image.getcolors(1 << 24)) > 5
            else:
                tags = {one.tag.rpartition("}")[2] for one in ElementTree.parse(file).iter()}
                assert not tags & {"script", "image", "a", "foreignObject"}


def test_page_contains_all_figures(hostile_page, tree):
    figures = sorted(hostile_page.parent.glob("figures/**/*.png"))
    assert len(tree.all("img")) == len(figures)
    sizes = []
    for image in tree.all("img"):
        assert image.attributes["alt"]
        data = base64.b64decode(image.attributes["src"].partition(",")[2], validate=True)
        assert data.startswith(b"\x89PNG")
        sizes.append((int(image.attributes["width"]), int(image.attributes["height"])))
    assert min(min(size) for size in sizes) > 50


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A small finished sweep with a plan."""
    root = tmp_path_factory.mktemp("plain") / "sweep"
    make_sweep(
        root,
        envs=["CartPole-v1", "Pendulum-v1"],
        algos=["ppo", "sppo"],
        noises=["none", "gaussian:0.05"],
        seeds=range(3),
        n_evaluations=4,
        n_episodes=2,
        n_timesteps=256,
        generator=np.random.default_rng(0),
    )
    return root


@pytest.fixture(scope="module")
def plain_page(plain, tmp_path_factory):
    return report(plain, tmp_path_factory.mktemp("report"))


def files_of(page):
    return {name: content for name, (_, content) in contents(page.parent).items()}


@pytest.mark.slow
def test_report_does_not_depend_on_location_or_hash_seed(plain, plain_page, tmp_path):
    elsewhere = tmp_path / "another & name"
    shutil.copytree(plain, elsewhere)
    code = "import sys; from srl.cli import main; main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, "report", elsewhere.name, "--out", "out", "--reps", "100"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONHASHSEED": "1", "TZ": "Asia/Tokyo", "LC_ALL": "C"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    again = files_of(tmp_path / "out" / "report.html")
    assert again == files_of(plain_page)
    assert {"report.html", "statistics.json", "table.tex", "figures/improvement.svg"} <= again.keys()


def test_notes_do_not_contain_absolute_paths(tmp_path):
    directory = lay_down(tmp_path, [[1.0, 2.0], [3.0, 4.0]])
    (directory.path / "progress.csv").unlink()
    (cell,) = read_scores(tmp_path).cells
    curves, notes = training_curves(cell, Folders(tmp_path).training)
    assert curves == {}
    (note,) = notes
    assert "CartPole-v1/sppo/none/seed-0" in note
    assert "progress.csv" in note
    assert str(tmp_path) not in note


@pytest.mark.slow
def test_report_in_sweep_folder_does_not_modify_runs(plain, tmp_path):
    root = tmp_path / "sweep"
    shutil.copytree(plain, root)
    before = contents(root)
    assert srl("report", root, "--reps", 100, "--figures", "png").status == 0
    after = contents(root)
    assert {name: after[name] for name in before} == before
    new = {name.partition("/")[0] for name in after.keys() - before.keys()}
    tables = {
        f"{name}.{kind}" for name in ("table", "robust", "improvement") for kind in ("md", "csv", "tex")
    }
    record = {".srl-report.json", ".srl-report.lock"}
    assert new == {"report.html", "statistics.json", "figures", *tables, *record}
    # The files of the report are not mistaken for runs or foreign files
    assert read_scores(root).left_out == []
    assert len(read_scores(root).runs) == 24


@pytest.fixture(scope="module")
def figures_after_a_change(plain, tmp_path_factory):
    """Figures of a report rewritten after removing an environment and an algorithm and changing the scale."""
    root = tmp_path_factory.mktemp("changed") / "sweep"
    shutil.copytree(plain, root)
    words = ("report", root, "--reps", 100, "--figures", "png")
    assert srl(*words, "--normalize", "none").status == 0
    figures = root / "figures"
    for file in ("learning_curve/Pendulum-v1.png", "entropy/Pendulum-v1.png", "improvement.png"):
        assert (figures / file).exists()
    for file in FOREIGN:
        (figures / file).write_bytes(b"mine")
    shutil.rmtree(root / "Pendulum-v1")
    shutil.rmtree(root / "CartPole-v1" / "sppo")
    (root / "sweep.json").unlink()
    assert srl(*words).status == 0
    return figures


#: Foreign files in the folder of figures.
FOREIGN = ("mine.png", "notes.txt", "learning_curve/notes.txt")


@pytest.mark.slow
def test_figures_of_removed_environments_are_deleted(figures_after_a_change):
    kinds = ("learning_curve", "sign_change", "entropy")
    left = {path.stem for kind in kinds for path in (figures_after_a_change / kind).glob("*.png")}
    assert left == {"CartPole-v1"}


@pytest.mark.slow
def test_figures_of_removed_comparisons_and_scales_are_deleted(figures_after_a_change):
    left = {path.name for path in figures_after_a_change.glob("*.png")} - {*FOREIGN}
    # Profiles need more runs
    assert left == {"aggregate_minmax.png"}


def test_foreign_files_among_figures_are_kept(figures_after_a_change):
    assert [(figures_after_a_change / file).read_bytes() for file in FOREIGN] == [b"mine"] * len(FOREIGN)


def test_report_on_one_run_requires_out_folder_outside_the_run(tmp_path):
    directory = lay_down(tmp_path / "runs", [[1.0, 2.0], [3.0, 4.0]])
    before = contents(tmp_path)
    for words in ((), ("--out", directory.path / "new"), ("--out", directory.path / "monitor")):
        refused = srl("report", directory.path, *words)
        assert refused.status == 2
        assert "--out" in refused.err
        assert "run" in refused.err
    for kind in ("json", "parquet", "zoo"):
        assert srl("report", directory.path, "--format", kind).status == 2
    assert contents(tmp_path) == before
    tree = read(report(directory.path, tmp_path / "out"))
    (row,) = rows(tree.by_id("run-table"))
    assert (row[0], row[5], row[6], row[-1]) == ("CartPole-v1", "done", "3.5", ".")
    assert {name: content for name, content in contents(tmp_path).items() if name in before} == before


def test_out_path_may_pass_through_a_run_directory(tmp_path, monkeypatch):
    directory = lay_down(tmp_path / "runs", None, state="failed", n_timesteps=64)
    monkeypatch.chdir(directory.path)
    outcome = srl("report", ".", "--out", "../../../../../out", "--reps", 100)
    assert (outcome.status, outcome.err) == (0, "")
    assert (tmp_path / "out" / "report.html").exists()


def test_out_link_into_a_run_directory_is_rejected(tmp_path):
    directory = lay_down(tmp_path / "runs", None, state="failed", n_timesteps=64)
    (tmp_path / "link").symlink_to(directory.path / "monitor")
    before = contents(tmp_path)
    outcome = srl("report", tmp_path / "runs", "--out", tmp_path / "link", "--reps", 100)
    assert outcome.status == 2
    assert "--out" in outcome.err
    assert contents(tmp_path) == before


def test_run_folder_with_undecodable_name_is_reported(tmp_path):
    lay_down(tmp_path, [[1.0, 2.0], [3.0, 4.0]])
    lay_down(tmp_path, [[1.0, 2.0], [3.0, 5.0]], seed=1, at=os.fsdecode(b"latin \xe9"))
    tree = read(report(tmp_path, tmp_path / "out"))
    assert [row[5] for row in rows(tree.by_id("run-table"))] == ["done", "done"]
    for kind in ("json", "parquet", "zoo"):
        assert srl("report", tmp_path, "--format", kind, "--out", tmp_path / "out").status == 0


# In a browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    return found


def dump(browser, page, folder):
    """Return the page after its scripts have run, and the console messages."""
    done = subprocess.run(
        [
            browser,
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
            *("--enable-logging=stderr", "--allow-file-access-from-files", "--virtual-time-budget=5000"),
            *(f"--user-data-dir={folder / 'profile'}", "--window-size=1280,900", "--dump-dom"),
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def with_script(page, copy, script, before=""):
    """Copy a page without its security policy and with additional scripts at its start and end."""
    html = page.read_text(encoding="utf-8")
    html, n_policies = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)
    assert n_policies == 1
    html = html.replace("<title>", f"<script>{before}</script><title>", 1)
    end = html.rindex("</body>")
    copy.write_text(f"{html[:end]}<script>{script}</script>{html[end:]}", encoding="utf-8")
    return copy


def answer(html):
    """Return the content of the body's ``data-answer`` attribute, which a script writes."""
    found = re.search(r'<body[^>]* data-answer="([^"]*)"', html)
    assert found, html[-2000:]
    return json.loads(unescape(found[1]))


def test_page_has_no_console_errors_in_a_browser(browser, hostile_page, tmp_path):
    html, complaints = dump(browser, hostile_page, tmp_path)
    assert complaints == []
    # The script has run: headings are buttons
    assert html.count("<th") == html.count("<button") + html.count('<th scope="row"') + html.count("<thead")


PROBE = """
window.addEventListener("load", () => {
  const click = (table, place) => table.tHead.rows[0].cells[place].querySelector("button").click();
  const column = (table, place) => [...table.tBodies[0].rows].map((row) => row.cells[place].textContent);
  const runs = document.getElementById("run-table");
  const sorted = {};
  for (const place of [0, 3, 6]) {
    click(runs, place);
    sorted[`${place} up`] = column(runs, place);
    click(runs, place);
    sorted[`${place} down`] = column(runs, place);
  }
  const scores = document.querySelector("#scores table");
  const last = scores.tHead.rows[0].cells.length - 1;
  click(scores, last);
  const bests = { up: column(scores, last) };
  click(scores, last);
  bests.down = column(scores, last);
  const filter = document.getElementById("filter");
  const shown = {};
  for (const text of ["", "failed", "PPO none", "sppo  DONE", "nothing like that"]) {
    filter.value = text;
    filter.dispatchEvent(new Event("input", { bubbles: true }));
    shown[text] = [...runs.tBodies[0].rows].filter((row) => row.getClientRects().length).length;
  }
  const widths = [...document.images].map((image) => image.naturalWidth);
  const alerts = window.alerts;
  document.body.dataset.answer = JSON.stringify({ sorted, bests, shown, widths, alerts });
});
"""


@pytest.fixture(scope="module")
def probed(browser, hostile, hostile_page, tmp_path_factory):
    folder = tmp_path_factory.mktemp("probed")
    count = "window.alerts = 0; window.alert = () => { window.alerts += 1; };"
    html, complaints = dump(browser, with_script(hostile_page, folder / "copy.html", PROBE, count), folder)
    assert complaints == []
    return answer(html)


def test_clicking_a_heading_sorts_numerically_with_missing_values_last(hostile, probed):
    numbers = sorted(run.score for run in read_scores(hostile).runs if run.state == "done")
    texts = [f"{number:.6g}" for number in numbers]
    assert len(texts) == 13
    assert probed["sorted"]["6 up"] == [*texts, "-", "-"]
    assert probed["sorted"]["6 down"] == [*reversed(texts), "-", "-"]
    seeds = [*["0"] * 8, *["1"] * 6, "7"]
    assert probed["sorted"]["3 up"] == seeds
    assert probed["sorted"]["3 down"] == seeds[::-1]


def test_second_click_on_a_heading_reverses_the_order(probed):
    names = probed["sorted"]["0 up"]
    assert set(names) == {name.replace("\r\n", "\n") for name in (*HOSTILE_ENVS, LONG)}
    assert list(dict.fromkeys(probed["sorted"]["0 down"])) == list(dict.fromkeys(names))[::-1]


def test_score_table_sorts_missing_values_last(probed):
    up, down = probed["bests"]["up"], probed["bests"]["down"]
    assert "-" in up
    n_missing = up.count("-")
    assert up[-n_missing:] == down[-n_missing:] == ["-"] * n_missing
    assert up[:-n_missing] == down[:-n_missing][::-1]


def test_filter_shows_rows_that_contain_all_words(probed):
    assert probed["shown"] == {"": 15, "failed": 1, "PPO none": 13, "sppo  DONE": 7, "nothing like that": 0}


def test_images_of_the_page_are_displayed(probed):
    assert len(probed["widths"]) > 5
    assert min(probed["widths"]) > 100


def test_names_never_run_as_scripts_even_without_the_policy(probed):
    assert probed["alerts"] == 0


MEASURE = """
window.addEventListener("load", () => {
  const answer = {};
  for (const frame of document.querySelectorAll("iframe")) {
    const inside = frame.contentDocument;
    answer[frame.name] = [...inside.querySelectorAll("main *, header *")]
      .filter((one) => !one.closest(".scroll, pre"))
      .filter((one) => Math.max(one.getBoundingClientRect().right,
        one.getBoundingClientRect().left + one.scrollWidth) > frame.clientWidth + 1)
      .map((one) => `${one.tagName}: ${one.textContent.slice(0, 60)}`);
    if (inside.documentElement.scrollWidth > frame.clientWidth) answer[frame.name].push("the page");
  }
  document.body.dataset.answer = JSON.stringify(answer);
});
"""


@pytest.mark.slow
@pytest.mark.parametrize("which", ["plain_page", "hostile_page"])
def test_page_fits_the_width_of_a_phone(which, browser, request, tmp_path):
    page = request.getfixturevalue(which)
    frames = "".join(
        f'<iframe name="{width}" src="{page.as_uri()}" style="width:{width}px;height:800px"></iframe>'
        for width in (390, 1280)
    )
    wrapper = tmp_path / "wrapper.html"
    wrapper.write_text(
        f"<!doctype html><style>iframe {{ border: 0 }}</style><body>{frames}<script>{MEASURE}</script></body>"
    )
    html, _ = dump(browser, wrapper, tmp_path)
    assert answer(html) == {"390": [], "1280": []}
