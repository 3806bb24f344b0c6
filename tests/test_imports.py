"""Imports follow the layers: see "How the code is organized" in CONTRIBUTING.md."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

LOAD_ALL = """
import importlib, pkgutil, sys
package = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    importlib.import_module(module.name)
found = [name for name in ("torch", "stable_baselines3", "srl.training.run") if name in sys.modules]
assert not found, f"{sys.argv[1]} imports {found}"
"""


def test_imports_follow_the_layers():
    linted = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert linted.returncode == 0, linted.stdout + linted.stderr


@pytest.mark.parametrize("package", ["srl.config", "srl.rundir", "srl.sweep", "srl.report"])
def test_package_imports_without_torch(package):
    loaded = subprocess.run([sys.executable, "-c", LOAD_ALL, package], capture_output=True, text=True)
    assert loaded.returncode == 0, loaded.stderr
