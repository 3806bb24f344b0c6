"""Publish runs on the Hugging Face Hub, and download them.

A repository has the layout of ``huggingface_sb3``, and the run directory:

| file | content |
| --- | --- |
| ``README.md`` | the model card |
| ``ALGO-ENV.zip``, ``vec_normalize.pkl`` | the model and its statistics |
| ``results.json`` | the last evaluation, as in ``huggingface_sb3.package_to_hub`` |
| ``replay.mp4`` | a video, if there is one |
| ``run/`` | the other files of the run directory, except those that name the machine |
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml

from srl.config.resolve import of_algorithm
from srl.config.spec import RunSpec
from srl.errors import UserError
from srl.rundir.directory import RunDirectory
from srl.rundir.files import check_writable
from srl.rundir.names import (
    BEST_MODEL,
    BEST_VECNORMALIZE,
    EVALUATIONS,
    FINAL_STATE,
    MODEL,
    MONITOR,
    PROGRESS,
    SPEC,
    STATUS,
    VECNORMALIZE,
    VERSIONS,
    growing_logs,
)

RUN, CARD, RESULTS, VIDEO, NORMALIZE = "run", "README.md", "results.json", "replay.mp4", "vec_normalize.pkl"
#: The class that loads a model, by the family of its algorithm.
CLASSES = {"a2c": "SA2C", "ppo": "SPPO"}


def model_name(spec: RunSpec) -> str:
    """Return a model's name, as ``huggingface_sb3.ModelName``."""
    return f"{spec.algo}-{spec.env.replace('/', '-').replace(':', '-')}"


def check_repo(repo: str) -> None:
    """Check a repository's name.

    :raises UserError: If it is not OWNER/NAME.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError:
        repo = ""
    if repo.count("/") != 1:
        raise UserError("REPO must be OWNER/NAME on the Hugging Face Hub, for example me/sppo-CartPole-v1.")


def finished_run(path: Path) -> tuple[RunDirectory, RunSpec]:
    """Return a finished run of SPPO, SA2C or a baseline, and its spec.

    :raises UserError: If there is none, or its results are damaged.
    """
    directory = RunDirectory(path)
    spec = directory.read_spec()
    if spec is None:
        raise UserError(f"{path}: there is no run.")
    if spec.algorithm.family not in CLASSES:
        label = spec.algorithm.label
        raise UserError(f"{path}: only runs of SPPO, SA2C and their baselines can be published, not {label}.")
    damage = directory.damage()
    if damage:
        raise UserError(damage[0])
    status = directory.read_status()
    if status is None or not directory.is_finished():
        raise UserError(f"{path}: the run is not finished ({status.state if status else 'no status'}).")
    return directory, spec


def package(path: Path, repo: str, out: Path, video: Path | None = None) -> None:
    """Write the files of a repository to a folder.

    :param path: The folder of a finished run.
    :param repo: The repository's name, for the card.
    :param out: An empty folder.
    :param video: An MP4 file of the agent.
    :raises UserError: If the run is not finished.
    """
    directory, spec = finished_run(path)
    status = directory.read_status()
    assert status is not None
    run = out / RUN
    (run / MONITOR).mkdir(parents=True)
    shutil.copyfile(path / MODEL, out / f"{model_name(spec)}.zip")
    if (path / VECNORMALIZE).is_file():
        shutil.copyfile(path / VECNORMALIZE, out / NORMALIZE)
    monitors = [file for file in growing_logs(path) if file.parent.name == MONITOR]
    for file in (*(path / name for name in (SPEC, VERSIONS, EVALUATIONS, PROGRESS)), *monitors):
        if file.is_file():
            shutil.copyfile(file, run / file.relative_to(path))
    # The names of TensorBoard's files contain the machine's name
    left_out = {BEST_MODEL, BEST_VECNORMALIZE, FINAL_STATE}
    sealed = {
        name: seal for name, seal in status.files.items() if "tfevents" not in name and name not in left_out
    }
    RunDirectory(run).write_status(replace(status, host="", pid=0, boot="", notes=(), files=sealed))
    if video is not None:
        shutil.copyfile(video, out / VIDEO)
    evaluations = directory.read_evaluations()
    returns = evaluations["results"][-1]
    results = {
        "mean_reward": float(returns.mean()),
        "std_reward": float(returns.std()),
        "is_deterministic": spec.eval_deterministic,
        "n_eval_episodes": len(returns),
        "eval_datetime": datetime.fromtimestamp(status.ended, timezone.utc).isoformat(),
    }
    (out / RESULTS).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    versions = directory.read_versions() or {}
    (out / CARD).write_text(model_card(spec, repo, results, versions, video is not None), encoding="utf-8")


def model_card(
    spec: RunSpec, repo: str, results: dict[str, Any], versions: dict[str, Any], has_video: bool
) -> str:
    """Return the model card of a run: metadata, scores, usage, command, hyperparameters."""
    from huggingface_hub import EvalResult, ModelCardData

    label = spec.algorithm.label
    score = f"{results['mean_reward']:.2f} +/- {results['std_reward']:.2f}"
    data = ModelCardData(
        library_name="stable-baselines3",
        tags=[
            spec.env,
            "deep-reinforcement-learning",
            "reinforcement-learning",
            "stable-baselines3",
            "symmetric-rl",
        ],
        model_name=label,
        eval_results=[
            EvalResult(
                task_type="reinforcement-learning",
                task_name="reinforcement-learning",
                dataset_type=spec.env,
                dataset_name=spec.env,
                metric_type="mean_reward",
                metric_name="mean_reward",
                metric_value=score,
            )
        ],
    )
    values = spec.hyperparams.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
    hyperparams = yaml.safe_dump(of_algorithm(spec.algorithm, values), sort_keys=False)
    cls = CLASSES[spec.algorithm.family]
    packages = ", ".join(
        f"{name} {version}" for name, version in (versions.get("packages") or {}).items() if version
    )
    how = "deterministic" if results["is_deterministic"] else "sampled"
    rows = {
        "Environment": spec.env,
        "Algorithm": label,
        "Training steps": f"{spec.n_timesteps:,}",
        "Reward noise in training": spec.noise,
        "Seed": spec.seed,
        "Mean return": f"{score} over {results['n_eval_episodes']} episodes, {how} actions",
    }
    if spec.bins is not None:
        rows["Discretization"] = f"{spec.bins} values per action dimension"
    if spec.env_kwargs:
        rows["Environment arguments"] = json.dumps(spec.env_kwargs)
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    video = f'\n<video controls src="{VIDEO}"></video>\n' if has_video else ""
    return f"""---
{data.to_yaml()}
---

