"""Runs of language models: run directory, resuming, status and report."""

from __future__ import annotations

import json

import numpy as np
import pytest
from rich.console import Console
from safetensors.torch import load_file

import srl.llm.run as run
from srl.cli.train import Train, train
from srl.errors import UserError
from srl.llm.run import load_trained, train_llm_run
from srl.llm.spec import make_llm_spec
from srl.llm.tasks import load_task
from srl.report.samples import read_samples
from srl.report.status import print_status
from srl.rundir.directory import RunDirectory
from srl.training.attempt import RunFailed
from srl.training.load import load_run
from tests.llm.project import make_project


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    make_project(folder)
    return folder


def spec_and_task(project, algo="sppo", **options):
    spec = make_llm_spec(str(project / "tiny.yml"), algo, 0, device="cpu", **options)
    return spec, load_task(spec, project / "files")


@pytest.fixture(scope="module")
def finished(project, tmp_path_factory):
    """A finished run and its spec."""
    spec, task = spec_and_task(project, noise="flip:0.2")
    root = tmp_path_factory.mktemp("runs")
    train_llm_run(spec, root / spec.path, task, command="srl llm train tiny.yml")
    return root / spec.path, spec


def test_run_directory_is_complete(finished):
    path, spec = finished
    directory = RunDirectory(path)
    assert directory.is_finished()
    assert directory.read_spec() == spec
    assert directory.damage() + directory.minor_damage() == []
    evaluations = directory.read_evaluations()
    assert evaluations["timesteps"].tolist() == [0, 16, 32]
    assert evaluations["results"].shape == evaluations["ep_lengths"].shape == (3, 6)
    status = directory.read_status()
    assert "model/model.safetensors" in status.files
    assert directory.read_versions()["packages"]["transformers"]
    header, *rows = (path / "progress.csv").read_text().splitlines()
    assert {"rollout/reward", "rollout/noisy_reward", "eval/perplexity", "eval/kl"} <= set(header.split(","))
    assert len(rows) == 3 + 2
    assert len(read_samples(path)) == 6
    assert train_llm_run(spec, path, None) == status  # the finished run is skipped


