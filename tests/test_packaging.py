"""The wheel, the pinned requirements, and the setup scripts."""

import ast
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from configparser import ConfigParser
from email import message_from_bytes
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted([*ROOT.glob("run_*.sh"), *ROOT.glob("scripts/*.sh"), ROOT / ".ci" / "run"])
# Import names that differ from the name of their distribution
DISTRIBUTIONS = {
    "cv2": "opencv-python-headless",
    "yaml": "pyyaml",
    "Box2D": "box2d",
    "PIL": "pillow",
    "grpc": "grpcio",
    "mlflow": "mlflow-skinny",
}


def copy_tree(folder: Path) -> Path:
    """Copy the files that packaging reads, with an additional config, and return the root of the copy."""
    for name in ("srl", "configs", "scripts", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "requirements.txt", "MANIFEST.in", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    (folder / "configs" / "sweeps").mkdir(exist_ok=True)
    (folder / "configs" / "sweeps" / "packaged.yml").write_text("a: 1\n")
    return folder


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution of a copy of the tree and the wheel built from it."""
    tree = copy_tree(tmp_path_factory.mktemp("tree"))
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(tree)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return out


@pytest.fixture(scope="module")
def wheel(distributions: Path) -> Iterator[zipfile.ZipFile]:
    with zipfile.ZipFile(next(distributions.glob("*.whl"))) as archive:
        yield archive


def read_dist_info(wheel: zipfile.ZipFile, name: str) -> bytes:
    return wheel.read(next(n for n in wheel.namelist() if n.endswith(f".dist-info/{name}")))


def test_wheel_contains_every_module_and_config(wheel):
    names = set(wheel.namelist())
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "srl").rglob("*.py")}
    configs = {f"srl/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.yml")}
    assert modules | configs | {"srl/py.typed", "srl/configs/sweeps/packaged.yml"} <= names
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"srl"}


def test_wheel_metadata_is_correct(wheel):
    metadata = message_from_bytes(read_dist_info(wheel, "METADATA"))
    version = re.search(r'__version__ = "(.+)"', (ROOT / "srl" / "__init__.py").read_text())
    assert (metadata["Name"], metadata["Version"]) == ("symmetric-rl", version[1])
    assert metadata["License-Expression"] == "MIT"
    assert {"dev", "ray", "slurm", "report", "llm", "trl"} <= set(metadata.get_all("Provides-Extra"))
    scripts = ConfigParser()
    scripts.read_string(read_dist_info(wheel, "entry_points.txt").decode())
    assert scripts["console_scripts"]["srl"] == "srl.__main__:main"


def test_source_distribution_contains_scripts_and_tests(distributions):
    with tarfile.open(next(distributions.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "requirements.txt", "scripts/setup.sh", "tests/test_packaging.py"} <= names


def test_every_imported_package_is_declared(wheel):
    metadata = message_from_bytes(read_dist_info(wheel, "METADATA"))
    declared = {canonicalize_name(Requirement(line).name) for line in metadata.get_all("Requires-Dist")}
    imported = set()
    for path in (ROOT / "srl").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(node.module.split(".")[0])
    outside = imported - set(sys.stdlib_module_names) - {"srl"}
    assert {canonicalize_name(DISTRIBUTIONS.get(name, name)) for name in outside} <= declared


def read_pins() -> list[Requirement]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines())
    return [Requirement(line) for line in lines if line]


def test_every_requirement_is_pinned():
    for pin in read_pins():
        assert [spec.operator for spec in pin.specifier] == ["=="], pin
        assert "*" not in str(pin.specifier), pin


@pytest.mark.parametrize("extra", ["", "experiments", "report"])
@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_pins_satisfy_the_bounds_of_the_wheel_on_every_python(wheel, python, extra):
    environment = {"python_version": python, "python_full_version": f"{python}.5", "extra": extra}
    active = [pin for pin in read_pins() if pin.marker is None or pin.marker.evaluate(environment)]
    pins = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in active}
    assert len(pins) == len(active), "a package is pinned twice"
    metadata = message_from_bytes(read_dist_info(wheel, "METADATA"))
    for requirement in map(Requirement, metadata.get_all("Requires-Dist")):
        if requirement.marker is None or requirement.marker.evaluate(environment):
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_executable_bash(script):
    assert script.stat().st_mode & stat.S_IXUSR
    assert script.read_text().startswith("#!/usr/bin/env bash\n")
    subprocess.run(["bash", "-n", str(script)], check=True)


# setup.sh with a fake Python that copies itself as a virtual environment and logs the calls of pip
STAND_IN = """#!/bin/sh
for last; do :; done
case "$*" in
    *"-m venv"*) echo venv >>"$CALLS"; mkdir -p "$last/bin"; cp "$0" "$last/bin/python" ;;
    *"-m ensurepip"* | *"pip --version"*) ;;
    *"-m pip install"*)
        echo "pip ${last##*/}" >>"$CALLS"
        if [ -n "$PIP_SAYS" ]; then echo "$PIP_SAYS"; exit 1; fi
        touch "${0%/*}/srl" && chmod +x "${0%/*}/srl" ;;
    *) exec "$REAL_PYTHON" "$@" ;;
