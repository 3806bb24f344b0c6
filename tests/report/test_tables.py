"""Tables as Markdown, CSV and LaTeX."""

import csv
import io
import json
import math
import re
import shutil
import subprocess

import numpy as np
import pytest
import scipy.stats
from rich.console import Console

from srl.report.files import write_tables
from srl.report.report import make_report
from srl.report.scores import read_scores
from srl.report.table_formats import to_csv, to_latex, to_markdown, to_rich
from srl.report.tables import Entry, Row, Table
from srl.report.write import FigureOptions, write_report
from tests.report.hostile import NAMES, PUNCTUATION, parse
from tests.report.made_runs import lay_down


def lay_scores(root, scores, **changes):
    """Write a finished run for each score."""
    for seed, score in enumerate(scores):
        lay_down(root, [[0.0, 0.0], [score - 1.0, score + 1.0]], seed=seed, **changes)


def bold(table):
    """Return the columns that are bold in Markdown, and check that all formats agree."""
    header, _, *rows = [line for line in to_markdown(table).splitlines() if line.startswith("|")]
    names = [cell.strip() for cell in header.strip("|").split("|")]
    found = [
        names[place]
        for row in rows
        for place, cell in enumerate(row.strip("|").split("|"))
        if "**" in cell or "<b>" in cell
    ]
    assert len(re.findall(r"\\textbf\{", to_latex(table))) == len(found)
    records = list(csv.DictReader(io.StringIO(to_csv(table))))
    assert [record["algorithm"].upper() for record in records if record["best"] == "1"] == found
    for width in (40, 250):
        columns = [column for part in to_rich(table, width).renderables for column in part.columns]
        assert sum("[bold]" in cell for column in columns for cell in column.cells) == len(found)
    return found


def test_best_is_bold_if_all_its_runs_are_higher(tmp_path):
    lay_scores(tmp_path, [1.0, 2.0, 3.0, 4.0], algo="ppo")
    lay_scores(tmp_path, [21.0, 22.0, 23.0, 24.0], algo="sppo")
    lay_scores(tmp_path, [11.0, 12.0, 13.0, 14.0], algo="a2c")
    assert bold(read_scores(tmp_path).table) == ["SPPO"]


def test_nothing_is_bold_with_too_few_runs(tmp_path):
    # Far apart, but the p-value of 3 and 3 runs is at least 0.1
    lay_scores(tmp_path, [0.0, 0.1, 0.2], algo="ppo")
    lay_scores(tmp_path, [10.0, 10.1, 10.2], algo="sppo")
    assert bold(read_scores(tmp_path).table) == []


def test_nothing_is_bold_if_the_worst_has_runs_above_the_best(tmp_path):
    lay_scores(tmp_path, [20.0, 20.1, 20.2, 20.3], algo="sppo")
    lay_scores(tmp_path, [10.0, 10.1, 10.2, 10.3], algo="a2c")
    lay_scores(tmp_path, [-30.0, -30.0, 0.0, 30.0], algo="ppo")
    assert bold(read_scores(tmp_path).table) == []


@pytest.mark.parametrize("single", [["ppo"], ["sppo"], ["ppo", "sppo"]], ids=str)
def test_nothing_is_bold_next_to_a_single_seed(single, tmp_path):
    for algo, scores in {"ppo": [1.0, 1.1, 1.2], "sppo": [1000.0, 1000.1, 1000.2]}.items():
        lay_scores(tmp_path, scores[:1] if algo in single else scores, algo=algo)
    assert bold(read_scores(tmp_path).table) == []


def test_nothing_is_bold_with_one_algorithm(tmp_path):
    lay_scores(tmp_path, [1.0, 1.1, 1.2])
    assert bold(read_scores(tmp_path).table) == []


def test_bold_is_decided_for_each_row(tmp_path):
    low, high = [1.0, 1.1, 1.2, 1.3, 1.4], [5.0, 5.1, 5.2, 5.3, 5.4]
    for noise, (ppo, sppo) in {"none": (low, high), "flip:0.1": (high, low)}.items():
        lay_scores(tmp_path, ppo, algo="ppo", noise=noise)
        lay_scores(tmp_path, sppo, algo="sppo", noise=noise)
    assert bold(read_scores(tmp_path).table) == ["SPPO", "PPO"]


