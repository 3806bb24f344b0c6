"""A report replaces the files of an earlier report but never the files of users."""

import json
import multiprocessing
import os
import shutil
import signal
import tarfile
from concurrent.futures import ThreadPoolExecutor, TimeoutError
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from srl.errors import UserError
from srl.report.files import check_files, text_writer, write_files
from srl.report.report import make_report
from srl.report.scores import read_scores
from srl.report.write import FILES, FigureOptions, write_report
from tests.report.made_runs import lay_down
from tests.small_runs import SMALL_WORDS, contents, srl, until

DATA = Path(__file__).parent.parent / "data"
RETURNS = np.array([[1.0, 2.0], [3.0, 4.0]])
CURVE = "figures/learning_curve/CartPole-v1.png"


@pytest.fixture
def runs(tmp_path):
    """Four finished runs."""
    for algo in ("ppo", "sppo"):
        for seed in (0, 1):
            lay_down(tmp_path / "runs", RETURNS + seed, algo=algo, seed=seed)
    return tmp_path / "runs"


def change(runs):
    """Change scores, like additional training does."""
    for algo in ("ppo", "sppo"):
        lay_down(runs, 10 * RETURNS, algo=algo, seed=1)


def report(runs, out, *words):
    small = () if {"json", "parquet", "zoo"} & {*words} else ("--reps", 100)
    return srl("report", runs, "--out", out, *small, *words)


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """A report and its runs."""
    root = tmp_path_factory.mktemp("reported")
    for algo in ("ppo", "sppo"):
        for seed in (0, 1):
            lay_down(root / "runs", RETURNS + seed, algo=algo, seed=seed)
    for kind in ("page", "json", "parquet", "zoo"):
        assert report(root / "runs", root / "out", "--format", kind).status == 0
    return root


@pytest.fixture
def written(reported, tmp_path):
    """A copy of the runs and of the report folder."""
    shutil.copytree(reported, tmp_path, dirs_exist_ok=True)
    return tmp_path / "runs", tmp_path / "out"


def file_of(user):
    return lambda path: path.write_text(user)


def folder(path):
    path.mkdir()
    (path / "mine.txt").write_text("years of work")


def link(path):
    target = path.parent.parent / f"{path.parent.name}-mine"
    target.write_text("years of work")
    path.symlink_to(target)


def dead_link(path):
    path.symlink_to("nowhere")


IN_THE_WAY = [
    ("page", "table.md", file_of("# My notes\n")),
    ("page", "table.csv", folder),
    ("page", "table.tex", link),
    ("page", "robust.md", dead_link),
    ("page", "improvement.csv", file_of("environment,my score\nCartPole-v1,500\n")),
    ("page", "statistics.json", file_of('{"format": 1, "mean": 3.5}')),
    ("page", "report.html", file_of("<!doctype html>\n<html><title>Thesis</title></html>\n")),
    ("page", CURVE, file_of("no image")),
    ("page", "figures", file_of("a list of figures")),
    ("page", "figures", link),
    ("page", "figures/learning_curve", file_of("a list of figures")),
    ("json", "evaluations.json", file_of("[]")),
    ("parquet", "evaluations.parquet", file_of("PAR1")),
    ("zoo", "zoo/none/sppo/CartPole-v1_0/evaluations.npz", file_of("mine")),
    ("zoo", "zoo", file_of("animals")),
    ("zoo", "zoo/none", link),
    ("page", ".srl-report.json", file_of("mine")),
    ("zoo", ".srl-report.json", file_of('{"files": {"../../thesis.tex": []}}')),
]


@pytest.mark.parametrize(("kind", "name", "put"), IN_THE_WAY)
def test_foreign_file_is_named_and_kept_and_nothing_is_written(kind, name, put, runs, tmp_path):
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True)
    put(out / name)
    before, entries = contents(tmp_path), set(tmp_path.rglob("*"))
    outcome = report(runs, out, "--format", kind)
    assert (outcome.status, outcome.out) == (2, "")
    assert str(out / name) in outcome.err
    assert "Move" in outcome.err
    assert contents(tmp_path) == before
    assert set(tmp_path.rglob("*")) == entries


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(("page", name) for name in ("table.md", "table.tex", "report.html", "statistics.json", CURVE)),
        ("json", "evaluations.json"),
        ("parquet", "evaluations.parquet"),
        ("zoo", "zoo/none/sppo/CartPole-v1_0/evaluations.npz"),
    ],
)
def test_edited_file_is_named_and_kept(kind, name, written):
    runs, out = written
    (out / name).write_bytes((out / name).read_bytes() + b"\n")
    before = contents(out)
    outcome = report(runs, out, "--format", kind)
    assert outcome.status == 2
    assert f"{out / name}: not written by srl, or changed since" in outcome.err
    assert contents(out) == before
    if kind != "page":
        (out / name).rename(out / "mine")
        assert report(runs, out, "--format", kind).status == 0


