"""Damage to any file of a run is detected and reported, never changes a score, and loses no result.

Spec, evaluations and model decide whether a run counts as finished. If one of these is damaged, the run is
retrained with bitwise-identical results, and its files are kept. Damage to other files is only reported.
"""

import json
import os
import shutil
from dataclasses import dataclass
from functools import partial
from zipfile import ZipFile, is_zipfile

import numpy as np
import pytest

from srl import SPPO
from srl.config.spec import RunSpec
from srl.errors import UserError
from srl.report.curves import learning_curve, training_curves
from srl.report.scores import read_scores
from srl.report.source import Folders
from srl.rundir.checkpoints import checkpoint_steps
from srl.rundir.directory import RunDirectory
from srl.rundir.status import digest_of
from srl.sweep.engines import Ended, execute
from srl.sweep.execution import Persistence, run_sweep
from srl.sweep.plan import make_plan, write_plan
from srl.training.checkpoint import read_checkpoint
from srl.training.run import train_run
from srl.training.stacked.train import train_population
from srl.training.stacked.update import Updater
from tests.small_runs import SMALL_WORDS, contents, small_spec, srl
from tests.training.test_resume import interrupt_at, outcome, troubles


def emptied(file):
    os.truncate(file, 0)


def halved(file):
    os.truncate(file, file.stat().st_size // 2)


def shortened(file):
    os.truncate(file, max(file.stat().st_size - 1, 0))


def garbled(file):
    file.write_bytes(np.random.default_rng(0).bytes(file.stat().st_size or 100))


def flipped(file):
    """Flip a bit in the middle; of a zip file, in its largest member, since some header bits are unused."""
    content = bytearray(file.read_bytes() or b"\0")
    place = len(content) // 2
    if is_zipfile(file):
        with ZipFile(file) as opened:
            largest = max(opened.infolist(), key=lambda part: part.compress_size)
        place = largest.header_offset + 30 + len(largest.filename) + largest.compress_size // 2
    content[place] ^= 1
    file.write_bytes(content)


def removed(file):
    file.unlink()


def folder(file):
    file.unlink()
    file.mkdir()


def appended(file):
    file.write_bytes(file.read_bytes() + b"\n")


@dataclass(frozen=True)
class Sweep:
    """Two runs that differ in the seed; the first one is damaged."""

    specs: list[RunSpec]
    population: int | str

    def run(self, root):
        """Train pending runs in this process; return the reasons of failures."""
        plan = make_plan(self.specs, root, population=self.population)
        write_plan(plan)
        return run_sweep(
            plan,
            Here(),
            "srl sweep",
            tell=lambda progress: None,
            say=lambda line: None,
            persistence=Persistence(retries=0),
        )

    def folders(self, root):
        return [root / spec.path for spec in self.specs]


class Here:
    """An engine that executes each task immediately in this process."""

    room = 1

    def __init__(self):
        self._ended = []

    def submit(self, orders):
        for order in orders:
            execute(order)
            self._ended.append(Ended(order.task))

    def wait(self, seconds):
        ended, self._ended = self._ended, []
        return ended

    def end(self, task):
        raise AssertionError("nothing hangs here")

    def close(self):
        pass


def sweeps(n_timesteps):
    normalized = {"noise": "gaussian:0.1", "overrides": {"normalize": True}}
    return {
        "alone": Sweep(
            [small_spec(seed=seed, n_timesteps=n_timesteps, **normalized) for seed in (0, 1)], "off"
        ),
        "stacked": Sweep([small_spec(seed=seed, n_timesteps=n_timesteps) for seed in (0, 1)], 2),
    }


FINISHED, UNFINISHED = sweeps(64), sweeps(160)

#: Files whose damage requires retraining, and the other files of a finished run.
RESULTS = ["spec.json", "evaluations.npz", "model.zip", "vecnormalize.pkl"]
OTHERS = [
    "status.json", "versions.json", "monitor/0.monitor.csv", "progress.csv", "events.out.tfevents.*",
    "output.log", "run.lock", "best_model.zip", "best_vecnormalize.pkl", "final_state.npz",
]  # fmt: skip
#: Files of runs with normalization.
NORMALIZED = ("vecnormalize.pkl", "best_vecnormalize.pkl")
#: Files without recorded digests.
NOT_SEALED = ["output.log", "run.lock"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Finished sweeps in folders by name."""
    parent = tmp_path_factory.mktemp("finished")
    for kind, sweep in FINISHED.items():
        assert sweep.run(parent / kind) == {}
        for path in sweep.folders(parent / kind):
            (path / "output.log").write_text("Printed by a library.\n")
    return parent


@pytest.fixture
def copied(finished, tmp_path):
    """Copy a sweep; return its folder, the run to damage and the other run."""

    def copy(kind):
        root = shutil.copytree(finished / kind, tmp_path / "sweep")
        return root, *FINISHED[kind].folders(root)

    return copy


def only(run, name):
    (file,) = run.glob(name)
    return file


def test_every_file_of_a_finished_run_is_tested_for_damage(finished):
    for kind in FINISHED:
        for run in FINISHED[kind].folders(finished / kind):
            there = {str(file.relative_to(run)) for file in run.rglob("*") if file.is_file()}
            names = [name for name in [*RESULTS, *OTHERS] if kind != "stacked" or name not in NORMALIZED]
            assert there == {str(only(run, name).relative_to(run)) for name in names}


# Reports


@dataclass
class Shown:
    """Content of a report on finished runs, by label."""

    scores: dict
    learning: dict
    training: dict
    lines: list[str]

    def names(self, run, root, file):
        """Return whether a line names the damage of a file, or its run as missing or interrupted."""
        path = run.relative_to(root)
        unfinished = [f"{path.parent}: {state}: {path.name}." for state in ("missing", "interrupted")]
        return any(
            line in unfinished or (str(path) in line and file.name in line and "the same run" not in line)
            for line in self.lines
        )


def show(root):
    scores = read_scores(root)
    shown = Shown({}, {}, {}, list(scores.left_out))
    for cell in scores.cells:
        if cell.values:
            label = (cell.env, cell.noise, cell.n_timesteps, cell.column)
            shown.scores[label] = repr([cell.done, cell.mean, cell.standard_error])
            shown.learning[label] = plain(learning_curve(cell))
            curves, notes = training_curves(cell, Folders(root).training)
            shown.training[label] = {name: plain(curve) for name, curve in curves.items()}
            shown.lines += notes
    return shown


def plain(curve):
    # As text, in which NaN equals NaN
    return repr(
        [curve.steps.tolist(), curve.mean.tolist(), curve.low.tolist(), curve.high.tolist(), curve.n_seeds]
    )


@pytest.fixture(scope="module")
def right(finished, tmp_path_factory):
    """Content of a report on each sweep with the first run and without it."""
    shown = {}
    for kind, sweep in FINISHED.items():
        root = shutil.copytree(finished / kind, tmp_path_factory.mktemp("without") / kind)
        shutil.rmtree(sweep.folders(root)[0])
        shown[kind] = show(finished / kind), show(root)
        for ours, theirs in ((getattr(one, part) for one in shown[kind]) for part in PARTS):
            assert ours.keys() == theirs.keys()
            assert ours != theirs
    return shown


PARTS = ("scores", "learning", "training")


def assert_right_or_named(right, run, root, file):
    """Check that values are unchanged, or exclude the run with a note that names the file."""
    whole, without = right
    shown = show(root)
    changed = [part for part in PARTS if getattr(shown, part) != getattr(whole, part)]
    for part in changed:
        assert getattr(shown, part) == getattr(without, part)
    assert not changed or shown.names(run, root, file), shown.lines
    return changed


@pytest.mark.parametrize("damage", [emptied, halved, shortened, garbled, flipped, removed, folder])
def test_report_excludes_run_with_damaged_evaluations(damage, copied, right):
    root, run, _ = copied("alone")
    damage(run / "evaluations.npz")
    changed = assert_right_or_named(right["alone"], run, root, run / "evaluations.npz")
    assert changed == list(PARTS)


@pytest.mark.parametrize("name", [*RESULTS, *OTHERS])
def test_report_excludes_only_values_that_need_the_damaged_file(name, copied, right):
    root, run, _ = copied("alone")
    flipped(only(run, name))
    changed = assert_right_or_named(right["alone"], run, root, only(run, name))
    if name in ("spec.json", "evaluations.npz"):
        assert changed == list(PARTS)
    else:
        assert changed == (["training"] if name == "progress.csv" else [])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["spec.json", "status.json", "evaluations.npz", "progress.csv"])
def test_report_has_no_wrong_value_after_any_bit_flip(name, copied, right):
    root, run, _ = copied("alone")
    file = only(run, name)
    whole = file.read_bytes()
    generator = np.random.default_rng(0)
    n_noticed = 0
    for place in generator.choice(len(whole), 40, replace=False):
        content = bytearray(whole)
        content[place] ^= 1 << generator.integers(8)
        file.write_bytes(content)
        n_noticed += bool(assert_right_or_named(right["alone"], run, root, file))
    if name == "status.json":
        assert n_noticed == 0
    elif name != "spec.json":  # whose whitespace is irrelevant
        assert n_noticed == 40


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"seed": 0', '"seed": 1'),
        ('"n_timesteps": 64', '"n_timesteps": 65'),
        ('"gamma": 0.99', '"gamma": 0.98'),
    ],
    ids=["seed", "n_timesteps", "gamma"],
)
def test_report_names_a_modified_spec(old, new, copied, right):
    root, run, _ = copied("alone")
    text = (run / "spec.json").read_text()
    assert text.count(old) == 1
    (run / "spec.json").write_text(text.replace(old, new))
    assert_right_or_named(right["alone"], run, root, run / "spec.json")
    shown = srl("status", root)
    assert "1 damaged" in shown.out
    assert "spec.json: damaged: changed since the run finished" in " ".join(shown.out.split())


def test_export_contains_only_undamaged_evaluations(copied, finished, tmp_path):
    root, run, _ = copied("alone")
    garbled(run / "evaluations.npz")
    rows = []
    for place, folder_ in (("whole", finished / "alone"), ("damaged", root)):
        ended = srl("report", folder_, "--format", "json", "--out", tmp_path / place)
        assert (ended.status, ended.err) == (0, "")
        rows.append(json.loads((tmp_path / place / "evaluations.json").read_text()))
    whole, damaged = rows
    assert damaged == [row for row in whole if row["seed"] == 1]
    assert "evaluations.npz: damaged" in ended.out


def test_page_and_tables_name_damaged_files(copied, tmp_path):
    root, run, other = copied("alone")
    damaged = [run / "evaluations.npz", other / "progress.csv", only(other, "events*"), other / "model.zip"]
    for file in damaged:
        appended(file)
    ended = srl("report", root, "--out", tmp_path / "report", "--reps", 100)
    assert (ended.status, ended.err) == (0, "")
    for written in ("report.html", "table.md"):
        lines = (tmp_path / "report" / written).read_text().splitlines()
        for file in damaged:
            assert any(str(file.parent.relative_to(root)) in line and file.name in line for line in lines)


# Finished runs


def trained_again(kind, root):
    """Return the plan of a sweep and the runs that it retrains; check that planning writes nothing."""
    before = contents(root)
    plan = make_plan(FINISHED[kind].specs, root, population=FINISHED[kind].population)
    assert contents(root) == before
    return plan, [job.path for job in plan.to_do]


@pytest.mark.parametrize("name", RESULTS)
def test_run_with_damaged_results_is_retrained_and_old_files_are_kept(name, copied, finished):
    root, run, other = copied("alone")
    file = only(run, name)
    flipped(file)
    before, undamaged = contents(run), contents(other)
    plan, paths = trained_again("alone", root)
    assert paths == [run]
    assert any(str(file) in line for line in plan.damaged)
    assert FINISHED["alone"].run(root) == {}
    whole, _ = FINISHED["alone"].folders(finished / "alone")
    assert outcome(run) == outcome(whole)
    assert (run / "spec.json").read_bytes() == (whole / "spec.json").read_bytes()
    assert contents(other) == undamaged
    directory = RunDirectory(run)
    assert any(str(file) in note for note in directory.read_status().notes)
    assert directory.damage() == directory.minor_damage() == []
    assert show(root).scores == show(finished / "alone").scores
    kept = contents(run / "damaged-1")
    for name in before.keys() - set(NOT_SEALED):
        assert kept[name] == before[name]


@pytest.mark.parametrize("name", ["evaluations.npz", "model.zip"])
def test_run_without_a_result_is_retrained_in_its_population(name, copied, finished):
    root, run, other = copied("stacked")
    removed(run / name)
    undamaged = contents(other)
    assert FINISHED["stacked"].run(root) == {}
    assert outcome(run) == outcome(FINISHED["stacked"].folders(finished / "stacked")[0])
    assert contents(other) == undamaged
    assert (run / "damaged-1" / "progress.csv").exists()


@pytest.mark.parametrize("damage", [flipped, removed])
def test_files_of_repeated_damage_are_kept_separately_and_ignored(damage, copied, finished):
    root, run, _ = copied("alone")
    for _ in range(2):
        damage(run / "model.zip")
        assert FINISHED["alone"].run(root) == {}
    assert {file.name for file in run.glob("damaged-*")} == {"damaged-1", "damaged-2"}
    assert len(read_scores(root).runs) == 2
    assert read_scores(root).left_out == []
    assert ": 2 runs\n2 done\n" in srl("status", root).out
    assert "nothing to remove" in srl("clean", root).out
    # A kept folder can be reported as a run
    assert "evaluations" in srl("report", run / "damaged-1", "--format", "json", "--out", root / "out").out


@pytest.mark.parametrize("damage", [appended, flipped, garbled, removed])
@pytest.mark.parametrize("name", [name for name in OTHERS if name not in ("status.json", *NOT_SEALED)])
def test_run_with_damaged_logs_is_kept_and_reported(name, damage, copied, right):
    root, run, _ = copied("alone")
    file = only(run, name)
    damage(file)
    before = contents(run)
    plan, paths = trained_again("alone", root)
    assert (paths, plan.damaged) == ([], [])
    (line,) = plan.minor_damage
    assert str(file) in line
    assert FINISHED["alone"].run(root) == {}
    train_run(FINISHED["alone"].specs[0], run)
    assert contents(run) == before
    shown = srl("status", root).out
    assert ": 2 runs\n2 done\n" in shown
    # The status checks only the size of large files
    is_noticed = file.exists() is False or file.stat().st_size <= 65536 or damage is appended
    assert (f"{file.relative_to(root)}: " in shown.partition("damaged, results whole")[2]) == is_noticed
    assert show(root).scores == right["alone"][0].scores


@pytest.mark.parametrize("damage", [flipped, emptied, removed])
@pytest.mark.parametrize("kind", FINISHED)
def test_run_with_damaged_status_is_kept_and_its_status_restored(kind, damage, copied, right):
    root, run, _ = copied(kind)
    damage(run / "status.json")
    _, paths = trained_again(kind, root)
    assert paths == []
    assert ": 2 runs\n2 done\n" in (shown := srl("status", root).out)
    assert "status.json" in shown
    assert show(root).scores == right[kind][0].scores
    before = contents(run)
    RunDirectory(run).restore_status(
        FINISHED[kind].specs[0].model_copy(update={"stacked": kind == "stacked"})
    )
    after = contents(run)
    assert {name for name in after if after[name] != before.get(name)} == {"status.json"}
    status = RunDirectory(run).read_status()
    assert (status.state, status.timesteps, set(status.files)) == (
        "done",
        64,
        {name for name in after if name not in ("status.json", *NOT_SEALED)},
    )
    assert "restored" in status.notes[-1]
    assert RunDirectory(run).minor_damage() == []


@pytest.mark.parametrize("name", ["model.zip", "evaluations.npz", "vecnormalize.pkl"])
@pytest.mark.parametrize("damage", [halved, removed])
def test_run_with_damaged_status_and_results_is_retrained(name, damage, copied, finished):
    root, run, _ = copied("alone")
    halved(run / "status.json")
    damage(run / name)
    assert "1 done, 1 damaged" in srl("status", root).out
    assert [cell.done.keys() for cell in read_scores(root).cells] == [{1}]
    assert FINISHED["alone"].run(root) == {}
    assert outcome(run) == outcome(FINISHED["alone"].folders(finished / "alone")[0])
    # A run without a model and status is not recognized as finished
    assert (run / "damaged-1").exists() == ((name, damage) != ("model.zip", removed))


def test_unfinished_run_with_lost_status_is_not_taken_for_finished(copied):
    root, run, _ = copied("alone")
    removed(run / "status.json")
    with np.load(run / "evaluations.npz") as arrays:
        earlier = {name: array[:-1] for name, array in arrays.items()}
    np.savez(run / "evaluations.npz", **earlier)
    assert trained_again("alone", root)[1] == [run]


@pytest.mark.parametrize("seal", [False, True], ids=["checksum of known fields", "checksum of all fields"])
def test_fields_of_a_newer_status_are_ignored(seal, copied, right):
    root, run, _ = copied("alone")
    values = json.loads((run / "status.json").read_text()) | {"heartbeat": {"every": 1.0}}
    if seal:
        values["checksum"] = digest_of({key: values[key] for key in values if key != "checksum"})
    (run / "status.json").write_text(json.dumps(values))
    plan, paths = trained_again("alone", root)
    assert (paths, plan.damaged, plan.minor_damage) == ([], [], [])
    assert show(root).scores == right["alone"][0].scores
    assert show(root).lines == right["alone"][0].lines
    assert "damaged" not in srl("status", root).out


@pytest.mark.parametrize("name", [*RESULTS, "status.json", "versions.json", "monitor", "progress.csv"])
def test_link_instead_of_a_file_is_named_and_kept(name, copied, tmp_path):
    root, run, _ = copied("alone")
    flipped(run / "evaluations.npz")  # so that it would be retrained
    shutil.move(run / name, tmp_path / "moved")
    (run / name).symlink_to(tmp_path / "moved")
    before = contents(tmp_path)
    with pytest.raises(UserError, match=rf"{name} is a link.* Move it away"):
        FINISHED["alone"].run(root)
    assert contents(tmp_path) == before
    assert (run / name).is_symlink()


@pytest.mark.parametrize("name", ["spec.json", "evaluations.npz", "model.zip", "versions.json", "output.log"])
def test_folder_instead_of_a_file_is_named_and_kept(name, copied):
    root, run, _ = copied("alone")
    flipped(run / "evaluations.npz")
    folder(run / name)
    (run / name / "mine.txt").write_text("mine")
    before = contents(root)
    with pytest.raises(UserError, match=rf"{name} is a folder.* Move it away"):
        FINISHED["alone"].run(root)
    assert contents(root) == before


STACKED = [
    *("sweep", "discrete_srl", "--envs", "CartPole-v1", "--algos", "sppo", "--noise", "none"),
    *("--seeds", "0:2", "--timesteps", "64", "--device", "cpu", "--population", "2", *SMALL_WORDS),
]


def test_commands_restore_a_damaged_status(copied):
    root, run, other = copied("stacked")
    halved(run / "status.json")
    removed(other / "status.json")
    ended = srl(*STACKED, "--out", root)
    assert (ended.status, ended.err) == (0, "")
    assert "Finished: 2. Pending: 0" in ended.out
    assert f"{run / 'status.json'}: damaged. Its evaluations and model are complete." in ended.out
    assert f"{other / 'status.json'}: missing. Its evaluations and model are complete." in ended.out
    assert [RunDirectory(path).read_status().state for path in (run, other)] == ["done", "done"]
    emptied(run / "status.json")
    words = ["--algo", "sppo", "--env", "CartPole-v1", "--timesteps", "64", "--device", "cpu", *SMALL_WORDS]
    ended = srl("train", *words, "--out", run)
    assert (ended.status, ended.err) == (0, "")
    assert RunDirectory(run).read_status().state == "done"


def test_dry_run_names_damage_and_its_consequences(copied):
    root, run, other = copied("stacked")
    flipped(run / "model.zip")
    appended(other / "progress.csv")
    ended = srl(*STACKED, "--out", root, "--dry-run")
    assert (ended.status, ended.err) == (0, "")
    assert "Finished: 1. Pending: 1" in ended.out
    assert f"{run / 'model.zip'}: damaged: changed since the run finished. The run is retrained." in ended.out
    line = f"{other / 'progress.csv'}: damaged: "
    assert line in ended.out
    assert "The results are not affected." in ended.out.partition(line)[2]


# Unfinished runs

LATEST, OLDER = "checkpoints/128.npz", "checkpoints/96.npz"
FILES_UNFINISHED = [
    LATEST, OLDER, "spec.json", "status.json", "versions.json", "monitor/0.monitor.csv", "progress.csv",
    "events.out.tfevents.*", "evaluations.npz", "output.log", "run.lock", "best_model.zip",
]  # fmt: skip


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Sweeps interrupted after two checkpoints, and the same sweeps without interruption."""
    parent = tmp_path_factory.mktemp("begun")
    for kind, sweep in UNFINISHED.items():
        assert sweep.run(parent / "whole" / kind) == {}
        paths = sweep.folders(parent / kind)
        if kind == "stacked":
            together = partial(train_population, sweep.specs, paths, checkpoint_every=0)
            interrupt_at(5, Updater, "update", together)
        else:
            interrupt_at(5, SPPO, "train", partial(train_run, sweep.specs[0], paths[0], checkpoint_every=0))
            shutil.copytree(sweep.folders(parent / "whole" / kind)[1], paths[1])
        (paths[0] / "output.log").write_text("Printed by a library.\n")
        assert checkpoint_steps(paths[0]) == [128, 96]
    return parent


@pytest.mark.slow
def test_every_file_of_an_unfinished_run_is_tested_for_damage(begun):
    for kind, sweep in UNFINISHED.items():
        run, _ = sweep.folders(begun / kind)
        there = {str(file.relative_to(run)) for file in run.rglob("*") if file.is_file()}
        names = [*FILES_UNFINISHED, *(["best_vecnormalize.pkl"] if kind == "alone" else [])]
        assert there == {str(only(run, name).relative_to(run)) for name in names}


@pytest.mark.parametrize(
    ("kind", "name", "damage", "resumed_from"),
    [
        ("alone", LATEST, flipped, 96),
        ("alone", OLDER, removed, 128),
        ("alone", "spec.json", flipped, 128),
        ("alone", "status.json", garbled, 128),
        ("alone", "versions.json", halved, 128),
        ("alone", "monitor/0.monitor.csv", flipped, 0),
        ("alone", "events.out.tfevents.*", removed, 0),
        ("alone", "progress.csv", garbled, 128),
        ("alone", "evaluations.npz", flipped, 128),
        ("stacked", LATEST, halved, 96),
        ("stacked", "monitor/0.monitor.csv", removed, 0),
        ("stacked", "status.json", garbled, 128),
    ],
)
def test_damaged_unfinished_run_resumes_with_identical_results(
    kind, name, damage, resumed_from, begun, tmp_path
):
    sweep = UNFINISHED[kind]
    root = shutil.copytree(begun / kind, tmp_path / "sweep")
    run, other = sweep.folders(root)
    file = only(run, name)
    damage(file)
    assert sweep.run(root) == {}
    for path, whole in zip((run, other), sweep.folders(begun / "whole" / kind), strict=True):
        assert outcome(path) == outcome(whole)
        assert RunDirectory(path).damage() == RunDirectory(path).minor_damage() == []
    status = RunDirectory(run).read_status()
    assert status.resumed_from == resumed_from
    assert any(str(file) in note for note in troubles(status)) == (name != OLDER)
    assert not (run / "damaged-1").exists()


def test_unfinished_run_with_modified_spec_resumes(begun, tmp_path):
    sweep = UNFINISHED["alone"]
    root = shutil.copytree(begun / "alone", tmp_path / "sweep")
    run, _ = sweep.folders(root)
    text = (run / "spec.json").read_text()
    (run / "spec.json").write_text(text.replace('"seed": 0', '"seed": 1'))
    assert sweep.run(root) == {}
    assert outcome(run) == outcome(sweep.folders(begun / "whole" / "alone")[0])
    status = RunDirectory(run).read_status()
    assert status.resumed_from == 128
    assert any(str(run / "spec.json") in note for note in troubles(status))


def test_unfinished_run_never_has_a_score(begun, tmp_path):
    for name in FILES_UNFINISHED:
        root = shutil.copytree(begun / "stacked", tmp_path / name.replace("/", "-"))
        run, other = UNFINISHED["stacked"].folders(root)
        flipped(only(run, name))
        scores = read_scores(root)
        assert all(cell.values == [] for cell in scores.cells)
        assert any(other.name in line for line in scores.left_out)


def test_bit_flips_in_checkpoint_are_harmless_or_detected(begun, tmp_path):
    run, _ = UNFINISHED["stacked"].folders(begun / "stacked")
    whole = (run / LATEST).read_bytes()
    expected = repr(read_checkpoint(run, 128))
    (tmp_path / "checkpoints").mkdir()
    generator = np.random.default_rng(0)
    # Random places, and the central directory at the end of the archive, which has no checksum
    places = [*generator.integers(len(whole), size=60), *range(len(whole) - 60, len(whole))]
    n_named = 0
    for place in places:
        content = bytearray(whole)
        content[place] ^= 1 << generator.integers(8)
        (tmp_path / LATEST).write_bytes(content)
        try:
            read = repr(read_checkpoint(tmp_path, 128))
        except UserError as error:
            read = str(error)
            n_named += 1
        assert read == expected or read.startswith(f"{tmp_path / LATEST}: ")
    assert n_named > 60


# The plan of a sweep


@pytest.mark.parametrize("damage", [halved, folder])
def test_damaged_plan_is_named_and_loses_nothing(damage, copied, right):
    root, run, _ = copied("alone")
    plan = root / "sweep.json"
    original = plan.read_bytes()
    damage(plan)
    flipped(run / "model.zip")
    shown = show(root)
    assert [getattr(shown, part) for part in PARTS] == [getattr(right["alone"][0], part) for part in PARTS]
    if damage is not folder:
        assert any("sweep.json: not the plan of a sweep" in line for line in shown.lines)
    before = contents(root)
    with pytest.raises(UserError, match=r"sweep\.json: not the plan of a sweep: .* Remove it to continue"):
        FINISHED["alone"].run(root)
    assert {name: file for name, file in contents(root).items() if name != ".sweep.lock"} == {
        name: file for name, file in before.items() if name != ".sweep.lock"
    }
    removed(plan) if plan.is_file() else plan.rmdir()
    assert FINISHED["alone"].run(root) == {}
    assert plan.read_bytes() == original


def test_bit_flips_in_plan_do_not_change_scores(copied, right):
    root, _, _ = copied("alone")
    plan = root / "sweep.json"
    whole = plan.read_bytes()
    generator = np.random.default_rng(0)
    for place in range(0, len(whole), 15):
        content = bytearray(whole)
        content[place] ^= 1 << generator.integers(8)
        plan.write_bytes(content)
        shown = show(root)
        for part in PARTS:
            assert getattr(shown, part) == getattr(right["alone"][0], part)
