"""Tuning: search spaces, trials that train together, and resumed studies."""

import csv
import sys
from pathlib import Path

import pytest

pytest.importorskip("optuna", reason="optuna is not installed")
import optuna

from srl.cli.options import EnvOptions, LossOptions
from srl.cli.tune import Tune, training_command
from srl.config.algorithms import ALGORITHMS, get_algorithm
from srl.config.population import population_key
from srl.config.resolve import resolve_hyperparams
from srl.config.spec import make_run_spec
from srl.rundir.directory import RunDirectory
from srl.rundir.find import find_runs
from srl.tuning.division import divide_tasks
from srl.tuning.results import trials_table
from srl.tuning.space import sampled_hyperparams, search_space
from srl.tuning.study import TuningOptions, open_storage, storage_place
from srl.tuning.tuner import Tuner
from tests.small_runs import BROKEN, SMALL, contents, small_spec, srl

WORDS = [
    *("tune", "--algo", "sppo", "--env", "CartPole-v1", "--n-timesteps", 64, "--n-evaluations", 2),
    *("--eval-episodes", 2, "--jobs", 2, "--trials-per-batch", 4, "--trials-per-shape", 2),
    *("--hyperparams", *(f"{name}={value}" for name, value in SMALL.items()), "max_grad_norm=0.5"),
]


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    """An empty working directory."""
    folder = tmp_path / "somewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def load(folder):
    """Load the study in a folder."""
    return optuna.load_study(study_name="sppo-CartPole-v1", storage=f"sqlite:///{folder / 'tune.db'}")


@pytest.mark.parametrize("name", ["ppo", "a2c", "sppo", "sa2c"])
def test_search_spaces_match_the_zoo_plus_loss_weights(name):
    zoo = pytest.importorskip("rl_zoo3.hyperparams_opt", reason="rl_zoo3 is not installed")
    from srl.config.hyperparams import PolicyOptions
    from srl.training.policy_options import policy_kwargs

    algorithm = get_algorithm(name)
    space = search_space(algorithm)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        trial = study.ask()
        theirs = zoo.HYPERPARAMS_SAMPLER[algorithm.family](trial, 1, 1, {})
        ours = sampled_hyperparams(space, trial.params)
        ours["policy_kwargs"] = policy_kwargs(PolicyOptions(**ours["policy_kwargs"]))
        assert ours == theirs
    distributions = {each.name: each.distribution for each in space}
    extra = {each: distributions.pop(each) for each in ("alpha", "beta") if each in distributions}
    assert distributions == trial.distributions
    assert set(extra) == ({"alpha", "beta"} if algorithm.symmetric else set())


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if not name.startswith("llm-")])
def test_given_hyperparameter_is_not_searched(name):
    algorithm = get_algorithm(name)
    given = {"gamma": 0.9, "n_steps": 64, "policy_kwargs": {"net_arch": [8]}}
    names = {each.target for each in search_space(algorithm)}
    left = {each.target for each in search_space(algorithm, given)}
    assert names - left == {"gamma", "n_steps", "policy_kwargs.net_arch"}


def test_trials_that_share_a_shape_form_one_population():
    for name in ("sppo", "sa2c"):
        space = search_space(get_algorithm(name))
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        distributions = {each.name: each.distribution for each in space}
        shape = study.ask(distributions).params
        keys = set()
        for _ in range(5):
            numbers = study.ask(distributions).params
            params = {each.name: (shape if each.is_shape else numbers)[each.name] for each in space}
            spec = small_spec(name, overrides=sampled_hyperparams(space, params), n_timesteps=64)
            keys.add(population_key(spec))
        assert len(keys) == 1
        assert None not in keys


@pytest.mark.parametrize("name", ["best.yml", "trials.csv", "history.png", "importances.png"])
def test_foreign_files_in_the_folder_are_not_replaced(somewhere, name):
    (somewhere / "mine").mkdir()
    (somewhere / "mine" / name).write_text("mine")
    before = contents(somewhere)
    outcome = srl(*WORDS, "--out", "mine")
    assert outcome.status == 2
    assert f"mine/{name}: not written by srl" in outcome.err
    assert contents(somewhere) == before