@pytest.mark.slow
def test_foreign_files_next_to_a_report_are_kept(written):
    runs, out = written
    mine = ["figures/mine.png", "figures/learning_curve/mine.png", "figures/entropy/.hidden", "notes.md"]
    mine += [
        "zoo/ppo/notes.txt",
        "zoo/none/sppo/CartPole-v1_0/best_model.zip",
        "zoo/none/mine/evaluations.npz",
    ]
    for name in mine:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("years of work")
    before = contents(out)
    shutil.rmtree(runs / "CartPole-v1" / "sppo")
    for kind in ("page", "json", "parquet", "zoo"):
        outcome = report(runs, out, "--format", kind)
        assert (outcome.status, outcome.err) == (0, "")
    after = contents(out)
    assert {name: after[name] for name in mine} == {name: before[name] for name in mine}
    # Obsolete files of srl are removed
    assert not (out / "figures" / "improvement.png").exists()
    assert [path.name for path in (out / "zoo" / "none").rglob("evaluations.npz")] == ["evaluations.npz"] * 3
    assert (out / "zoo" / "none" / "sppo" / "CartPole-v1_0").is_dir()
    assert not (out / "zoo" / "none" / "sppo" / "CartPole-v1_1").exists()


def test_edited_figure_is_kept_when_it_becomes_obsolete(written):
    runs, out = written
    edited = out / "figures" / "improvement.svg"
    edited.write_text(edited.read_text() + "<!-- my colours -->")
    shutil.rmtree(runs / "CartPole-v1" / "sppo")
    assert report(runs, out).status == 0
    assert edited.read_text().endswith("<!-- my colours -->")
    assert not edited.with_suffix(".png").exists()


def test_trend_of_an_earlier_report_is_removed_unless_edited(tmp_path):
    trend = dict.fromkeys(("trend.md", "trend.csv"), text_writer("earlier"))
    write_files(tmp_path, trend | {"mine.txt": text_writer("earlier")})
    (tmp_path / "trend.csv").write_text("edited")
    lay_down(tmp_path / "runs", [[1.0, 2.0]])
    write_report(make_report(tmp_path / "runs", reps=100), tmp_path, options=FigureOptions(("png",)))
    names = {file.name for file in tmp_path.iterdir()}
    assert "trend.md" not in names
    assert {"trend.csv", "mine.txt", "table.md"} <= names


def test_sweep_rejects_foreign_table_before_training(tmp_path):
    (tmp_path / "table.md").write_text("# My notes\n")
    words = ["sweep", "discrete_srl", "--envs", "CartPole-v1", "--algos", "sppo", "--noise", "none"]
    words += ["--seeds", "0", "--timesteps", "64", "--device", "cpu", *SMALL_WORDS, "--out", tmp_path]
    for more in ([], ["--dry-run"]):
        outcome = srl(*words, *more)
        assert outcome.status == 2
        assert f"{tmp_path / 'table.md'}: not written by srl" in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["table.md"]


# Reports of earlier versions


@pytest.fixture
def earlier(tmp_path):
    """A report of 4 runs, written by a version without a record file."""
    with tarfile.open(DATA / "earlier_report.tar.gz") as archive:
        archive.extractall(tmp_path / "out", filter="data")
    return tmp_path / "out"


@pytest.mark.slow
def test_report_of_an_earlier_version_is_replaced(runs, earlier):
    before = contents(earlier)
    for kind in ("page", "json", "parquet"):
        outcome = report(runs, earlier, "--format", kind)
        assert (outcome.status, outcome.err) == (0, "")
    after = contents(earlier)
    assert before.keys() < after.keys()
    assert all(after[name] != before[name] for name in before)


def test_zoo_export_of_an_earlier_version_is_replaced_if_unchanged(runs, tmp_path):
    assert report(runs, tmp_path / "out", "--format", "zoo").status == 0
    (tmp_path / "out" / ".srl-report.json").unlink()
    assert report(runs, tmp_path / "out", "--format", "zoo").status == 0
    (tmp_path / "out" / ".srl-report.json").unlink()
    change(runs)
    outcome = report(runs, tmp_path / "out", "--format", "zoo")
    assert outcome.status == 2
    assert "zoo/none/sppo/CartPole-v1_1/evaluations.npz: not written by srl, or changed since" in outcome.err


