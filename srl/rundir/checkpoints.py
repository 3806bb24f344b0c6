"""The checkpoints of a run as files; :mod:`srl.training.checkpoint` reads and writes their contents."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from srl.errors import UserError
from srl.rundir.names import CHECKPOINT, CHECKPOINTS, checkpoint_files

FORMAT = 3
#: The key of the structure among the arrays of a file.
TREE = "tree"


def checkpoint_steps(folder: Path) -> list[int]:
    """The training steps of the checkpoints in a run's folder, latest first."""
    names = [file.name for file in checkpoint_files(folder)]
    return sorted((int(Path(name).stem) for name in names if CHECKPOINT.fullmatch(name)), reverse=True)


def last_checkpoint(folder: Path) -> int:
    """The training steps of a run's latest checkpoint; 0 for none."""
    return max(checkpoint_steps(folder), default=0)


def checkpoint_path(folder: Path, steps: int) -> Path:
    """The file of a checkpoint."""
    return folder / CHECKPOINTS / f"{steps}.npz"


def remove_checkpoints(folder: Path) -> None:
    """Remove all checkpoints of a run, and their folder if it holds nothing else."""
    with suppress(OSError):  # remaining files do no harm
        for file in checkpoint_files(folder):
            file.unlink()
        (folder / CHECKPOINTS).rmdir()


def read_arrays(file: Path) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    """Read a checkpoint's structure and arrays; nothing in it is executed.

    :raises UserError: If it is damaged, or has another format.
    """
    try:
        # Reading an array also checks its checksum
        with np.load(file, allow_pickle=False) as data:
            arrays = {name: data[name] for name in data.files}
        tree = json.loads(arrays[TREE].tobytes())
        if tree["format"] == FORMAT:
            return tree, arrays
        problem = f"a checkpoint of format {tree['format']}; this srl reads {FORMAT}."
    except Exception as error:  # zipfile, zlib, numpy and json raise various errors
        problem = f"damaged: {error}"
    raise UserError(f"{file}: {problem}")