def test_bold_is_corrected_for_number_of_rows(tmp_path):
    # The smallest p-value of 4 and 4 runs is 1 / 35: significant with one row but not with two
    for noise in ("none", "flip:0.1"):
        lay_scores(tmp_path, [1.0, 1.1, 1.2, 1.3], algo="ppo", noise=noise)
        lay_scores(tmp_path, [5.0, 5.1, 5.2, 5.3], algo="sppo", noise=noise)
    assert bold(read_scores(tmp_path).table) == []


def test_interquartile_mean_of_two_runs_is_not_bold(tmp_path):
    # Each interval spans both scores; the intervals are disjoint by chance in a third of all cases
    lay_scores(tmp_path, [1.0, 2.0], algo="ppo")
    lay_scores(tmp_path, [3.0, 4.0], algo="sppo")
    _, robust, _ = make_report(tmp_path, reps=200).tables
    assert [record["best"] for record in robust.records] == [False] * 4
    # The aggregate, then the environment
    assert [record["environment"] for record in robust.records] == ["", "", "CartPole-v1", "CartPole-v1"]


def test_note_names_one_family_of_tests_with_one_environment(tmp_path):
    for noise in ("none", "flip:0.1"):
        lay_scores(tmp_path, [1.0, 2.0], algo="ppo", noise=noise)
        lay_scores(tmp_path, [3.0, 4.0], algo="sppo", noise=noise)
    *_, improvement = make_report(tmp_path, reps=200).tables
    assert "for the comparisons of all pairs and noises, 2 in all." in improvement.notes[0]


def test_only_the_table_with_normalized_scores_describes_normalization(tmp_path):
    for algo in ("ppo", "sppo"):
        lay_scores(tmp_path, [1.0, 2.0], algo=algo)
    report = make_report(tmp_path, reps=200)
    lines = {table.name: " ".join([*table.notes, *report.notes]) for table in report.tables}
    assert [name for name, text in lines.items() if "Min-max normalized: 0 and 1 are" in text] == ["robust"]


@pytest.mark.slow
def test_p_values_of_improvements_are_in_every_format(tmp_path):
    # In A all scores are higher: 2 / 252. B has a tie: the p-value is computed by SciPy
    scores = {"A": ([6.0, 7, 8, 9, 10], [1.0, 2, 3, 4, 5]), "B": ([1.0, 2, 3, 3, 9], [3.0, 4, 5, 6, 7])}
    for env, (sppo, ppo) in scores.items():
        lay_scores(tmp_path, sppo, algo="sppo", env=env)
        lay_scores(tmp_path, ppo, algo="ppo", env=env)
    out = tmp_path / "out"
    write_report(make_report(tmp_path, reps=200), out, options=FigureOptions(formats=("png",)))

    def above(x, y):
        return np.mean(np.sign(x[:, None] - y) + 1) / 2

    p_b = scipy.stats.permutation_test(scores["B"], above, n_resamples=np.inf).pvalue
    expected = {"A": (2 / 252, 4 / 252, 1), "B": (p_b, p_b, 0)}
    records = list(csv.DictReader(io.StringIO((out / "improvement.csv").read_text())))
    assert [record["environment"] for record in records] == ["", "A", "B"]
    for record in records[1:]:
        p, adjusted, shown = expected[record["environment"]]
        assert float(record["p_value"]) == pytest.approx(p, rel=1e-9)
        assert float(record["adjusted_p_value"]) == pytest.approx(adjusted, rel=1e-9)
        assert int(record["shown"]) == shown
    # There is one comparison over both environments
    assert records[0]["p_value"] == records[0]["adjusted_p_value"]
    plain = json.loads((out / "statistics.json").read_text())
    assert [str(one["p_value"]) for one in plain["improvement"]] == [one["p_value"] for one in records]
    assert str(plain["comparisons"][0]["adjusted_p_value"]) == records[0]["adjusted_p_value"]
    assert plain["n_comparisons"] == {"several_environments": 1, "one_environment": 2}
    for file in ("improvement.md", "improvement.tex", "report.html"):
        text = (out / file).read_text()
        assert "p = 0.0079, adjusted = 0.016" in text
        assert f"p = {p_b:.2g}, adjusted = {p_b:.2g}" in text
        assert "separately for the 1 over several environments and the 2 in one environment" in text