def test_status_and_report_read_the_run(finished, tmp_path):
    pytest.importorskip("matplotlib")
    from srl.report.report import make_report
    from srl.report.write import write_report

    path, _ = finished
    console = Console(width=200, record=True)
    print_status(path, console)
    assert "LLM-SPPO" in (text := console.export_text())
    assert "1 done" in text
    report = make_report(path, reps=100)
    (row,) = report.tables[0].rows
    assert (row.env, row.noise, row.n_timesteps) == ("tiny", "flip:0.2", 32)
    write_report(report, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "Texts before and after training" in page
    assert read_samples(path)[0].after in page
    figures = {file.parent.name for file in tmp_path.glob("figures/language_model/*/*.png")}
    assert figures == {"reward", "kl", "perplexity"}


def test_commands_for_environments_reject_the_run(finished):
    path, _ = finished
    with pytest.raises(UserError, match="language model"):
        load_run(path)
    with pytest.raises(UserError, match="language model"):
        train(Train(path, extend_to=64), "")


def test_archive_contains_samples_and_training_logs(finished, tmp_path):
    pytest.importorskip("pyarrow")
    from srl.report.archive import read_archive, write_archive
    from srl.report.scores import read_scores

    scores = read_scores(finished[0])
    write_archive(scores.runs, scores.source, tmp_path / "a.parquet", left_out=[], compare=[])
    archive = read_archive(tmp_path / "a.parquet")
    assert archive.samples(archive.runs[0]) == read_samples(finished[0])
    assert archive.training(archive.runs[0]).keys() == scores.source.training(scores.runs[0]).keys()


def test_damaged_model_is_detected_and_run_retrained(finished, project, tmp_path):
    import shutil

    path, spec = finished
    copy = tmp_path / "copy"
    shutil.copytree(path, copy)
    weights = copy / "model" / "model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(before[:-1] + b"x")
    (damage,) = RunDirectory(copy).damage()
    assert "model.safetensors: damaged" in damage
    train_llm_run(spec, copy, load_task(spec, project / "files"))
    assert RunDirectory(copy).is_finished()
    assert weights.read_bytes() == before
    assert (copy / "damaged-1" / "model" / "model.safetensors").exists()


def test_interrupted_run_resumes_with_identical_results(finished, project, tmp_path, monkeypatch):
    path, spec = finished
    original = run.SPPOTrainer.iterate

    def stops(self):
        if self.iteration == 1:
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(run.SPPOTrainer, "iterate", stops)
    with pytest.raises(KeyboardInterrupt):
        train_llm_run(spec, tmp_path / "run", load_task(spec, project / "files"), checkpoint_every=0)
    monkeypatch.setattr(run.SPPOTrainer, "iterate", original)
    status = train_llm_run(spec, tmp_path / "run", load_task(spec, project / "files"), checkpoint_every=0)
    assert (status.resumed_from, status.attempts) == (16, 2)
    for name in ("model/model.safetensors", "progress.csv", "samples.json"):
        assert (tmp_path / "run" / name).read_bytes() == (path / name).read_bytes(), name
    arrays = [RunDirectory(folder).read_evaluations() for folder in (path, tmp_path / "run")]
    assert all(np.array_equal(arrays[0][name], arrays[1][name]) for name in arrays[0])
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_invalid_reward_during_training_fails_the_run(project, tmp_path):
    spec, task = spec_and_task(project)
    task.reward = lambda prompts, completions, **columns: [float("inf")] * len(completions)
    with pytest.raises(RunFailed, match=r"returned inf for the response .* \(at step 0\)"):
        train_llm_run(spec, tmp_path / "run", task)
    assert RunDirectory(tmp_path / "run").read_status().state == "failed"


def test_invalid_reward_fails_a_grpo_run(project, tmp_path):
    pytest.importorskip("trl")
    spec, task = spec_and_task(project, "grpo")

    def reward(prompts, completions, response):  # no other argument of TRL
        # The batches of training are larger than those of evaluations
        return [float("nan") if len(completions) > 6 and not i else 0.5 for i in range(len(completions))]

    task.reward = reward
    with pytest.raises(RunFailed, match="The reward function reward returned nan for the response"):
        train_llm_run(spec, tmp_path / "run", task)


def test_lora_adapter_is_saved(project, tmp_path):
    overrides = {"model": {"path": "owner/policy", "lora": {"r": 2, "target_modules": ["c_attn"]}}}
    spec, task = spec_and_task(project, overrides=overrides, n_timesteps=16)
    train_llm_run(spec, tmp_path / "run", task)
    assert (tmp_path / "run" / "model" / "adapter_config.json").is_file()


def test_trained_model_generates_reproducible_text(finished, project):
    path, spec = finished
    sampler = load_trained(spec, path, load_task(spec, project / "files"))
    assert sampler.respond("the movie was", 2, seed=1) == sampler.respond("the movie was", 2, seed=1)
    assert len(sampler.respond("the movie was", 3)) == 3


def test_columns_with_names_of_reward_arguments_are_left_out(project, tmp_path):
    texts = project / "files" / "texts"
    (project / "files" / "columns").mkdir()
    for file in texts.iterdir():
        lines = [json.loads(line) | {"prompts": "a", "completions": "b"} for line in file.open()]
        (project / "files" / "columns" / file.name).write_text("\n".join(map(json.dumps, lines)))
    spec, task = spec_and_task(project, overrides={"data": {"path": "columns", "response": "response"}})
    train_llm_run(spec, tmp_path / "run", task)
    pytest.importorskip("trl")
    from srl.llm.grpo_run import _prompts

    assert set(_prompts(task, 16).column_names) == {"prompt", "response"}


def test_grpo_run_trains_and_is_recorded(project, tmp_path):
    pytest.importorskip("trl")
    spec, task = spec_and_task(project, "sgrpo", noise="flip:0.5")
    train_llm_run(spec, tmp_path / "run", task)
    directory = RunDirectory(tmp_path / "run")
    assert directory.is_finished()
    assert directory.read_evaluations()["timesteps"].tolist() == [0, 16, 32]
    header, *rows = (tmp_path / "run" / "progress.csv").read_text().splitlines()
    assert len(rows) == 3 + 2
    assert "rollout/noisy_reward" in header
    saved = load_file(tmp_path / "run" / "model" / "model.safetensors")
    first = load_file(project / "files" / "policy" / "model.safetensors")
    assert any(not value.equal(first[name]) for name, value in saved.items())
    assert json.loads((tmp_path / "run" / "samples.json").read_text())[0]["before"]