@pytest.mark.parametrize("text", ["mine\n", '{"level": "info"}\n', "[1]", "\n"])
def test_foreign_log_file_is_refused_as_storage(somewhere, text):
    (somewhere / "my.log").write_text(text)
    before = contents(somewhere)
    outcome = srl(*WORDS, "--storage", "my.log")
    assert outcome.status == 2
    assert outcome.err == "srl: --storage my.log: contains no study of Optuna. Name another file.\n"
    assert contents(somewhere) == before


@pytest.mark.parametrize("start", ["none", "empty", "study"])
def test_journal_of_optuna_is_accepted_as_storage(somewhere, start):
    if start == "empty":
        (somewhere / "my.log").touch()
    elif start == "study":
        optuna.create_study(study_name="other", storage=open_storage("my.log"))
    optuna.create_study(study_name="mine", storage=open_storage("my.log"))
    assert "mine" in optuna.get_all_study_names(open_storage("my.log"))


@pytest.fixture
def interrupted(monkeypatch):
    """Interrupts srl tune before the first batch is trained."""

    def train(self, batch, tell):
        raise KeyboardInterrupt

    monkeypatch.setattr(Tuner, "_train", train)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--study-name", "b"],
            "d belongs to the study 'a' in tune.db, not to 'b' in tune.db. Name another --out.",
        ),
        (
            ["--study-name", "a", "--storage", "sqlite:///x.db"],
            "d belongs to the study 'a' in tune.db, not to 'a' in {here}/x.db. Name another --out.",
        ),
        (
            ["--study-name", "a", "--seed", 1],
            "seed is 0 there and 1 here. Name another --study-name and another --out.",
        ),
    ],
)
def test_folder_of_another_study_is_refused_before_sampling(somewhere, interrupted, words, message):
    assert srl(*WORDS, "--out", "d", "--study-name", "a").status == 130
    before = contents(somewhere)
    outcome = srl(*WORDS, "--out", "d", *words)
    assert outcome.status == 2
    assert message.format(here=somewhere) in outcome.err
    assert contents(somewhere) == before


def test_folder_of_a_study_is_recognized_when_moved_and_by_its_storage(somewhere, interrupted):
    assert srl(*WORDS, "--out", "d").status == 130
    (somewhere / "d").rename(somewhere / "e")
    assert srl(*WORDS, "--out", "e").status == 130
    assert srl(*WORDS, "--out", "e", "--storage", "sqlite:///e/tune.db").status == 130


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("sqlite:///d/tune.db", "tune.db"),
        ("sqlite:////x/tune.db?timeout=9", "/x/tune.db"),
        ("/x/my.log", "/x/my.log"),
        ("postgresql://me:secret@host:5432/studies?sslmode=require", "postgresql://host:5432/studies"),
    ],
)
def test_place_of_a_storage_has_no_login(somewhere, name, place):
    assert storage_place(name, somewhere / "d") == place


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("sweep.json", "{}", "d contains a sweep. Name another --out."),
        ("tune.lock", "mine", "d/tune.lock: not written by srl tune. Name another --out."),
    ],
)
def test_folder_of_something_else_is_refused(somewhere, name, text, message):
    (somewhere / "d").mkdir()
    (somewhere / "d" / name).write_text(text)
    before = contents(somewhere)
    outcome = srl(*WORDS, "--out", "d")
    assert outcome.status == 2
    assert message in outcome.err
    assert contents(somewhere) == before