def test_csv_preserves_every_value_and_name_exactly(tmp_path):
    means = {"ppo": [0.1 + 0.2, 1 / 3, 1e-17], "sppo": [1e100, -2.5e-310, math.pi]}
    name = NAMES["a line break"] + PUNCTUATION
    for algo, scores in means.items():
        for seed, score in enumerate(scores):
            lay_down(tmp_path, [[0.0], [score]], algo=algo, env=name, at=f"{algo}/{seed}", seed=seed)
    (file,) = [
        file for file in write_tables([read_scores(tmp_path).table], tmp_path, []) if file.suffix == ".csv"
    ]
    with file.open(newline="", encoding="utf-8") as opened:
        rows = list(csv.DictReader(opened))
    assert [row["algorithm"] for row in rows] == ["ppo", "sppo"]
    for row in rows:
        scores = np.array(means[row["algorithm"]])
        assert row["environment"] == name
        assert float(row["mean"]) == scores.mean()
        assert float(row["standard_error"]) == scores.std(ddof=1) / np.sqrt(3)


ALL_NAMES = tuple(NAMES.values())


def hostile_table(names=ALL_NAMES, columns=("PPO", PUNCTUATION)):
    rows = [
        Row(
            name, noise, 64, {columns[0]: Entry("1.0 ± 0.1", n=3, best=True), columns[-1]: Entry("-2.0", n=4)}
        )
        for name in names
        for noise in ("none", "flip:0.1")
    ]
    return Table("hostile", "Scores [95% interval], n seeds", columns, rows, [], [f"† {PUNCTUATION}"])


