"""Checkpoints of a run: everything needed to resume with bitwise-identical results.

A checkpoint is one file, ``checkpoints/STEPS.npz`` in the run's folder: arrays, and their structure as JSON.
Reading one executes nothing. It is written atomically and read back before an older one is removed, so that
there is always a complete checkpoint.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch as th

from srl.envs.replay import NotRestorable
from srl.errors import UserError
from srl.rundir.checkpoints import FORMAT, TREE, checkpoint_path, checkpoint_steps, read_arrays
from srl.rundir.files import replacing
from srl.rundir.names import CHECKPOINTS, FINAL_STATE

#: Keys of the structure for an array, a NumPy scalar, a tensor and a tuple.
_ARRAY, _SCALAR, _TENSOR, _TUPLE = "__array__", "__scalar__", "__tensor__", "__tuple__"


class CheckpointTimer:
    """Writes a checkpoint at most once per interval, as long as the environments can be restored.

    :param interval: Seconds between two checkpoints; with 0 each call of :meth:`keep` writes one.
    :param note: Called once with each reason why no checkpoint can be written.
    """

    def __init__(self, interval: float, note: Callable[[str], None]):
        self._interval = interval
        self._note = note
        self._noted: set[str] = set()
        self._due = time.monotonic() + interval

    @property
    def is_due(self) -> bool:
        """Whether the interval since the last checkpoint has passed."""
        return time.monotonic() >= self._due

    def keep(self, write: Callable[[], None]) -> None:
        """Write a checkpoint and start the next interval.

        :param write: Writes it. On :class:`~srl.envs.replay.NotRestorable` the existing checkpoints are
            kept, and the next try follows after the interval.
        """
        try:
            write()
        except NotRestorable as error:
            reason = str(error)
            if reason not in self._noted:
                self._noted.add(reason)
                self._note(f"no checkpoints are written: {reason}")
        self._due = time.monotonic() + self._interval


def write_checkpoint(folder: Path, steps: int, state: dict[str, Any]) -> None:
    """Write a checkpoint, verify that it can be read, and remove all older ones except the previous one.

    :param folder: The run's.
    :param steps: Its training steps so far.
    :param state: Numbers, strings, arrays, tensors, and lists, tuples and mappings of these.
    :raises OSError: If it cannot be written; earlier checkpoints are unchanged.
    """
    (folder / CHECKPOINTS).mkdir(exist_ok=True)
    _write(checkpoint_path(folder, steps), steps, state)
    for older in checkpoint_steps(folder)[2:]:
        checkpoint_path(folder, older).unlink()


def write_final_state(folder: Path, steps: int, state: dict[str, Any]) -> None:
    """Write the state that extending a finished run needs; for the arguments see :func:`write_checkpoint`."""
    _write(folder / FINAL_STATE, steps, state)


def read_final_state(folder: Path) -> dict[str, Any]:
    """Read the state that :func:`write_final_state` wrote.

    :raises UserError: If it is missing, damaged or of another version.
    """
    return _read(folder / FINAL_STATE)


def _write(file: Path, steps: int, state: dict[str, Any]) -> None:
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    tree = json.dumps({"format": FORMAT, "steps": steps, "state": _encoded(state, arrays)})
    arrays[TREE] = np.frombuffer(tree.encode(), np.uint8)
    with replacing(file) as temporary:
        with temporary.open("wb") as opened:
            np.savez(opened, **arrays)  # type: ignore[arg-type]
        _read(temporary)


def read_checkpoint(folder: Path, steps: int) -> dict[str, Any]:
    """Read the state in a checkpoint.

    :raises UserError: If it cannot be read, or is of another version.
    """
    return _read(checkpoint_path(folder, steps))


def _read(file: Path) -> dict[str, Any]:
    try:
        tree, arrays = read_arrays(file)
        state = _decoded(tree["state"], arrays)
    except UserError:
        raise
    except Exception as error:  # a damaged structure can raise anything
        raise UserError(f"{file}: damaged: {error}") from None
    assert isinstance(state, dict)
    return state


def _encoded(value: Any, arrays: dict[str, np.ndarray[Any, Any]]) -> Any:
    """A value as JSON; arrays are moved to ``arrays`` and replaced by their names."""
    if isinstance(value, np.generic):
        return {_SCALAR: _encoded(np.asarray(value), arrays)}
    if isinstance(value, (th.Tensor, np.ndarray)):
        kind = _TENSOR if isinstance(value, th.Tensor) else _ARRAY
        name = str(len(arrays))
        dtype = {}
        if isinstance(value, th.Tensor) and value.dtype == th.bfloat16:
            # NumPy has no such type
            value, dtype = value.detach().view(th.int16), {"dtype": "bfloat16"}
        array = value.detach().cpu().numpy() if isinstance(value, th.Tensor) else np.asarray(value)
        if array.dtype.hasobject:
            raise TypeError(f"an array of {array.dtype} cannot be kept in a checkpoint")
        # The rounding of convolutions depends on the memory layout of their input
        axes = sorted(range(array.ndim), key=lambda axis: (-array.strides[axis], -array.shape[axis]))
        arrays[name] = array.transpose(axes)
        return {kind: name, "axes": axes, **dtype}
    if isinstance(value, dict):
        # JSON would turn the integer keys of an optimizer's state into strings
        return {"keys": list(value), "values": [_encoded(item, arrays) for item in value.values()]}
    if isinstance(value, tuple):
        return {_TUPLE: [_encoded(item, arrays) for item in value]}
    if isinstance(value, list):
        return [_encoded(item, arrays) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{type(value).__name__} cannot be kept in a checkpoint")


def _decoded(value: Any, arrays: dict[str, np.ndarray[Any, Any]]) -> Any:
    if isinstance(value, list):
        return [_decoded(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    if _ARRAY in value or _TENSOR in value:
        array = arrays[value[_ARRAY] if _ARRAY in value else value[_TENSOR]].transpose(
            np.argsort(value["axes"])
        )
        if _ARRAY in value:
            return array
        tensor = th.from_numpy(array)
        return tensor.view(th.bfloat16) if value.get("dtype") == "bfloat16" else tensor
    if _SCALAR in value:
        return _decoded(value[_SCALAR], arrays)[()]
    if _TUPLE in value:
        return tuple(_decoded(item, arrays) for item in value[_TUPLE])
    # Equal names are one object, as literals in code are: pickle writes it once
    keys = [sys.intern(key) if isinstance(key, str) else key for key in value["keys"]]
    return dict(zip(keys, (_decoded(item, arrays) for item in value["values"]), strict=True))