# {label} agent playing {spec.env}

Trained with symmetric-rl, which adds symmetric losses to Stable-Baselines3's A2C and PPO.
{video}
| | |
| --- | --- |
{table}

## Usage

```bash
srl pull {repo}
```

```python
# With TRUST_REMOTE_CODE=True in the environment: loading a model executes code in it
from huggingface_sb3 import load_from_hub
from srl import {cls}

model = {cls}.load(load_from_hub("{repo}", "{model_name(spec)}.zip"))
```

## Training

```bash
{versions.get("command") or f"srl train --algo {spec.algo} --env {spec.env} --seed {spec.seed}"}
```

Packages: {packages or "not recorded"}.

## Hyperparameters

Values that differ from Stable-Baselines3's defaults:

```yaml
{hyperparams}```
"""


@contextmanager
def hub_errors(repo: str) -> Iterator[None]:
    """A context that turns errors of the Hub into user errors.

    :raises UserError: If the repository does not exist, or the user has no access to it.
    """
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    try:
        yield
    except LocalTokenNotFoundError:
        raise UserError("There is no login to the Hugging Face Hub. Run `hf auth login`.") from None
    except HfHubHTTPError as error:
        code = error.response.status_code if error.response is not None else 0
        text = (error.server_message or str(error)).splitlines()
        if code in (400, 401, 403, 404):
            raise UserError(f"{repo}: the Hub rejected this ({code}): {text[0] if text else ''}") from None
        raise OSError(0, f"the Hub answered {code}: {text[0] if text else ''}", repo) from None


def push(path: Path, repo: str, *, video: Path | None = None, private: bool = False) -> str:
    """Publish a finished run.

    :param path: Its folder.
    :param repo: OWNER/NAME; a new repository is created.
    :param video: An MP4 file of the agent.
    :param private: Whether a new repository is private.
    :return: The repository's address.
    :raises UserError: If the run is not finished, there is no login, or the Hub rejects the upload.
    """
    from huggingface_hub import HfApi, get_token

    check_repo(repo)
    finished_run(path)
    if get_token() is None:
        raise UserError("There is no login to the Hugging Face Hub. Run `hf auth login`, or set HF_TOKEN.")
    with tempfile.TemporaryDirectory() as folder, hub_errors(repo):
        package(path, repo, Path(folder), video)
        api = HfApi()
        url = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload a run of symmetric-rl")
    return str(url)


def pull(repo: str, out: Path, *, revision: str | None = None) -> RunSpec:
    """Download a run into a run directory. Nothing in it is imported or unpickled.

    :param repo: OWNER/NAME.
    :param out: The run's folder, which must not exist.
    :param revision: A branch, tag or commit; None for the latest.
    :return: The run.
    :raises UserError: If there is no run in the repository, or it is damaged.
    """
    from huggingface_hub import snapshot_download

    check_repo(repo)
    if out.exists():
        raise UserError(f"{out} exists. Name another folder with --out.")
    check_writable(out)
    with tempfile.TemporaryDirectory() as temporary:
        with hub_errors(repo):
            snapshot_download(
                repo, revision=revision, allow_patterns=[f"{RUN}/*", "*.zip", NORMALIZE], local_dir=temporary
            )
        downloaded = Path(temporary)
        run = downloaded / RUN
        spec = RunDirectory(run).read_spec()
        if spec is None:
            raise UserError(f"{repo} contains no run of symmetric-rl. Load its model with huggingface_sb3.")
        names = (SPEC, STATUS, VERSIONS, EVALUATIONS, PROGRESS)
        files = {run / name: name for name in names}
        files |= {file: file.relative_to(run).as_posix() for file in growing_logs(run)}
        files[downloaded / f"{model_name(spec)}.zip"] = MODEL
        files[downloaded / NORMALIZE] = VECNORMALIZE
        complete = downloaded / "complete"
        (complete / MONITOR).mkdir(parents=True)
        for file, name in files.items():
            if file.is_file() and not file.is_symlink():
                shutil.move(file, complete / name)
        if not RunDirectory(complete).is_finished():
            problems = RunDirectory(complete).damage()
            raise UserError(f"{repo}: its run is not complete{': ' + problems[0] if problems else '.'}")
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(complete, out)
    return spec
