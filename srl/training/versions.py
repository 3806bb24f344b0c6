"""What a run ran on: package versions, commit, platform."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from srl.config.spec import RunSpec

#: The packages whose versions a run records.
RECORDED_PACKAGES = (
    "symmetric-rl", "torch", "stable-baselines3", "gymnasium", "ale-py", "mujoco", "box2d", "numpy",
    "opencv-python-headless", "tensorboard", "minatar",
)  # fmt: skip


def _commit() -> str | None:
    """The commit of the checkout that srl runs from, marked if it was changed since; None outside of one."""
    root = Path(__file__).resolve().parent.parent.parent
    git = shutil.which("git")
    if git is None or not (root / ".git").exists():
        return None
    ask = [git, "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    answer = subprocess.run(ask, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None


#: Asked when this code is loaded: a sweep's processes are forks of one that loaded it at the start, and the
#: checkout may move on while they train.
COMMIT = _commit()


def checkpoint_origin(spec: RunSpec) -> dict[str, Any]:
    """What a checkpoint must have in common with the run that resumes from it: spec and versions."""
    values = spec.model_dump(mode="json", exclude={"stacked"})
    return {"spec": values, "python": platform.python_version(), "packages": package_versions()}


def package_versions() -> dict[str, str | None]:
    """The versions of what a run depends on; None for what is not installed."""
    return {name: package_version(name) for name in RECORDED_PACKAGES}


@cache
def package_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def versions(command: str = "", more: Mapping[str, str | None] | None = None) -> dict[str, Any]:
    """What a run ran on: package versions, commit, platform.

    :param command: The command that asked for it.
    :param more: Versions of other packages.
    """
    return {
        "command": command,
        "commit": COMMIT,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {**package_versions(), **(more or {})},
    }