@pytest.mark.parametrize("storage", ["sqlite:///shared.db", "shared.log"])
def test_processes_that_sample_at_once_share_the_number_of_trials(somewhere, storage):
    def tuner(name, n_trials):
        options = TuningOptions(n_trials=n_trials, batch=4, share=2, n_evaluations=1)
        tuner = Tuner(small_spec(), options, somewhere / name, "race", storage=storage)
        tuner.study = tuner._open_study(open_storage(storage))
        return tuner

    one, two = tuner("one", 4), tuner("two", 4)
    ask, batches = one.study.ask, []

    def ask_after_the_other(distributions):
        if not batches:
            batches.append(two._sample())
        return ask(distributions)

    one.study.ask = ask_after_the_other
    batches.append(one._sample())
    assert [len(batch) for batch in batches] == [4, 0]
    assert [trial.state.name for trial in one.study.trials] == ["RUNNING"] * 4 + ["FAIL"]
    assert len(trials_table(one.study, one.space).splitlines()) == 1 + 4
    # The surplus trial does not count when the study is extended
    assert [each.trial.number for each in tuner("one", 6)._sample()] == [5, 6]
    assert tuner("one", 6)._sample() == []


def test_process_without_a_trial_left_succeeds_while_others_train(somewhere, interrupted):
    words = [*WORDS, "--storage", f"sqlite:///{somewhere / 'shared.db'}", "--n-trials", 2]
    assert srl(*words, "--out", "one").status == 130
    outcome = srl(*words, "--out", "two")
    assert outcome.status == 0, outcome.err
    assert "No trial is complete yet; 2 trials of other processes are running." in outcome.out


@pytest.mark.slow
def test_tune_writes_best_hyperparameters_and_resumes_with_the_same_command(somewhere):
    outcome = srl(*WORDS, "--n-trials", 5)
    assert outcome.status == 0, outcome.err
    root = somewhere / "runs" / "tune" / "sppo-CartPole-v1"
    study = load(root)
    trials = study.trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 5
    specs = {run.read_spec().variant: run.read_spec() for run in find_runs(root)}
    assert sorted(specs) == [f"trial-{number}" for number in range(5)]
    assert all(spec.stacked for spec in specs.values())
    for first, second in ((0, 1), (2, 3)):
        assert population_key(specs[f"trial-{first}"]) == population_key(specs[f"trial-{second}"])
    for trial in trials:
        spec = specs[f"trial-{trial.number}"]
        assert spec.hyperparams.alpha == trial.params["alpha"]
        assert spec.hyperparams.gamma == 1 - trial.params["one_minus_gamma"]
        assert (spec.hyperparams.n_steps, spec.hyperparams.max_grad_norm) == (32, 0.5)
        results = RunDirectory(root / spec.path).read_evaluations()["results"]
        assert trial.value == results[1].mean()
        assert list(trial.intermediate_values.values()) == list(results.mean(axis=1)[:2])

    best = root / "best.yml"
    algorithm = get_algorithm("sppo")
    hyperparams, n_timesteps, _ = resolve_hyperparams(
        algorithm, "CartPole-v1", overrides={}, profile="controlled", path=best
    )
    assert n_timesteps == 64
    assert hyperparams == specs[f"trial-{study.best_trial.number}"].hyperparams
    rows = list(csv.DictReader((root / "trials.csv").open()))
    assert [float(row["value"]) for row in rows] == [trial.value for trial in trials]
    assert {"history.png", "slices.png", "intermediate.png"} <= {file.name for file in root.glob("*.png")}

    again = srl(*WORDS, "--n-trials", 6)
    assert again.status == 0, again.err
    assert [trial.params for trial in load(root).trials[:5]] == [trial.params for trial in trials]
    assert len(load(root).trials) == 6
    refused = srl(*WORDS, "--n-trials", 7, "--seed", 1)
    assert refused.status == 2
    assert "with other settings: seed is 0 there and 1 here" in refused.err
    best.write_text("# mine\n")
    edited = srl(*WORDS, "--n-trials", 7)
    assert edited.status == 2
    assert "best.yml: not written by srl, or changed since" in edited.err


