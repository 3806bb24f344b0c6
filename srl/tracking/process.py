"""The tracking process: started before training, it ends when everything is sent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from select import select

from srl.errors import UserError
from srl.tracking.backends import BACKEND_CLASSES
from srl.tracking.follower import Follower

#: Seconds between two readings of the run directories.
_INTERVAL = 2.0
#: The line that the process prints when it is ready, and the prefix of each error.
_READY, _ERROR = "ready", "error: "
_COMMAND = [sys.executable, "-m", "srl.tracking.process"]


@contextmanager
def tracking(backend: str, project: str, paths: Sequence[Path]) -> Iterator[list[str]]:
    """Track runs in a separate process, from before training until everything is sent.

    :param backend: ``wandb``, ``mlflow`` or ``trackio``; see :func:`srl.tracking.backends.check_backend`.
    :param project: The project's or experiment's name.
    :param paths: The runs' folders.
    :return: A context that yields a list, which has a line for each problem after the context ends.
    :raises UserError: On entering, if the backend cannot be used, as without a login.
    """
    problems: list[str] = []
    process = subprocess.Popen(
        _COMMAND,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,  # on Ctrl-C, the ends of the runs are still sent
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        asked = {"backend": backend, "project": project, "paths": [str(path.absolute()) for path in paths]}
        with suppress(BrokenPipeError):
            process.stdin.write(json.dumps(asked) + "\n")
            process.stdin.flush()
        answer = process.stdout.readline().strip()
        if answer != _READY:
            reason = answer.removeprefix(_ERROR) or "its process ended"
            raise UserError(f"--track {backend}: {reason}. Nothing was trained.")
        yield problems
    finally:
        with suppress(BrokenPipeError):
            process.stdin.close()
        said = process.stdout.read().splitlines()
        problems += [line.removeprefix(_ERROR) for line in said if line.startswith(_ERROR)]
        if process.wait() != 0 and not problems:
            problems.append(f"the tracking process ended with status {process.returncode}")


def main() -> int:
    """Follow run directories until standard input ends; return the exit status."""
    asked = json.loads(sys.stdin.readline())
    # Output of the packages must not mix with the answers to the parent
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        backend = BACKEND_CLASSES[asked["backend"]](asked["project"])
    except BaseException as error:
        text = " ".join(str(error).split())[:300]
        print(f"{_ERROR}{type(error).__name__}: {text}", file=answers)
        return 2
    follower = Follower(asked["backend"], asked["project"], [Path(path) for path in asked["paths"]], backend)
    print(_READY, file=answers)
    while not select([sys.stdin], [], [], _INTERVAL)[0]:
        follower.send_new()
    problems = follower.send_new(last=True)
    for problem in problems:
        with suppress(BrokenPipeError):
            print(f"{_ERROR}{problem}", file=answers)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
