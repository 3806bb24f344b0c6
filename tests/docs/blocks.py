"""Run the code blocks of a page with small settings.

Blocks run in order in one folder. A block that begins with a comment ``# NAME.py`` or ``# NAME.yml`` is
saved under that name.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest
import tyro
import yaml
from markdown_it import MarkdownIt
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from srl.cli import main
from srl.precision import why_no_bf16

ROOT = Path(__file__).resolve().parents[2]
#: ``text`` blocks are not run: they need a GPU, a model or data that the tests do not have.
LANGUAGES = {"python", "yaml", "bash", "bibtex", "text"}
_NAME = re.compile(r"# (\w+\.(?:py|yml))\b")
#: Programs from other projects.
_EXTERNAL = {"hf", "ray", "tensorboard", "wandb"}
_EXTERNAL_MODULES = {"rl_zoo3"}
#: One environment that replaces all environments of a shipped sweep.
_ENV = {"continuous": "HalfCheetah-v4", "discrete": "PongNoFrameskip-v4"}


def blocks(text: str) -> list[tuple[str, str]]:
    """Return language and content of each fenced block that is not a site directive."""
    fences = [
        token for token in MarkdownIt("commonmark").parse(text) if token.type in ("fence", "code_block")
    ]
    found = [(token.info.strip(), token.content) for token in fences if token.type == "fence"]
    return [(language, content) for language, content in found if not language.startswith("{")]


def commands(block: str) -> list[list[str]]:
    """The words of each command in a block of shell code; loops have only their first iteration."""
    variables: dict[str, str] = {}
    found = []
    for line in block.replace("\\\n", " ").splitlines():
        for name, value in variables.items():
            line = line.replace(f"${name}", value)
        loops = re.findall(r"\bfor (\w+) in (\S+)[^;]*; do", line)
        if assigned := re.fullmatch(r'\s*(\w+)="(.*)"', line):
            loops.append((assigned[1], assigned[2]))
        variables |= loops
        words = shlex.split(line, comments=True)
        if words and not loops and words[0].rstrip(";") != "done":
            found.append(words)
    return found


class Parsed(Exception):
    """Raised after a command line is parsed without errors."""


class Runner:
    """Runs the code blocks of pages in one folder.

    :param folder: Working directory of commands and saved files.
    :param execute: Train sweeps and write reports instead of only checking them.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, *, execute: bool = False) -> None:
        self.folder = folder
        self.monkeypatch = monkeypatch
        self.execute = execute
        self.modules: list[str] = []
        #: Why blocks were not run.
        self.not_run: list[str] = []
        monkeypatch.chdir(folder)
        monkeypatch.syspath_prepend(folder)
        monkeypatch.setenv("PYTHONPATH", f"{folder}:{ROOT}")
        self._limit_training()

    def run(self, page: Path) -> None:
        """Run all blocks of a page."""
        names: dict[str, object] = {"__name__": "page"}
        for language, content in blocks(page.read_text()):
            if "bf16" in content and (reason := why_no_bf16("cpu")):
                self.not_run.append(reason)
                continue
            saved = _NAME.match(content)
            if saved and saved[1].endswith(".py"):
                self._save(saved[1], content)
            elif language == "python":
                exec(compile(content, str(page), "exec"), names)
            elif language == "yaml":
                assert isinstance(yaml.safe_load(content), dict)
                if saved:
                    small = re.sub(r"(n_timesteps|eval_freq): [\d.e+]+", r"\1: 64", content)
                    self._save(saved[1], small)
            elif language == "bash":
                for words in commands(content):
                    self.run_command(words)
            else:
                assert language in LANGUAGES, f"{page}: a block has the language {language!r}"

    def run_command(self, words: list[str]) -> None:
        """Run a command with small settings, or check it."""
        program = words[0].removeprefix(".venv/bin/")
        if program == "srl":
            self._run_srl(*words[1:])
        elif script := re.fullmatch(r"\./run_(\w+)\.sh", program):
            assert (ROOT / program).exists()
            self._run_srl("sweep", script[1], *words[1:])
        elif program == "pip":
            check_requirements(words)
        elif program.startswith("./scripts/"):
            assert (ROOT / program).exists()
        elif program == "python":
            check_python(words[1:])
        else:
            assert program in _EXTERNAL, f"nothing checks the command {' '.join(words)}"

    def _run_srl(self, command: str, *options: str) -> None:
        words = ["cpu" if word == "cuda" else word for word in options]
        file = next((words[at + 1] for at, word in enumerate(words) if word == "--hyperparams-file"), "")
        unavailable = {"--extend-to", "--track"} & {*words} or (file and not Path(file).exists())
        if command in ("train", "sweep") and unavailable:
            status = self._parse(command, *words)
        elif command == "train" and ("on" in words or any("NoFrameskip" in word for word in words)):
            status = self._call(*dry_run(words))
        elif command == "train":
            status = self._call("train", *small_run(words))
        elif command == "sweep" and self.execute and "--dry-run" not in words:
            changes = ["--timesteps", "64", "--seeds", "0:2", "--eval-episodes", "1"]
            status = self._call("sweep", *words, *changes, "--hyperparams", "n_steps=32")
        elif command == "sweep":
            status = self._call("sweep", *small_sweep(words))
        elif self._writes_report(command, words):
            status = self._call(command, *words, *(small_report(words) if command == "report" else []))
        else:
            status = self._parse(command, *words)
        assert status == 0, f"srl {command} {' '.join(options)}"

    def _writes_report(self, command: str, words: list[str]) -> bool:
        """Return whether to execute a command on runs: it is short, and its runs are already trained."""
        short = command in ("report", "status") and not {"--watch", "--last"} & set(words)
        return self.execute and short and Path(words[0]).exists()

    def _call(self, *words: str) -> int:
        try:
            main(words)
        except SystemExit as end:
            return int(end.code or 0)
        raise AssertionError("main() returned")

    def _parse(self, *words: str) -> int:
        """Parse a command line without executing it."""
        read = tyro.cli

        def read_only(*args: object, **kwargs: object) -> None:
            read(*args, **kwargs)  # type: ignore[call-overload]
            raise Parsed

        with self.monkeypatch.context() as patch:
            patch.setattr(tyro, "cli", read_only)
            try:
                return self._call(*words)
            except Parsed:
                return 0

    def _save(self, name: str, content: str) -> None:
        (self.folder / name).write_text(content)
        module = name.removesuffix(".py")
        if module != name:
            importlib.invalidate_caches()
            assert importlib.util.find_spec(module).origin == str(self.folder / name), f"{name} is taken"
            self.modules.append(module)

    def forget(self) -> None:
        """Remove the modules of the pages from ``sys.modules``."""
        for module in self.modules:
            sys.modules.pop(module, None)

    def _limit_training(self) -> None:
        """Limit training in Python blocks to a few steps."""
        learn, set_up = OnPolicyAlgorithm.learn, OnPolicyAlgorithm._setup_model

        def learn_little(model, total_timesteps, *args, **kwargs):
            return learn(model, min(total_timesteps, 128), *args, **kwargs)

        def set_up_small(model):
            model.n_steps = min(model.n_steps, 64)
            set_up(model)

        self.monkeypatch.setattr(OnPolicyAlgorithm, "learn", learn_little)
        self.monkeypatch.setattr(OnPolicyAlgorithm, "_setup_model", set_up_small)


