"""The command ``srl``: read the command line, run a subcommand, and exit with its status."""

from __future__ import annotations

import inspect
import signal
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Union

import tyro

from srl import __version__
from srl.cli import llm
from srl.cli.clean import Clean, clean
from srl.cli.enjoy import Enjoy, enjoy
from srl.cli.options import FAILED, MISTAKE, STOPPED
from srl.cli.report import Report, report
from srl.cli.share import Pull, Push, pull, push
from srl.cli.status import Status, show_status
from srl.cli.sweep import Sweep, sweep
from srl.cli.train import Train, train
from srl.cli.tune import Tune, tune
from srl.errors import OutOfSpace, UserError

#: By the name of each command: its options, its function, and examples.
_COMMANDS: dict[str, tuple[type, Callable[[Any, str], int], tuple[str, ...]]] = {
    "train": (
        Train,
        train,
        (
            "srl train --algo sppo --env CartPole-v1",
            "srl train --algo dsppo --env HalfCheetah-v4 --noise gaussian:0.05 --beta 20 --seed 1",
            "srl train --algo sppo --env MyEnv-v0 --gym-packages mypkg --env-kwargs size=5",
            "srl train --extend-to 2000000 runs/CartPole-v1/sppo/none/seed-0",
        ),
    ),
    "sweep": (
        Sweep,
        sweep,
        (
            "srl sweep continuous_srl --quick",
            "srl sweep mine.yml --out runs/mine --jobs 8",
            "srl sweep discrete_srl --envs CartPole-v1 --algos sppo --noise none --grid beta=0,1,5",
        ),
    ),
    "enjoy": (
        Enjoy,
        enjoy,
        (
            "srl enjoy runs/CartPole-v1/sppo/none/seed-0",
            "srl enjoy runs/CartPole-v1/sppo/none/seed-0 --video cartpole.mp4 --episodes 3",
        ),
    ),
    "report": (
        Report,
        report,
        ("srl report runs/mine", "srl report runs/mine --format archive --out shared"),
    ),
    "status": (Status, show_status, ("srl status runs/mine --watch",)),
    "tune": (Tune, tune, ("srl tune --algo sppo --env CartPole-v1 --n-trials 50",)),
    "push": (Push, push, ("srl push runs/CartPole-v1/sppo/none/seed-0 me/sppo-CartPole-v1",)),
    "pull": (Pull, pull, ("srl pull me/sppo-CartPole-v1",)),
    "llm": (
        llm.LanguageModels,
        llm.run,
        ("srl llm train offline", "srl llm sample runs/offline/llm-sppo/none/seed-0 'the film'"),
    ),
    "clean": (Clean, clean, ("srl clean runs/mine", "srl clean runs/mine --yes")),
}


def _subcommand(name: str, words: Sequence[str]) -> Any:
    """A command for tyro, with examples in its own help."""
    options, _, examples = _COMMANDS[name]
    description = inspect.getdoc(options)
    if name in words[:1]:
        description = "\n  ".join([f"{description}\n\nExamples:", *examples])
    return Annotated[options, tyro.conf.subcommand(name, description=description)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 a run failed, 2 invalid options, 130 stopped.

    :param arguments: The words after ``srl``; None for those of the process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words in (["--version"], ["-V"]):
        print(f"srl {__version__}")
        sys.exit(0)
    try:
        _check_given_once(words)
        command: Any = tyro.cli(
            Union[tuple(_subcommand(name, words) for name in _COMMANDS)],  # type: ignore[call-overload] # noqa: UP007
            prog="srl",
            description="Symmetric RL losses for Stable-Baselines3: SA2C, SPPO and their baselines.",
            args=words,
            config=(tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone),
        )
        # SIGTERM terminates the runs of a sweep like Ctrl-C
        signal.signal(signal.SIGTERM, _interrupt)
        # So does a closed terminal, unless nohup is used
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            signal.signal(signal.SIGHUP, _interrupt)
        (run,) = [run for options, run, _ in _COMMANDS.values() if options is type(command)]
        status = run(command, " ".join(["srl", *words]))
    except UserError as error:
        print(f"srl: {error}", file=sys.stderr)
        status = MISTAKE
    except KeyboardInterrupt:
        print("srl: stopped. Rerun the command to resume.", file=sys.stderr)
        status = STOPPED
    except OutOfSpace as error:
        print(f"srl: {error}", file=sys.stderr)
        status = FAILED
    except MemoryError:
        print("srl: not enough memory to start; see `ulimit -v`. Rerun the command.", file=sys.stderr)
        status = FAILED
    except BrokenPipeError:
        status = STOPPED
    except OSError as error:
        # A full disk, a removed folder: finished runs are not affected
        where = f"{error.filename}: " if error.filename else ""
        print(f"srl: {where}{error.strerror or error}. Fix this and rerun the command.", file=sys.stderr)
        status = FAILED
    sys.exit(status)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _check_given_once(words: Sequence[str]) -> None:
    """Reject repeated options, of which tyro would silently use one."""
    options = Counter(word.partition("=")[0].replace("_", "-") for word in words if word.startswith("--"))
    for option, count in options.items():
        if count > 1:
            raise UserError(f"{option} is given {count} times. Name all its values after one {option}.")
