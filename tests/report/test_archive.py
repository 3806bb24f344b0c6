"""Archives: single files that reproduce a report without the run directories, byte for byte."""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from srl.errors import UserError
from srl.report.archive import read_archive
from srl.report.cells import Cell, group
from srl.report.curves import training_curves
from srl.report.scores import read_scores
from srl.report.source import Folders
from srl.rundir.names import EVALUATIONS, PROGRESS, SPEC, STATUS
from tests.report.made_runs import MADE_VERSIONS, lay_down
from tests.small_runs import srl

WORDS = ("--reps", 100)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A sweep with variants, noise, comparisons, and runs in many states."""
    root = tmp_path_factory.mktemp("made") / "my sweep"
    generator = np.random.default_rng(0)
    for env in ("CartPole-v1", "Acrobot-v1"):
        for algo, variant in (("ppo", None), ("ppo", "ppo-rescaled"), ("sppo", None)):
            for noise in ("none", "flip:0.1"):
                for seed in range(3):
                    returns = 1000.0 * generator.normal(size=(4, 3))
                    lay_down(root, returns, env=env, algo=algo, variant=variant, noise=noise, seed=seed)
    unfinished = dict(algo="ppo", n_timesteps=128, eval_freq=32)
    lay_down(root, generator.normal(size=(2, 3)), seed=3, state="running", **unfinished)
    lay_down(root, generator.normal(size=(3, 3)), seed=4, state="failed", reason="a|b <c>", **unfinished)
    lay_down(root, None, seed=5, state="failed", n_eval_episodes=3, n_eval_envs=3, **unfinished)
    damaged = lay_down(root, generator.normal(size=(4, 3)), algo="a2c")
    (damaged.path / EVALUATIONS).write_bytes(b"PK")
    no_log = lay_down(root, generator.normal(size=(4, 3)), algo="a2c", seed=1)
    (no_log.path / PROGRESS).unlink()
    changed_log = lay_down(root, generator.normal(size=(4, 3)), algo="a2c", seed=2)
    status = json.loads((changed_log.path / STATUS).read_text())
    status["files"] = {PROGRESS: [1, 1, "0" * 64]}
    (changed_log.path / STATUS).write_text(json.dumps(status))
    no_spec = lay_down(root, generator.normal(size=(4, 3)), algo="a2c", seed=10)
    (no_spec.path / SPEC).write_text("{}")
    (root / "notes").mkdir()
    (root / "notes" / "mine.txt").write_text("of no run")
    planned = {"path": "CartPole-v1/a2c/none/seed-9", "env": "CartPole-v1", "algo": "a2c", "noise": "none"}
    plan = {
        "format": 1,
        "compare": [["sppo", "ppo"], ["sppo", "ppo-rescaled"]],
        "runs": [
            planned | {"seed": 9, "n_timesteps": 128},
            planned | {"seed": 10, "n_timesteps": 128, "path": "CartPole-v1/a2c/none/seed-10"},
        ],
    }
    (root / "sweep.json").write_text(json.dumps(plan))
    return root


@pytest.fixture(scope="module")
def archive(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("results")
    outcome = srl("report", root, "--format", "archive", "--out", out)
    assert outcome.status == 0, outcome.err
    return out / "my-sweep.parquet"


def written(folder):
    """Return the files that a report wrote, except its record."""
    files = [file for file in folder.rglob("*") if file.is_file() and not file.name.startswith(".")]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [(), ("--last", 2, "--normalize", "none", "--figures", "png")], ids=["plain", "options"]
)
def test_report_from_archive_is_byte_identical_to_report_from_runs(options, root, archive, tmp_path):
    for source, out in ((root, tmp_path / "runs"), (archive, tmp_path / "archive")):
        outcome = srl("report", source, "--out", out, *WORDS, *options)
        assert outcome.status == 0, outcome.err
    ours, theirs = written(tmp_path / "archive"), written(tmp_path / "runs")
    assert ours.keys() == theirs.keys()
    assert {name for name in ours if ours[name] != theirs[name]} == set()
    assert {"table.md", "improvement.tex", "statistics.json", "report.html"} < ours.keys()
    statistics = json.loads(ours["statistics.json"])
    pairs = {(one["column"], one["baseline"]) for one in statistics["comparisons"]}
    assert pairs == {("SPPO", "PPO"), ("SPPO", "ppo-rescaled")}


def test_archive_traces_every_score_to_its_run(root, archive):
    rows = parquet.read_table(archive).to_pylist()
    done = [row for row in rows if row["state"] == "done"]
    assert len(done) == 38
    for row in done:
        assert json.loads(row["versions"])["commit"] == MADE_VERSIONS["commit"]
        spec = json.loads((root / row["run"] / "spec.json").read_text())
        assert json.loads(row["spec"]) | {"seed": row["seed"]} == spec
        files = json.loads((root / row["run"] / "status.json").read_text())["files"]
        assert json.loads(row["files"]) == {name: digest for name, (_, _, digest) in files.items()}
        with np.load(root / row["run"] / EVALUATIONS) as arrays:
            assert row["timesteps"] == arrays["timesteps"].tolist()
            assert row["returns"] == arrays["results"].ravel().tolist()


def test_changed_log_is_reported_equally_from_runs_and_archive(root, archive):
    (run,) = [run for run in read_scores(root).runs if run.path == "CartPole-v1/a2c/none/seed-2"]
    cell = Cell(*run.place, "", (run,))
    (line,) = training_curves(cell, Folders(root).training)[1]
    assert line.endswith("progress.csv: damaged")
    assert training_curves(cell, read_archive(archive).training)[1] == [line]
    assert str(root) not in str(parquet.read_table(archive).to_pylist())


def test_archive_of_archive_is_byte_identical(archive, tmp_path):
    outcome = srl("report", archive, "--format", "archive", "--out", tmp_path)
    assert outcome.status == 0, outcome.err
    assert (tmp_path / archive.name).read_bytes() == archive.read_bytes()


@pytest.fixture
def replaced(tmp_path):
    """A folder of runs, and the archive that was made of it."""
    for seed in (0, 1):
        lay_down(tmp_path / "a", [[1.0], [2.0]], seed=seed, n_timesteps=96, eval_freq=32, state="running")
    assert srl("report", tmp_path / "a", "--format", "archive", "--out", tmp_path).status == 0
    return tmp_path


def test_archive_is_replaced_by_one_with_more_data(replaced):
    for seed in (0, 2):
        lay_down(replaced / "a", [[1.0], [2.0], [3.0]], seed=seed)
    outcome = srl("report", replaced / "a", "--format", "archive", "--out", replaced)
    assert outcome.status == 0, outcome.err
    runs = read_archive(replaced / "a.parquet").runs
    assert [run.evaluations.means.tolist() for run in runs] == [[1.0, 2.0, 3.0], [1.0, 2.0], [1.0, 2.0, 3.0]]


@pytest.mark.parametrize("returns", [None, [[1.0]], [[1.0], [2.5], [3.0]]], ids=["no run", "fewer", "others"])
def test_archive_with_data_that_the_new_one_lacks_is_kept(returns, replaced):
    lay_down(replaced / "other" / "a", [[1.0], [2.0], [3.0]], seed=0)
    if returns:
        lay_down(replaced / "other" / "a", returns, seed=1)
    before = (replaced / "a.parquet").read_bytes()
    outcome = srl("report", replaced / "other" / "a", "--format", "archive", "--out", replaced)
    assert outcome.status == 2
    assert "a.parquet contains evaluations that the new archive lacks" in outcome.err
    assert "CartPole-v1/sppo/none/seed-1" in outcome.err
    assert (replaced / "a.parquet").read_bytes() == before


def test_export_from_archive_is_byte_identical_to_export_from_runs(root, archive, tmp_path):
    for source, out in ((root, tmp_path / "runs"), (archive, tmp_path / "archive")):
        for kind in ("json", "parquet"):
            assert srl("report", source, "--format", kind, "--out", out).status == 0
    assert written(tmp_path / "archive") == written(tmp_path / "runs")


def test_report_from_archive_is_written_to_folder_named_after_it(archive, tmp_path):
    copy = tmp_path / "study.parquet"
    copy.write_bytes(archive.read_bytes())
    assert srl("report", copy, "--format", "json").status == 0
    assert (tmp_path / "study" / "evaluations.json").exists()


@pytest.mark.parametrize(
    ("content", "words", "says"),
    [
        (b"PAR1 and no more", [], "not an archive of results"),
        (b"", [], "not an archive of results"),
        ("another table", [], "not an archive of results"),
        ("of a newer srl", [], "of format 2; this srl reads 1"),
        ("whole", ["--format", "zoo"], "--format zoo copies the files of run directories"),
    ],
    ids=["damaged", "empty", "another table", "newer", "zoo"],
)
def test_invalid_archive_is_named_in_error(content, words, says, archive, tmp_path):
    file = tmp_path / "study.parquet"
    table = parquet.read_table(archive)
    if content == "another table":
        parquet.write_table(pa.table({"run": ["a"]}), file)
    elif content == "of a newer srl":
        about = {b"srl": json.dumps({"format": 2}).encode()}
        parquet.write_table(table.replace_schema_metadata(about), file)
    else:
        file.write_bytes(archive.read_bytes() if content == "whole" else content)
    outcome = srl("report", file, *words)
    assert outcome.status == 2
    assert says in outcome.err
    assert outcome.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["study.parquet"]


def rewrite(archive, file, change):
    """Write an archive with changed rows, and without its checksum, as another version of srl may."""
    table = parquet.read_table(archive)
    rows = table.to_pylist()
    about = json.loads(table.schema.metadata[b"srl"])
    about.pop("sha256", None)
    changed = pa.Table.from_pylist(change(rows), schema=table.schema.remove_metadata())
    parquet.write_table(changed.replace_schema_metadata({b"srl": json.dumps(about)}), file)


@pytest.mark.parametrize("part", ["returns", "training", "left_out", "spec"])
def test_changed_archive_is_named_in_error(part, archive, tmp_path):
    table = parquet.read_table(archive)
    rows, metadata = table.to_pylist(), table.schema.metadata[b"srl"]
    row = next(row for row in rows if row["state"] == "done")
    if part == "returns":
        row["returns"][-1] += 1e-9
    elif part == "training":
        row["train/entropy_loss"][0] += 1.0
    elif part == "spec":
        row["spec"] = row["spec"].replace('"gamma": 0.99', '"gamma": 0.98')
    else:
        metadata = metadata.replace(b"of no run", b"").replace(b'"left_out": [', b'"left_out": ["x", ')
    changed = pa.Table.from_pylist(rows, schema=table.schema.remove_metadata())
    parquet.write_table(changed.replace_schema_metadata({b"srl": metadata}), tmp_path / "a.parquet")
    outcome = srl("report", tmp_path / "a.parquet")
    assert outcome.status == 2
    assert "a.parquet: damaged, its content differs from its checksum" in outcome.err


def test_rewritten_equal_content_passes_checksum(archive, tmp_path):
    table = parquet.read_table(archive)
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=5, compression="snappy")
    assert len(read_archive(tmp_path / "a.parquet").runs) == table.num_rows


def test_archive_of_earlier_version_without_checksum_is_read(archive, tmp_path):
    rewrite(archive, tmp_path / "old.parquet", lambda rows: rows)
    assert b"sha256" not in parquet.read_schema(tmp_path / "old.parquet").metadata[b"srl"]
    assert len(read_archive(tmp_path / "old.parquet").runs) == len(read_archive(archive).runs)


def test_flipped_bits_never_change_results(archive, tmp_path):
    content, expected = archive.read_bytes(), [run.score for run in read_archive(archive).runs]
    generator = np.random.default_rng(0)
    refused = 0
    for place in generator.integers(len(content), size=40).tolist():
        changed = bytearray(content)
        changed[place] ^= 1 << int(generator.integers(8))
        (tmp_path / "a.parquet").write_bytes(changed)
        try:
            scores = [run.score for run in read_archive(tmp_path / "a.parquet").runs]
        except UserError:
            refused += 1
        else:
            np.testing.assert_array_equal(scores, expected)
    assert refused > 20


def edit(key, change):
    """Change a column of the first finished row of PPO; texts of JSON are loaded and dumped."""

    def changed(rows):
        row = next(row for row in rows if row["name"] == "ppo" and row["state"] == "done")
        if key in ("spec", "status", "versions"):
            value = change(json.loads(row[key]))
            row[key] = None if value is None else json.dumps(value)
        else:
            row[key] = change(row[key])
        return rows

    return changed


def test_unknown_keys_of_newer_archive_separate_columns(archive, tmp_path):
    rewrite(archive, tmp_path / "new.parquet", edit("spec", lambda spec: spec | {"new_key": 0}))
    runs = read_archive(tmp_path / "new.parquet").runs
    (changed,) = [run for run in runs if run.unknown]
    assert changed.unknown == {"new_key": 0}
    assert "PPO (new_key=0)" in {cell.column for cell in group(runs)}


@pytest.mark.parametrize(
    ("key", "change", "says"),
    [
        ("spec", lambda spec: spec | {"noise": "later"}, "key noise: "),
        ("spec", lambda spec: spec | {"algo": "tppo"}, "There is no algorithm 'tppo'"),
        ("algorithm", lambda algo: "tppo", "There is no algorithm 'tppo'"),
        ("state", lambda state: "asleep", "unknown state 'asleep'"),
        ("status", lambda status: status | {"state": "asleep"}, "key state: "),
        ("status", lambda status: status | {"timesteps": "many"}, "key timesteps: "),
    ],
    ids=["noise", "algorithm in spec", "algorithm", "state", "state in status", "number in status"],
)
def test_run_that_this_version_cannot_read_is_left_out(key, change, says, archive, tmp_path):
    rewrite(archive, tmp_path / "new.parquet", edit(key, change))
    read = read_archive(tmp_path / "new.parquet")
    n_runs = len(read_archive(archive).runs)
    assert len(read.runs) == n_runs - 1
    line = read.left_out[-1]
    assert line.startswith("Acrobot-v1/ppo/flip-0.1/seed-0: left out, ")
    assert says in line


def short_curve(rows):
    row = next(row for row in rows if row["train/entropy_loss"])
    row["train/entropy_loss"].pop()
    return rows


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (edit("versions", lambda versions: [1]), "is not a dict"),
        (edit("run", lambda run: None), "run is None"),
        (edit("spec", lambda spec: None), "without a spec"),
        (short_curve, "train/entropy_loss"),
        (lambda rows: [*rows, rows[3]], "several rows of a run"),
    ],
    ids=["versions", "no path", "no spec", "short curve", "duplicate"],
)
def test_edited_archive_is_named_in_error(change, says, archive, tmp_path):
    rewrite(archive, tmp_path / "edited.parquet", change)
    outcome = srl("report", tmp_path / "edited.parquet")
    assert outcome.status == 2
    assert "edited.parquet: not an archive of results" in outcome.err
    assert says in outcome.err
    assert outcome.err.count("\n") == 1


def test_names_that_are_not_utf_8_are_escaped(tmp_path):
    folder = os.fsdecode(b"odd\xff")
    run = lay_down(tmp_path / "runs", [[1.0, 2.0]], at=folder)
    (run.path / EVALUATIONS).write_bytes(b"PK")
    versions = json.loads((run.path / "versions.json").read_text()) | {"command": folder}
    (run.path / "versions.json").write_text(json.dumps(versions))
    outcome = srl("report", tmp_path / "runs", "--format", "archive", "--out", tmp_path)
    assert outcome.status == 0, outcome.err
    read, found = (read_scores(tmp_path / name) for name in ("runs.parquet", "runs"))
    assert read.source.versions(read.runs[0]) == found.source.versions(found.runs[0])
    assert read.left_out == [line.replace("\udcff", "\\udcff") for line in found.left_out]


def test_unknown_field_of_status_is_ignored(archive, tmp_path):
    rewrite(archive, tmp_path / "new.parquet", edit("status", lambda status: status | {"new": 1}))
    new, known = (read_archive(file).runs for file in (tmp_path / "new.parquet", archive))
    assert [run.status for run in new] == [run.status for run in known]


def test_archive_without_a_readable_run_is_named_in_error(archive, tmp_path):
    rewrite(archive, tmp_path / "empty.parquet", lambda rows: [])
    outcome = srl("report", tmp_path / "empty.parquet")
    assert outcome.status == 2
    assert "empty.parquet contains no runs" in outcome.err


def test_file_that_is_neither_folder_nor_archive_is_named_in_error(tmp_path):
    (tmp_path / "table.csv").write_text("a,b\n")
    outcome = srl("report", tmp_path / "table.csv")
    assert outcome.status == 2
    assert "neither a folder nor an archive" in outcome.err


def test_missing_pyarrow_is_named_in_error(archive, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for words in (
        [archive],
        [archive.parent, "--format", "archive"],
        [archive.parent, "--format", "parquet"],
    ):
        ended = srl("report", *words, "--out", tmp_path / "out")
        assert ended.status == 2
        assert "the package pyarrow: pip install 'symmetric-rl[report]'" in ended.err
    assert not (tmp_path / "out").exists()