FIRST_TABLE = """\
Final evaluation: mean ± standard error over n seeds of the mean return.

| environment | noise | steps | PPO | SPPO |
| --- | --- | ---: | ---: | ---: |
| CartPole-v1 | none | 64 | 2.0 ± 0.5 (n=2)<br>[published 3 ± 1 †] | - |

- † published after 1,000 steps, not the row's.
"""


@pytest.mark.parametrize("addition", ["", "\nMy notes.\n"])
def test_table_of_first_version_is_recognized_only_if_unchanged(addition, tmp_path):
    (tmp_path / "table.md").write_text(FIRST_TABLE + addition)
    if not addition:
        return check_files(tmp_path, FILES)
    with pytest.raises(UserError, match=r"table\.md"):
        check_files(tmp_path, FILES)


def test_export_folder_is_not_reported_as_foreign(runs):
    assert report(runs, runs / "exported", "--format", "json").status == 0
    assert read_scores(runs).left_out == []


# Interruptions and concurrent reports


def write_text(out, text, n=0):
    """Write a text and a file per character in a subprocess, which is killed at the n-th replacement."""
    process = multiprocessing.get_context("fork").Process(target=_write_text, args=(out, text, n))
    process.start()
    return process


def _write_text(out, text, n):
    replace, calls = Path.replace, []

    def killed(self, target):
        calls.append(target)
        if len(calls) == n:
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(self, target)

    Path.replace = killed
    files = {f"figures/{name}.txt": text_writer(text + name) for name in text}
    write_files(out, files | {"a.txt": text_writer(text)}, instead_of=["figures"])


def exit_codes(*processes):
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def shown(out):
    return {name: text.decode() for name, (_, text) in contents(out).items() if not name.startswith(".srl")}


def test_report_killed_at_any_moment_can_be_rewritten(tmp_path):
    assert exit_codes(write_text(tmp_path, "abc")) == [0]
    # Killed before each replacement: the record, four files, the record again
    for n, text in enumerate(("bcd", "cde", "def", "efg", "fgh", "ghi"), 1):
        assert exit_codes(write_text(tmp_path, text, n)) == [-signal.SIGKILL]
        check_files(tmp_path, ["a.txt", *(f"figures/{name}.txt" for name in "abcdefghi")])
    assert exit_codes(write_text(tmp_path, "xyz")) == [0]
    files = {name: text for name, text in shown(tmp_path).items() if not Path(name).name.startswith(".")}
    assert files == {"a.txt": "xyz", **{f"figures/{name}.txt": f"xyz{name}" for name in "xyz"}}


def test_concurrent_reports_leave_the_files_of_exactly_one(tmp_path):
    texts = ["abc", "bcd", "cde", "xyz"] * 4
    assert exit_codes(*[write_text(tmp_path, text) for text in texts]) == [0] * len(texts)
    left = shown(tmp_path)
    text = left["a.txt"]
    assert text in texts
    assert left == {"a.txt": text, **{f"figures/{name}.txt": f"{text}{name}" for name in text}}
    check_files(tmp_path, left)


def test_files_are_checked_after_a_concurrent_report_finishes(tmp_path):
    out, half, go = tmp_path / "out", tmp_path / "half", tmp_path / "go"
    write_files(out, {"a.txt": text_writer("a"), "b.txt": text_writer("a")})

    def wait(path):
        half.touch()
        until(go.exists)
        path.write_text("b")

    files = {"a.txt": text_writer("b"), "b.txt": wait}
    with ThreadPoolExecutor() as pool:
        writing = pool.submit(write_files, out, files)
        until(half.exists)
        (out / "a.txt").write_text("b")  # the state between two replacements
        checking = pool.submit(check_files, out, files)
        with suppress(TimeoutError, UserError):
            checking.result(timeout=0.2)
        go.touch()
        writing.result()
        checking.result()


def test_failed_report_keeps_the_previous_one(tmp_path):
    write_files(tmp_path, {"a.txt": text_writer("a"), "old/b.txt": text_writer("b")})
    before = contents(tmp_path)

    def full(path):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    files = {"a.txt": text_writer("new"), "new/b.txt": text_writer("new"), "new/c.txt": full}
    with pytest.raises(OSError, match="No space left"):
        write_files(tmp_path, files)
    assert contents(tmp_path) == before
    assert not (tmp_path / "new").exists()


def test_record_contains_a_digest_of_each_file(written):
    runs, out = written
    change(runs)
    for kind in ("json", "zoo"):
        assert report(runs, out, "--format", kind).status == 0
    record = json.loads((out / ".srl-report.json").read_text())["files"]
    assert record.keys() == {name for name in contents(out) if not name.startswith(".srl")}
    assert {len(digests) for digests in record.values()} == {1}