def shown_line(text):
    """Return the visible part of a text in one line."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def markdown_to_html(text):
    markdown_it = pytest.importorskip("markdown_it")
    return parse(markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text))


def test_names_are_plain_text_in_rendered_markdown_table():
    table = hostile_table()
    page = markdown_to_html(to_markdown(table))
    assert {one.tag for one in page.everything()} == {
        *("p", "table", "thead", "tbody", "tr", "th", "td", "strong", "ul", "li")
    }
    head, *rows = page.all("tr")
    assert [shown_line(cell.text) for cell in head.all("th")] == [
        *("environment", "noise", "steps", "PPO", shown_line(PUNCTUATION))
    ]
    for row, drawn in zip(table.rows, rows, strict=True):
        env, noise, *_, last = (shown_line(cell.text) for cell in drawn.all("td"))
        assert (env, noise, last) == (shown_line(row.env), row.noise, "-2.0 (n=4)")
        assert [one.text for one in drawn.all("strong")] == ["1.0 ± 0.1 (n=3)"]


@pytest.mark.parametrize("what", NAMES)
def test_notes_are_plain_text_in_rendered_markdown(what):
    page = markdown_to_html(to_markdown(Table("t", "Scores", [], [], [], []), ["first", NAMES[what], "last"]))
    (items,) = page.all("ul")
    assert {one.tag for one in items.everything()} == {"li"}
    assert [shown_line(item.text) for item in items.all("li")] == ["first", shown_line(NAMES[what]), "last"]


def test_names_do_not_become_links_in_markdown():
    text = to_markdown(hostile_table(), list(NAMES.values()))
    assert "://" not in text
    assert "www." not in text


def test_markdown_cells_have_only_the_line_breaks_of_the_table():
    entry = Entry("1.0", n=1, unfinished="1 failed", published="[published 1 ± 2 †]")
    table = Table("t", "Scores", ["PPO"], [Row("A", "none", 64, {"PPO": entry})], [])
    (cell,) = markdown_to_html(to_markdown(table).replace("<br>", "@@")).all("tr")[1].all("td")[3:]
    assert cell.text == "1.0 (n=1)@@1 failed@@[published 1 ± 2 †]"


#: Characters that LaTeX shows for a command.
COMMANDS = {
    r"\textbackslash{}": "\\",
    r"\textasciitilde{}": "~",
    r"\textasciicircum{}": "^",
    r"\textasciigrave{}": "`",
    r"\textless{}": "<",
    r"\textgreater{}": ">",
    r"\textbar{}": "|",
    r"\symbol{34}": '"',
    r"$\pm$": "±",
    r"\dag{}": "†",
    r"\ddag{}": "‡",
    r"\S{}": "§",
    r"\P{}": "¶",
    "$-$": "-",
    "{[}": "[",
    "{]}": "]",
    "{*}": "*",
    "-{}": "-",
    "'{}": "'",
    **{f"\\{character}": character for character in "&%$#_{}"},
}


def shown_by_latex(text):
    """Return the text that LaTeX shows; fail on unknown commands and unescaped characters."""
    shown = ""
    while text:
        command = next((command for command in COMMANDS if text.startswith(command)), "")
        if not command:
            assert text[0] not in '\\{}$&#^_~%<>|"`[]', f"LaTeX does not take this for text: {text}"
        shown += COMMANDS[command] if command else text[0]
        text = text[len(command) or 1 :]
    return shown


def latex_rows(text):
    """Return the cells of each row of the table body."""
    body = re.search(r"\\midrule\n(.*)\\bottomrule", text, re.DOTALL)[1]
    assert body.endswith(" \\\\\n")
    return [row.split(" & ") for row in body.removesuffix(" \\\\\n").split(" \\\\\n")]


@pytest.mark.parametrize("what", NAMES)
def test_names_are_plain_text_in_latex(what):
    name = NAMES[what]
    text = to_latex(hostile_table([name], ("PPO", name)))
    ((first, *_),) = latex_rows(text)
    assert shown_line(shown_by_latex(first)) == shown_line(name)
    lines = text.splitlines()
    head = lines[lines.index("\\midrule") - 1].removesuffix(" \\\\").split(" & ")
    shown = [shown_line(shown_by_latex(cell)) for cell in head]
    assert shown == ["environment", *["PPO", shown_line(name)] * 2]


def test_latex_rows_do_not_start_with_arguments_of_line_breaks():
    # Two backslashes accept a star or a length in brackets
    rows = latex_rows(to_latex(hostile_table(["CartPole-v1", "*star-v0", "[2pt]-v0"])))
    assert len(rows) == 3
    assert [first for first, *_ in rows if first.lstrip().startswith(("*", "["))] == []


def test_latex_table_groups_columns_by_noise(tmp_path):
    for noise in ("none", "gaussian:0.05"):
        lay_scores(tmp_path, [1.0, 1.1, 1.2, 1.3, 1.4], algo="ppo", noise=noise)
        lay_scores(tmp_path, [5.0, 5.1, 5.2, 5.3, 5.4], algo="sppo", noise=noise)
    lay_scores(tmp_path, [7.0, 7.1, 7.2, 7.3, 7.4], algo="a2c", noise="gaussian:0.05")
    text = to_latex(read_scores(tmp_path).table)
    lines = text.splitlines()
    assert [line for line in lines if line.endswith("rule")] == ["\\toprule", "\\midrule", "\\bottomrule"]
    assert " & \\multicolumn{2}{c}{without noise} & \\multicolumn{3}{c}{gaussian:0.05} \\\\" in lines
    assert "\\cmidrule(lr){2-3} \\cmidrule(lr){4-6}" in lines
    assert "environment & PPO & SPPO & A2C & PPO & SPPO \\\\" in lines
    assert "\\begin{tabular}{lrrrrr}" in lines
    (row,) = latex_rows(text)
    assert row == [
        "CartPole-v1",
        "1.200 $\\pm$ 0.071",
        "\\textbf{5.200 $\\pm$ 0.071}",
        "\\textbf{7.200 $\\pm$ 0.071}",
        "1.200 $\\pm$ 0.071",
        "5.200 $\\pm$ 0.071",
    ]
    assert "over 5 seeds, after 64 training steps" in text


def check_balance(text):
    """Check that braces and environments are balanced."""
    text = re.sub(r"(?<!\\)%.*", "", text)
    open_ = []
    for token in re.findall(r"\\begin\{\w+\}|\\end\{\w+\}|\\.|[{}]", text, re.DOTALL):
        if token.startswith("\\begin"):
            open_.append(token.replace("begin", "end"))
        elif token.startswith("\\end{"):
            assert open_.pop() == token
        elif token == "{":
            open_.append("}")
        elif token == "}":
            assert open_.pop() == "}"
    assert open_ == []


def check_columns(text):
    """Check that every row has as many cells as the table has columns."""
    n_columns = len(re.search(r"\\begin\{tabular\}\{(\w+)\}", text)[1])
    rows = [line for line in text.splitlines() if line.endswith("\\\\")]
    assert len(rows) > 2
    for row in rows:
        spans = [int(n) for n in re.findall(r"\\multicolumn\{(\d+)\}", row)]
        assert len(re.findall(r"(?<!\\)&", row)) + 1 + sum(spans) - len(spans) == n_columns, row


@pytest.mark.parametrize("names", [ALL_NAMES, ("CartPole-v1",)], ids=["hostile", "plain"])
@pytest.mark.parametrize("columns", [("PPO", PUNCTUATION), ("A", "B", "C", "D")], ids=["narrow", "wide"])
def test_latex_braces_environments_and_columns_match(names, columns):
    text = to_latex(hostile_table(names, columns))
    check_balance(text)
    check_columns(text)


def test_every_latex_table_names_the_number_of_seeds(tmp_path):
    for env in ("CartPole-v1", "Acrobot-v1"):
        lay_scores(tmp_path, [1.0, 2.0, 3.0], algo="ppo", env=env)
        lay_scores(tmp_path, [5.0, 6.0, 7.0], algo="sppo", env=env)
    for table in make_report(tmp_path, reps=100).tables:
        text = to_latex(table)
        assert re.search(r"\b3 (matched )?seeds", text), table.name


@pytest.fixture(scope="module")
def pdflatex():
    program = shutil.which("pdflatex")
    if program is None:
        pytest.skip("pdflatex is not installed")
    return program


def compile_latex(program, folder, text):
    """Compile a table in a document with only the packages that it names; return the output of LaTeX."""
    packages = re.match(r"% Needs packages? (.*)\.\n", text)[1].split(" and ")
    document = (
        "\\documentclass{article}\n"
        + "".join(f"\\usepackage{{{package}}}\n" for package in packages)
        + f"\\begin{{document}}\n{text}\\end{{document}}\n"
    )
    (folder / "table.tex").write_text(document, encoding="utf-8")
    done = subprocess.run(
        [program, "-interaction=nonstopmode", "-halt-on-error", "table.tex"],
        cwd=folder,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert (folder / "table.pdf").stat().st_size > 0
    return done.stdout


@pytest.mark.parametrize("columns", [("PPO", PUNCTUATION), ("A", "B", "C", "D")], ids=["narrow", "wide"])
def test_latex_compiles_with_any_names(columns, pdflatex, tmp_path):
    compile_latex(pdflatex, tmp_path, to_latex(hostile_table(columns=columns)))


@pytest.mark.skipif(shutil.which("pdftotext") is None, reason="pdftotext is not installed")
def test_pdf_shows_names_unchanged(pdflatex, tmp_path):
    names = ["CartPole-v1", "*star-v0", "[2pt]-v0", "a&b-v0", "50% & more", "--x--", r"C:\new", "{x}#$1"]
    compile_latex(pdflatex, tmp_path, to_latex(hostile_table(names, ("A", "B", "C", "D"))))
    text = subprocess.run(
        ["pdftotext", "-layout", "table.pdf", "-"], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    assert [name for name in names if name not in text] == []


@pytest.mark.parametrize("n_algorithms", [2, 4])
def test_latex_tables_of_a_report_fit_the_text_width(n_algorithms, pdflatex, tmp_path):
    for noise in ("none", "gaussian:0.05"):
        for number, algo in enumerate(("da2c", "dsa2c", "dppo", "dsppo")[-n_algorithms:]):
            scores = [1000.0 * number + 100.0 * seed for seed in range(3)]
            lay_scores(tmp_path, scores, algo=algo, noise=noise, env="LunarLanderContinuous-v3")
            lay_scores(tmp_path, scores, algo=algo, noise=noise, env="InvertedDoublePendulum-v4")
    for table in make_report(tmp_path, reps=100).tables:
        output = compile_latex(pdflatex, tmp_path, to_latex(table))
        assert "Overfull \\hbox" not in output, table.name


def test_table_fits_a_narrow_terminal():
    columns = ["A2C", "SA2C", "PPO", "SPPO", "sppo-beta=5"]
    entries = {column: Entry(f"123{place}.5 ± 123.4", n=5) for place, column in enumerate(columns)}
    rows = [Row("HalfCheetah-v4", noise, 2_000_000, entries) for noise in ("none", "gaussian:0.05")]
    table = Table("table", "Mean ± standard error, n seeds", columns, rows, [], [])
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(to_rich(table, 80))
    text = console.export_text()
    assert "5 seeds, after 2,000,000 training steps" in text
    assert max(map(len, text.rstrip().splitlines())) <= 80
    for place in range(len(columns)):
        assert text.count(f"123{place}.5 ± 123.4") == 2