def small_run(words: list[str]) -> list[str]:
    """Return options of ``srl train`` that make the run take a few seconds."""
    words = _without(words, "--timesteps")
    small = ["n_steps=32"]
    if "ppo" in words[words.index("--algo") + 1]:
        small += ["batch_size=32", "n_epochs=1"]
    if "--hyperparams" in words:
        names = {word.partition("=")[0] for word in words}
        place = words.index("--hyperparams") + 1
        words = [
            *words[:place],
            *(value for value in small if value.partition("=")[0] not in names),
            *words[place:],
        ]
    else:
        words = [*words, "--hyperparams", *small]
    return [*words, "--timesteps", "64", "--eval-episodes", "1", "--eval-max-episode-steps", "200"]


def small_report(words: list[str]) -> list[str]:
    """Return more options of ``srl report``: few bootstrap samples, one format of figures."""
    if "--format" in words:
        return []
    return ["--reps", "100", *([] if "--figures" in words else ["--figures", "png"])]


def dry_run(words: list[str]) -> list[str]:
    """Return the sweep dry run that checks a ``srl train`` command."""
    names = {"--algo": "--algos", "--env": "--envs", "--seed": "--seeds"}
    words = [names.get(word, word) for word in _without(_without(words, "--out"), "--threads")]
    for option, value in (("--noise", "none"), ("--seeds", "0")):
        words = words if option in words else [*words, option, value]
    return ["sweep", "discrete_srl", *words, "--dry-run"]


def small_sweep(words: list[str]) -> list[str]:
    """Return options of ``srl sweep`` for a local dry run with one environment."""
    words = [
        "local" if word == "auto" and words[at - 1] == "--address" else word for at, word in enumerate(words)
    ]
    kind = words[0].partition("_")[0]
    if kind in _ENV and "--envs" not in words:
        words += ["--envs", _ENV[kind]]
    return words if "--dry-run" in words else [*words, "--dry-run"]


def _without(words: list[str], option: str) -> list[str]:
    if option not in words:
        return words
    at = words.index(option)
    return words[:at] + words[at + 2 :]


def check_requirements(words: list[str]) -> None:
    """Check that a ``pip install`` of this project names extras of setup.py."""
    assert words[:2] == ["pip", "install"]
    setup = (ROOT / "setup.py").read_text()
    for word in words[2:]:
        named = re.fullmatch(r"(?:\.|symmetric-rl)(?:\[([\w,]+)\])?", word)
        assert named, f"pip install {word}"
        for extra in (named[1] or "").split(",") if named[1] else ():
            assert re.search(rf'^        "{extra}": ', setup, re.MULTILINE), f"there is no extra {extra}"


def check_python(words: list[str]) -> None:
    """Check that a module or script exists and that the script has the options."""
    if words[0] == "-m":
        module = words[1].partition(".")[0]
        assert module in _EXTERNAL_MODULES or importlib.util.find_spec(words[1])
    else:
        text = (ROOT / words[0]).read_text()
        options = [word for word in words[1:] if word.startswith("--")]
        assert all(f'"{option}"' in text or f"{option[2:].replace('-', '_')}: " in text for option in options)
