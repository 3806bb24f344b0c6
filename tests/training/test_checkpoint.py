"""Checkpoint files: exact round trips and detection of damage."""

import numpy as np
import pytest
import torch as th

from srl.errors import UserError
from srl.rundir.checkpoints import checkpoint_steps, remove_checkpoints
from srl.training.checkpoint import read_checkpoint, write_checkpoint

STATE = {
    "tensor": th.arange(6, dtype=th.float32).reshape(2, 3),
    "transposed": np.zeros((2, 3, 4)).transpose(2, 0, 1),
    "integers": {0: {"step": th.tensor(3.0)}, 7: (0.9, 0.999)},
    "generator": np.random.default_rng(0).bit_generator.state,
    "list": [1, 2.5, None, True, "text", {"nested": [np.uint8(3)]}],
    "empty": np.empty((0, 3), np.int64),
}


def equal(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and all(map(equal, one, other)) and len(one) == len(other)
    if isinstance(one, th.Tensor):
        return isinstance(other, th.Tensor) and one.dtype == other.dtype and th.equal(one, other)
    if isinstance(one, (np.ndarray, np.generic)):
        return np.asarray(one).dtype == other.dtype and np.array_equal(one, other)
    return type(one) is type(other) and one == other


def test_state_round_trips_exactly(tmp_path):
    write_checkpoint(tmp_path, 100, STATE)
    assert equal(STATE, read_checkpoint(tmp_path, 100))


def test_array_strides_are_restored(tmp_path):
    write_checkpoint(tmp_path, 100, STATE)
    restored = read_checkpoint(tmp_path, 100)["transposed"]
    assert restored.strides == STATE["transposed"].strides


def test_last_two_checkpoints_are_kept(tmp_path):
    for steps in (5, 100, 20, 1000):
        write_checkpoint(tmp_path, steps, STATE)
    assert checkpoint_steps(tmp_path) == [1000, 100]
    remove_checkpoints(tmp_path)
    assert checkpoint_steps(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("n", range(12))
def test_damage_is_detected_and_named(n, tmp_path):
    write_checkpoint(tmp_path, 100, STATE)
    file = tmp_path / "checkpoints" / "100.npz"
    content = bytearray(file.read_bytes())
    generator = np.random.default_rng(n)
    if n % 3 == 0:
        content = content[: generator.integers(len(content))]
    elif n % 3 == 1:
        content[:] = generator.bytes(len(content))
    else:
        start = generator.integers(len(content) - 64)
        content[start : start + 64] = generator.bytes(64)
    file.write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"100\.npz: damaged"):
        read_checkpoint(tmp_path, 100)


def test_objects_are_rejected_when_writing(tmp_path):
    with pytest.raises(TypeError, match="set"):
        write_checkpoint(tmp_path, 1, {"a": {1, 2}})
    with pytest.raises(TypeError, match="object"):
        write_checkpoint(tmp_path, 1, {"a": np.array([object()])})
    assert checkpoint_steps(tmp_path) == []


def test_pickled_arrays_are_not_loaded(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    np.savez(tmp_path / "checkpoints" / "1.npz", tree=np.array([{"a": 1}], dtype=object))
    with pytest.raises(UserError, match="damaged"):
        read_checkpoint(tmp_path, 1)