esac
"""
BUILT = ["venv", "pip requirements.txt", "pip the project"]


class Checkout:
    """A folder with a space in its path in which scripts/setup.sh runs."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "the project"
        (self.root / "scripts").mkdir(parents=True)
        shutil.copy(ROOT / "scripts" / "setup.sh", self.root / "scripts")
        for name in ("setup.py", "requirements.txt"):
            (self.root / name).write_text("# a\n")
        self.python = folder / "python"
        self.write_python(STAND_IN)
        self._calls = folder / "calls"
        self.environment = {
            "PATH": os.environ["PATH"],
            "PYTHON": str(self.python),
            "CALLS": str(self._calls),
            "PIP_SAYS": "",
            # Of a virtual environment, the Python that it was made from
            "REAL_PYTHON": os.path.realpath(sys.executable),
        }

    def write_python(self, text: str) -> None:
        self.python.write_text(text)
        self.python.chmod(0o755)

    @property
    def command(self) -> list[str]:
        return [str(self.root / "scripts" / "setup.sh")]

    def set_up(self, **environment: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            self.command, env={**self.environment, **environment}, cwd="/", capture_output=True, text=True
        )

    def take_calls(self) -> list[str]:
        """Return the calls of the fake Python since the last time."""
        calls = self._calls.read_text().splitlines() if self._calls.exists() else []
        self._calls.unlink(missing_ok=True)
        return calls


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def state_of(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


def test_setup_does_nothing_when_nothing_changed(checkout):
    first = checkout.set_up()
    assert first.returncode == 0, first.stderr
    assert first.stdout == ""
    assert checkout.take_calls() == BUILT
    before = state_of(checkout.root)
    for environment in ({}, {"PYTHON": ""}):
        second = checkout.set_up(**environment)
        assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    assert checkout.take_calls() == []
    assert state_of(checkout.root) == before


@pytest.mark.slow
def test_setup_uses_the_base_python_of_a_virtual_environment(checkout, tmp_path):
    other = tmp_path / "other"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", other], check=True)
    # The project is empty, so that its installation fails; .venv is complete by then
    assert checkout.set_up(PYTHON=str(other / "bin/python"), PIP_NO_INDEX="1").returncode == 1
    home = re.search("^home = (.*)$", (checkout.root / ".venv/pyvenv.cfg").read_text(), re.MULTILINE)[1]
    assert Path(home).resolve() == Path(os.path.realpath(sys.executable)).parent


@pytest.mark.parametrize("name", ["requirements.txt", "setup.py"])
def test_setup_reinstalls_into_the_same_environment_when_pins_change(checkout, name):
    checkout.set_up()
    checkout.take_calls()
    (checkout.root / name).write_text("# b\n")
    assert checkout.set_up().returncode == 0
    assert checkout.take_calls() == BUILT[1:]
    assert checkout.set_up().stderr == ""


def test_setup_starts_over_after_an_incomplete_setup(checkout):
    failed = checkout.set_up(PIP_SAYS="[Errno 28] No space left on device")
    assert failed.returncode != 0
    assert "The disk is full" in failed.stderr
    checkout.take_calls()
    half_made = checkout.root / ".venv" / "lib"
    half_made.mkdir()
    assert checkout.set_up().returncode == 0
    assert checkout.take_calls() == BUILT
    assert not half_made.exists()


def test_setup_starts_over_when_the_checkout_was_moved(checkout):
    checkout.set_up()
    checkout.take_calls()
    checkout.root = checkout.root.rename(checkout.root.with_name("moved"))
    assert checkout.set_up().returncode == 0
    assert checkout.take_calls() == ["venv", "pip requirements.txt", "pip moved"]


def test_setup_starts_over_when_the_environment_is_broken(checkout):
    checkout.set_up()
    checkout.take_calls()
    (checkout.root / ".venv" / "bin" / "python").unlink()
    assert checkout.set_up().returncode == 0
    assert checkout.take_calls() == BUILT


def make_by_hand(venv: Path, checkout: Checkout) -> Path:
    """Create a virtual environment like a user, and return a file of the user in it."""
    (venv / "bin").mkdir(parents=True)
    shutil.copy(checkout.python, venv / "bin" / "python")
    (venv / "lib").mkdir()
    (venv / "lib" / "mine.py").write_text("years of work")
    return venv / "lib" / "mine.py"


def test_setup_installs_into_a_custom_environment_without_deleting_files(checkout):
    mine = make_by_hand(checkout.root / ".venv", checkout)
    assert checkout.set_up().returncode == 0
    assert checkout.take_calls() == BUILT[1:]
    (checkout.root / "requirements.txt").write_text("# b\n")
    assert checkout.set_up(PIP_SAYS="No space left on device").returncode != 0
    for _ in range(2):  # packages may be half installed
        refused = checkout.set_up()
        assert refused.returncode != 0
        assert ".venv cannot be used, and is left as it is" in refused.stderr
        assert "Move it away" in refused.stderr
    assert mine.read_text() == "years of work"
    (checkout.root / ".venv").rename(checkout.root / "mine")
    assert checkout.set_up().returncode == 0


@pytest.mark.parametrize("kind", ["folder", "link", "file"])
def test_setup_does_not_modify_foreign_files(checkout, kind):
    venv = checkout.root / ".venv"
    mine = checkout.root / "mine" / "notes.txt"
    mine.parent.mkdir()
    mine.write_text("years of work")
    if kind == "folder":
        mine.parent.rename(venv)
        mine = venv / "notes.txt"
    elif kind == "link":
        venv.symlink_to(mine.parent)
    else:
        venv.write_text("years of work")
    before = state_of(checkout.root)
    refused = checkout.set_up()
    assert refused.returncode != 0
    assert "Move it away" in refused.stderr
    assert state_of(checkout.root) == before
    assert mine.read_text() == "years of work"


def test_concurrent_setups_do_the_work_once(checkout):
    both = [
        subprocess.Popen(checkout.command, env=checkout.environment, stderr=subprocess.DEVNULL)
        for _ in range(2)
    ]
    assert [process.wait(timeout=600) for process in both] == [0, 0]
    assert checkout.take_calls() == BUILT


def test_setup_that_starts_while_another_one_fills_the_folder_continues(checkout, tmp_path):
    find = tmp_path / "bin" / "find"
    find.parent.mkdir()
    fill = ': > "$1/.setup-made-this"; : > "$1/pyvenv.cfg"'
    find.write_text(f'#!/bin/sh\n{fill}\n{shutil.which("find")} "$@"\n')
    find.chmod(0o755)
    (checkout.root / ".venv").mkdir()
    done = checkout.set_up(PATH=f"{find.parent}:{os.environ['PATH']}")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("says", "advice"),
    [
        ("Failed to establish a new connection: [Errno -2] Name or service not known", "check the network"),
        ("ERROR: No matching distribution found for torch==2.13.0", "another Python"),
    ],
)
def test_setup_explains_pip_failures(checkout, says, advice):
    failed = checkout.set_up(PIP_SAYS=says)
    assert failed.returncode != 0
    assert says in failed.stderr
    assert advice in failed.stderr


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("CPython 3.8.18 yes", "needs CPython 3.10, 3.11, 3.12 or 3.13"),
        ("CPython 3.14.0 yes", "needs CPython 3.10, 3.11, 3.12 or 3.13"),
        ("Python 3.8.18", "needs CPython 3.10, 3.11, 3.12 or 3.13"),
        ("hello", "does not run as a Python"),
        ("CPython 3.11.2 no", "apt install python3-venv"),
    ],
)
def test_setup_names_supported_python_versions(checkout, answer, message):
    checkout.write_python(f"#!/bin/sh\necho '{answer}'\n")
    failed = checkout.set_up()
    assert failed.returncode != 0
    assert message in failed.stderr
    assert not (checkout.root / ".venv").exists()