@pytest.mark.slow
def test_printed_command_has_the_environment_of_the_trials():
    environment = EnvOptions(
        gym_packages=("mypkg",), env_kwargs=("g=9.81",), max_episode_steps=50, env_wrapper=("mypkg:Wrap",)
    )
    options = Tune("dsppo", "Pendulum-v1", LossOptions(bins=5), environment, noise="flip:0.1")
    wrappers = {"env_wrapper": environment.wrappers()}
    spec, _ = make_run_spec("dsppo", "Pendulum-v1", 0, bins=5, overrides=wrappers)
    assert training_command(options, spec, Path("a b.yml")) == (
        "srl train --algo dsppo --env Pendulum-v1 --hyperparams-file 'a b.yml' --gym-packages mypkg "
        "--env-kwargs g=9.81 --max-episode-steps 50 --bins 5 --noise flip:0.1 --trust-config"
    )
    options = Tune("sppo", "CartPole-v1", LossOptions(), EnvOptions())
    spec, _ = make_run_spec("sppo", "CartPole-v1", 0)
    assert training_command(options, spec, Path("best.yml")) == (
        "srl train --algo sppo --env CartPole-v1 --hyperparams-file best.yml"
    )


@pytest.mark.slow
def test_interrupted_study_resumes_with_identical_trials(somewhere, monkeypatch):
    assert srl(*WORDS, "--n-trials", 6, "--out", "whole").status == 0
    train = Tuner._train

    def interrupted(self, batch, tell):
        if batch[0].trial.number == 4:
            raise KeyboardInterrupt
        train(self, batch, tell)

    monkeypatch.setattr(Tuner, "_train", interrupted)
    assert srl(*WORDS, "--n-trials", 6, "--out", "parts").status == 130
    assert [trial.state.name for trial in load(somewhere / "parts").trials[4:]] == ["RUNNING"] * 2
    monkeypatch.undo()
    monkeypatch.chdir(somewhere)
    assert srl(*WORDS, "--n-trials", 6, "--out", "parts").status == 0
    whole, parts = (load(somewhere / name).trials for name in ("whole", "parts"))
    assert [(trial.params, trial.value) for trial in parts] == [(t.params, t.value) for t in whole]


@pytest.mark.slow
def test_processes_share_a_study_without_touching_each_others_trials(somewhere):
    storage = ["--storage", f"sqlite:///{somewhere / 'shared.db'}"]
    assert srl(*WORDS, *storage, "--n-trials", 2, "--out", "one").status == 0
    study = optuna.load_study(study_name="sppo-CartPole-v1", storage=storage[1])
    study.ask()  # a trial of another process
    outcome = srl(*WORDS, *storage, "--n-trials", 4, "--out", "two")
    assert outcome.status == 0, outcome.err
    states = [trial.state.name for trial in study.trials]
    assert states == ["COMPLETE", "COMPLETE", "RUNNING", "COMPLETE"]
    assert [run.read_spec().variant for run in find_runs(somewhere / "two")] == ["trial-3"]
    assert study.trials[3].params["alpha"] != study.trials[0].params["alpha"]


@pytest.mark.slow
def test_pruned_trial_stops_early_without_affecting_others(somewhere):
    words = [str(word) for word in WORDS]
    words[words.index("--n-timesteps") + 1] = "12000"
    words[words.index("--n-evaluations") + 1] = "12"
    outcome = srl(*words, "--n-trials", 4, "--pruner", "halving")
    assert outcome.status == 0, outcome.err
    root = somewhere / "runs" / "tune" / "sppo-CartPole-v1"
    pruned = [trial for trial in load(root).trials if trial.state.name == "PRUNED"]
    assert 1 <= len(pruned) <= 3
    early = 0
    for trial in pruned:
        assert len(trial.intermediate_values) < 12
        status = RunDirectory(next(root.glob(f"*/trial-{trial.number}/*/*"))).read_status()
        assert status.attempts == 1
        if status.state == "failed":
            assert status.reason.startswith("pruned: its mean return was")
            assert status.timesteps < 12000
            early += 1
    assert early >= 1
    assert "pruned after evaluation" in outcome.out


