"""The packages, commit and platform that a run uses."""

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
    """The commit of the checkout that contains srl, marked if files have changed; None outside a checkout."""
    root = Path(__file__).resolve().parent.parent.parent
    git = shutil.which("git")
    if git is None or not (root / ".git").exists():
        return None
    command = [git, "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None


#: Determined at import: the processes of a sweep are forks of one that imported this module at the start, and
#: the checkout may change during training.
COMMIT = _commit()


def checkpoint_origin(spec: RunSpec) -> dict[str, Any]:
    """The spec and the versions that a checkpoint must share with the run that resumes from it."""
    values = spec.model_dump(mode="json", exclude={"stacked"})
    return {"spec": values, "python": platform.python_version(), "packages": package_versions()}


def package_versions() -> dict[str, str | None]:
    """The versions of :data:`RECORDED_PACKAGES`; None for a package that is not installed."""
    return {name: package_version(name) for name in RECORDED_PACKAGES}


@cache
def package_version(package: str) -> str | None:
    """The version of a package; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def versions(command: str = "", more: Mapping[str, str | None] | None = None) -> dict[str, Any]:
    """The record of package versions, commit and platform in a run directory.

    :param command: The command line.
    :param more: Versions of other packages.
    """
    return {
        "command": command,
        "commit": COMMIT,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {**package_versions(), **(more or {})},
    }
