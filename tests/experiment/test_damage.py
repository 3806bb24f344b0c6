"""Whatever happens to a file of a run: it is found and named, and never makes a wrong number.

The run goes on from an older checkpoint or is made again, and ends with the bytes that it would have had.
"""

import json
import os
import shutil
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest

from srl import SPPO
from srl.errors import UserError
from srl.experiment.checkpoint import checkpoint_steps, read_checkpoint
from srl.experiment.engines import Ended, execute
from srl.experiment.execution import Persistence, run_sweep
from srl.experiment.run import train_run
from srl.experiment.spec import RunSpec
from srl.experiment.store import RunDirectory
from srl.experiment.sweep import make_plan, write_plan
from srl.population.train import train_population
from srl.population.update import Updater
from srl.report.curves import learning_curve, training_curves
from srl.report.scores import read_scores
from tests.experiment.small_runs import SMALL_WORDS, contents, small_spec, srl
from tests.experiment.test_resume import interrupt_at, outcome, troubles


def emptied(file):
    os.truncate(file, 0)


def halved(file):
    os.truncate(file, file.stat().st_size // 2)


def shortened(file):
    os.truncate(file, max(file.stat().st_size - 1, 0))


def garbled(file):
    file.write_bytes(np.random.default_rng(0).bytes(file.stat().st_size or 100))


def flipped(file):
    """One bit in the middle."""
    content = bytearray(file.read_bytes() or b"\0")
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def removed(file):
    file.unlink()


def folder(file):
    file.unlink()
    file.mkdir()


DAMAGES = [emptied, halved, shortened, garbled, flipped, removed, folder]


@dataclass(frozen=True)
class Sweep:
    """Two runs that differ in the seed; it is the first that is damaged."""

    specs: list[RunSpec]
    population: int | str

    def run(self, root):
        """Run what is to do, in this process; returns why runs failed."""
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
    """An engine that does each task at once, in this process."""

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
    normalised = {"noise": "gaussian:0.1", "overrides": {"normalize": True}}
    return {
        "alone": Sweep(
            [small_spec(seed=seed, n_timesteps=n_timesteps, **normalised) for seed in (0, 1)], "off"
        ),
        "stacked": Sweep([small_spec(seed=seed, n_timesteps=n_timesteps) for seed in (0, 1)], 2),
    }


FINISHED, UNFINISHED = sweeps(64), sweeps(160)

#: What the numbers of a finished run, or what it is, can be read from: its status keeps their digests.
SEALED = [
    "spec.json", "versions.json", "monitor/0.monitor.csv", "progress.csv", "events.out.tfevents.*",
    "evaluations.npz", "model.zip",
]  # fmt: skip
#: Nothing is read from these.
FOR_INFORMATION = ["output.log", "run.lock"]
FILES = {
    "alone": ["status.json", *SEALED, "vecnormalize.pkl", *FOR_INFORMATION],
    "stacked": ["status.json", *SEALED, *FOR_INFORMATION],
}
CASES = [(kind, name) for kind, names in FILES.items() for name in names]
#: A newline at the end of JSON, which its checksum is not of.
NOTHING_LOST = ("status.json", shortened)
#: Whoever puts a folder in the place of one of these has to take it away again.
BY_HAND = [
    "spec.json", "status.json", "versions.json", "error.txt", "evaluations.npz", "progress.csv", "run.lock",
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Sweeps with all their runs done, in folders by their names."""
    parent = tmp_path_factory.mktemp("finished")
    for kind, sweep in FINISHED.items():
        assert sweep.run(parent / kind) == {}
        for path in sweep.folders(parent / kind):
            (path / "output.log").write_text("Printed by a library.\n")
    return parent


@pytest.fixture
def copied(finished, tmp_path):
    """Copies a sweep: gives its folder, that of the run to damage, and that of the other run."""

    def copy(kind):
        root = shutil.copytree(finished / kind, tmp_path / "sweep")
        return root, *FINISHED[kind].folders(root)

    return copy


def only(run, name):
    (file,) = run.glob(name)
    return file


def test_all_files_of_a_finished_run_are_among_those_that_are_damaged_here(finished):
    for kind, names in FILES.items():
        for run in FINISHED[kind].folders(finished / kind):
            there = {str(file.relative_to(run)) for file in run.rglob("*") if file.is_file()}
            assert there == {str(only(run, name).relative_to(run)) for name in names}


# Reports


@dataclass
class Shown:
    """What a report shows of finished runs, by the labels that it shows it under."""

    scores: dict
    learning: dict
    training: dict
    lines: list[str]

    def names(self, run, root, file):
        """Whether a line says of this file what is wrong with it, or that its run is not there or done."""
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
            curves, notes = training_curves(cell, root)
            shown.training[label] = {name: plain(curve) for name, curve in curves.items()}
            shown.lines += notes
    return shown


def plain(curve):
    # As text, in which one NaN is equal to another
    return repr([curve.steps.tolist(), curve.mean.tolist(), curve.half_width.tolist(), curve.n_seeds])


@pytest.fixture(scope="module")
def right(finished, tmp_path_factory):
    """What there is to show of each sweep: with the first run, and without it."""
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
    """Each number is as it was, or what it would be without the run; and then that is said."""
    whole, without = right
    shown = show(root)
    changed = [part for part in PARTS if getattr(shown, part) != getattr(whole, part)]
    for part in changed:
        assert getattr(shown, part) == getattr(without, part)
    assert not changed or shown.names(run, root, file), shown.lines
    return changed


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_report_has_no_number_of_a_damaged_file(kind, name, damage, copied, right):
    root, run, _ = copied(kind)
    file = only(run, name)
    damage(file)
    changed = assert_right_or_named(right[kind], run, root, file)
    if name in ("evaluations.npz", "spec.json", "status.json") and (name, damage) != NOTHING_LOST:
        assert changed == list(PARTS)
    elif name == "progress.csv":
        assert changed == ["training"]
    else:
        assert changed == []


@pytest.mark.parametrize("name", ["spec.json", "status.json", "evaluations.npz", "progress.csv"])
def test_report_has_no_number_of_a_file_in_which_any_bit_is_wrong(name, copied, right):
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
    assert n_noticed >= 39  # all but the newline at the end


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"seed": 0', '"seed": 1'),
        ('"n_timesteps": 64', '"n_timesteps": 65'),
        ('"gamma": 0.99', '"gamma": 0.98'),
    ],
    ids=["seed", "n_timesteps", "gamma"],
)
def test_report_names_a_spec_that_became_another_one(old, new, copied, right):
    root, run, _ = copied("alone")
    text = (run / "spec.json").read_text()
    assert text.count(old) == 1
    (run / "spec.json").write_text(text.replace(old, new))
    assert_right_or_named(right["alone"], run, root, run / "spec.json")
    shown = srl("status", root)
    assert "1 damaged" in shown.out
    assert "spec.json: damaged: not what the run left" in " ".join(shown.out.split())


@pytest.mark.parametrize("name", FILES["alone"])
def test_exported_evaluations_are_those_of_whole_files(name, copied, finished, tmp_path):
    root, run, _ = copied("alone")
    garbled(only(run, name))
    rows = []
    for place, folder_ in (("whole", finished / "alone"), ("damaged", root)):
        ended = srl("report", folder_, "--format", "json", "--out", tmp_path / place)
        assert (ended.status, ended.err) == (0, "")
        exported = json.loads((tmp_path / place / "evaluations.json").read_text())
        rows.append([row for row in exported if row["state"] == "done"])
    whole, damaged = rows
    if damaged != whole:
        assert damaged == [row for row in whole if row["seed"] == 1]
        assert name in ended.out


def test_page_and_tables_say_which_file_is_damaged(copied, tmp_path):
    root, *runs = copied("alone")
    damaged = dict(zip(("evaluations.npz", "progress.csv"), runs, strict=True))
    for name, run in damaged.items():
        flipped(run / name)
    ended = srl("report", root, "--out", tmp_path / "report", "--reps", 100)
    assert (ended.status, ended.err) == (0, "")
    for written in ("report.html", "table.md"):
        lines = (tmp_path / "report" / written).read_text().splitlines()
        for name, run in damaged.items():
            assert any(str(run.relative_to(root)) in line and name in line for line in lines)


# Finished runs


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_sweep_finds_and_names_damage_to_a_finished_run(kind, name, damage, copied):
    root, run, other = copied(kind)
    file = only(run, name)
    damage(file)
    before = contents(root)
    plan = make_plan(FINISHED[kind].specs, root, population=FINISHED[kind].population)
    assert contents(root) == before
    if name in FOR_INFORMATION or (name, damage) == NOTHING_LOST:
        assert (plan.to_do, plan.damaged) == ([], [])
    else:
        assert [job.path for job in plan.to_do] == [run]
        assert [job.path for job in plan.done] == [other]
        assert any(str(file) in line for line in plan.damaged)


@pytest.mark.parametrize(
    ("kind", "name", "damage"),
    [
        (kind, name, damage)
        for kind, name in CASES
        if name not in FOR_INFORMATION
        for damage in ((flipped, removed, folder) if kind == "alone" else (removed,))
    ],
)
def test_damaged_finished_run_is_made_again_with_the_same_bytes(kind, name, damage, copied, finished):
    root, run, other = copied(kind)
    file = only(run, name)
    damage(file)
    undamaged = contents(other)
    sweep = FINISHED[kind]
    failures = sweep.run(root)
    by_hand = damage is folder and name in ("spec.json", "status.json", "versions.json")
    if by_hand:
        assert list(failures) == [sweep.specs[0].path]
        assert name in failures[sweep.specs[0].path]
        file.rmdir()
        failures = sweep.run(root)
    assert failures == {}
    whole, _ = sweep.folders(finished / kind)
    assert outcome(run) == outcome(whole)
    assert (run / "spec.json").read_bytes() == (whole / "spec.json").read_bytes()
    assert contents(other) == undamaged
    directory = RunDirectory(run)
    assert by_hand or any(str(file) in note for note in directory.read_status().notes)
    assert directory.damage() == []
    assert show(root).scores == show(finished / kind).scores


@pytest.mark.parametrize("kind", FINISHED)
def test_run_that_cannot_be_made_again_is_not_taken_for_done(kind, copied):
    root, run, _ = copied(kind)
    folder(run / "spec.json")
    assert list(FINISHED[kind].run(root)) == [FINISHED[kind].specs[0].path]


@pytest.mark.parametrize(
    ("old", "new"), [('"seed": 0', '"seed": 1'), ('"gamma": 0.99', '"gamma": 0.98')], ids=["seed", "gamma"]
)
def test_finished_run_whose_spec_became_another_one_is_made_again(old, new, copied, finished):
    # Its status has the digest of the spec, so that this is not a run of another experiment
    root, run, _ = copied("alone")
    text = (run / "spec.json").read_text()
    (run / "spec.json").write_text(text.replace(old, new))
    assert FINISHED["alone"].run(root) == {}
    assert outcome(run) == outcome(FINISHED["alone"].folders(finished / "alone")[0])


def test_command_says_what_is_damaged_and_what_becomes_of_it(copied):
    root, run, _ = copied("stacked")
    flipped(run / "model.zip")
    words = ["sweep", "discrete_srl", "--envs", "CartPole-v1", "--algos", "sppo", "--noise", "none"]
    words += ["--seeds", "0:2", "--timesteps", "64", "--device", "cpu", "--population", "2", *SMALL_WORDS]
    ended = srl(*words, "--out", root, "--dry-run")
    assert (ended.status, ended.err) == (0, "")
    assert "Done already: 1. To do: 1" in ended.out
    line = f"{run / 'model.zip'}: damaged: not what the run left. The run is made again."
    assert line in ended.out


# Unfinished runs

LATEST, OLDER = "checkpoints/128.npz", "checkpoints/96.npz"
FILES_UNFINISHED = [
    LATEST, OLDER, "spec.json", "status.json", "versions.json", "monitor/0.monitor.csv", "progress.csv",
    "events.out.tfevents.*", "evaluations.npz", "error.txt", "output.log", "run.lock",
]  # fmt: skip
#: Nothing of these is needed to go on from the latest checkpoint.
NOT_NEEDED = [OLDER, "error.txt", "output.log", "run.lock"]
#: What need not be noticed.
UNNOTICED = {
    # Nothing is left that tells of it; the run is the same without it
    (LATEST, removed),
    ("status.json", removed),
    # Written anew, whatever it said
    ("evaluations.npz", removed),
    ("versions.json", removed),
    ("versions.json", flipped),
    # The newline at its end
    ("spec.json", shortened),
    ("status.json", shortened),
    ("versions.json", shortened),
    # Cut off after the checkpoint, from where it is logged again
    ("monitor/0.monitor.csv", shortened),
    ("events.out.tfevents.*", shortened),
    ("progress.csv", shortened),
}


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Sweeps whose runs were interrupted after two checkpoints, and the same done without that."""
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


def test_all_files_of_an_unfinished_run_are_among_those_that_are_damaged_here(begun):
    for kind, sweep in UNFINISHED.items():
        run, _ = sweep.folders(begun / kind)
        there = {str(file.relative_to(run)) for file in run.rglob("*") if file.is_file()}
        assert there == {str(only(run, name).relative_to(run)) for name in FILES_UNFINISHED}


def unfinished_cases():
    """Half of a file, and random bytes instead of one, are tried in test_resume.py for a run alone."""
    for name in FILES_UNFINISHED:
        for damage in (removed, folder) if name in NOT_NEEDED else (shortened, flipped, removed, folder):
            yield "alone", name, damage
        for damage in () if name in NOT_NEEDED else (halved, removed):
            yield "stacked", name, damage


@pytest.mark.parametrize(("kind", "name", "damage"), list(unfinished_cases()))
def test_damaged_unfinished_run_ends_with_the_same_bytes(kind, name, damage, begun, tmp_path):
    sweep = UNFINISHED[kind]
    root = shutil.copytree(begun / kind, tmp_path / "sweep")
    run, other = sweep.folders(root)
    file = only(run, name)
    damage(file)
    failures = sweep.run(root)
    by_hand = damage is folder and name in BY_HAND
    if by_hand:
        assert list(failures) == [sweep.specs[0].path]
        assert name in failures[sweep.specs[0].path]
        file.rmdir()
        failures = sweep.run(root)
    assert failures == {}
    for path, whole in zip((run, other), sweep.folders(begun / "whole" / kind), strict=True):
        assert outcome(path) == outcome(whole)
        assert RunDirectory(path).damage() == []
    notes = troubles(RunDirectory(run).read_status())
    # What no note needs to name is named at the most; what was taken away by hand was named before
    whether = all if by_hand or name in NOT_NEEDED or (name, damage) in UNNOTICED else any
    assert whether(str(file) in note for note in notes)


def test_unfinished_run_whose_spec_became_another_one_goes_on(begun, tmp_path):
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


@pytest.mark.parametrize(
    ("name", "resumed_from"),
    [(LATEST, 96), ("monitor/0.monitor.csv", 0), ("progress.csv", 128), ("status.json", 128)],
)
@pytest.mark.parametrize("kind", UNFINISHED)
def test_damaged_run_goes_on_from_the_latest_checkpoint_that_it_can(
    kind, name, resumed_from, begun, tmp_path
):
    sweep = UNFINISHED[kind]
    root = shutil.copytree(begun / kind, tmp_path / "sweep")
    run, _ = sweep.folders(root)
    garbled(run / name)
    assert sweep.run(root) == {}
    assert RunDirectory(run).read_status().resumed_from == resumed_from


def test_unfinished_run_has_no_score_whatever_is_damaged(begun, tmp_path):
    _, other = UNFINISHED["stacked"].folders(tmp_path)
    for name in FILES_UNFINISHED:
        for damage in DAMAGES:
            root = shutil.copytree(begun / "stacked", tmp_path / name.replace("/", "-") / damage.__name__)
            run, other = UNFINISHED["stacked"].folders(root)
            damage(only(run, name))
            scores = read_scores(root)
            assert all(cell.values == [] for cell in scores.cells)
            assert any(other.name in line for line in scores.left_out)


def test_checkpoint_in_which_any_bit_is_wrong_is_the_same_or_named(begun, tmp_path):
    run, _ = UNFINISHED["stacked"].folders(begun / "stacked")
    whole = (run / LATEST).read_bytes()
    expected = repr(read_checkpoint(run, 128))
    (tmp_path / "checkpoints").mkdir()
    generator = np.random.default_rng(0)
    # Anywhere, and in the directory of the archive at its end, which has no checksum
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


@pytest.mark.parametrize("damage", [emptied, halved, garbled, folder])
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
    with pytest.raises(UserError, match=r"sweep\.json: not the plan of a sweep: .* Remove it to go on"):
        FINISHED["alone"].run(root)
    assert {name: file for name, file in contents(root).items() if name != ".sweep.lock"} == {
        name: file for name, file in before.items() if name != ".sweep.lock"
    }
    removed(plan) if plan.is_file() else plan.rmdir()
    assert FINISHED["alone"].run(root) == {}
    assert plan.read_bytes() == original


def test_plan_in_which_any_bit_is_wrong_changes_no_number(copied, right):
    root, _, _ = copied("alone")
    plan = root / "sweep.json"
    whole = plan.read_bytes()
    generator = np.random.default_rng(0)
    for place in range(0, len(whole), 5):
        content = bytearray(whole)
        content[place] ^= 1 << generator.integers(8)
        plan.write_bytes(content)
        shown = show(root)
        for part in PARTS:
            assert getattr(shown, part) == getattr(right["alone"][0], part)