@pytest.mark.slow
def test_trial_with_non_finite_rewards_is_pruned(somewhere):
    words = [str(word) for word in WORDS]
    words[words.index("CartPole-v1")] = f"{BROKEN}NanReward-v0"
    outcome = srl(*words, "--n-trials", 1, "--study-name", "broken", "--out", "broken")
    assert outcome.status == 1, outcome.err
    assert "no trial is complete" in outcome.err
    study = optuna.load_study(study_name="broken", storage=f"sqlite:///{somewhere / 'broken' / 'tune.db'}")
    assert [trial.state.name for trial in study.trials] == ["PRUNED"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--n-trials", 0], "--n-trials 0: must be 1 or above."),
        (["--sampler", "tqe"], "--sampler tqe: must be one of tpe, random. Did you mean tpe?"),
        (["--pruner", "mean"], "--pruner mean: must be one of median, halving, hyperband, none."),
        (["--n-startup-trials", -1], "--n-startup-trials -1: must be 0 or above."),
        (["--storage", "tune.db"], "--storage tune.db: must be a database such as sqlite:///tune.db"),
        (["--storage", "oracle9://x"], "--storage oracle9://x: cannot be opened"),
        (["--study-name", ""], "--study-name '': a name is needed."),
        (["--compile", "yes"], "--compile yes: must be auto, on, off."),
        (["--jobs", 0], "--jobs 0: at least one run at a time is needed."),
    ],
)
def test_mistake_exits_2_and_writes_nothing(somewhere, words, message):
    given = [str(word) for word in WORDS]
    for option in words[::2]:
        if option in given:
            index = given.index(option)
            del given[index : index + 2]
    outcome = srl(*given, *words)
    assert outcome.status == 2
    assert message in " ".join((outcome.err + outcome.out).split())
    assert list(somewhere.iterdir()) == []


def test_algorithm_of_another_package_is_rejected(somewhere):
    outcome = srl("tune", "--algo", "stable_baselines3:DQN", "--env", "CartPole-v1")
    assert outcome.status == 2
    assert outcome.err == (
        "srl: srl tune has no search space for stable_baselines3:DQN. It tunes a2c, ppo, sa2c and sppo, also "
        "with discretized actions.\n"
    )
    assert list(somewhere.iterdir()) == []


def test_too_many_evaluations_for_the_steps_are_rejected(somewhere):
    given = [str(word) for word in WORDS]
    given[given.index("--n-evaluations") + 1] = "65"
    outcome = srl(*given)
    assert outcome.status == 2
    assert "--n-evaluations 65: 64 training steps with 1 environments are too few." in outcome.err
    assert list(somewhere.iterdir()) == []


def test_missing_package_is_named_with_its_pip_command(monkeypatch, somewhere):
    monkeypatch.setitem(sys.modules, "optuna", None)
    for name in [name for name in sys.modules if name.startswith("srl.tuning")]:
        monkeypatch.delitem(sys.modules, name)
    outcome = srl(*WORDS)
    assert outcome.status == 2
    assert outcome.err == "srl: srl tune needs the package optuna: pip install 'symmetric-rl[tune]'.\n"


def test_long_populations_are_divided_among_idle_processes():
    from srl.sweep.engines import Job, Task

    def task(n_runs, **overrides):
        specs = [small_spec(seed=seed, overrides=overrides) for seed in range(n_runs)]
        return Task(tuple(Job(spec, spec.path) for spec in specs))

    long, short = task(8, n_epochs=20, batch_size=4), task(8)
    assert [len(part.jobs) for part in divide_tasks([short, long], 2)] == [4, 4, 8]
    assert [len(part.jobs) for part in divide_tasks([short, task(8)], 2)] == [8, 8]
    assert [len(part.jobs) for part in divide_tasks([long], 1)] == [8]
    wide = task(8, policy_kwargs={"net_arch": [512, 512]})
    assert [len(part.jobs) for part in divide_tasks([short, wide], 2)] == [4, 4, 8]
