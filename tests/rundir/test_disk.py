"""Detection of full disks by the system error, the reason of a failed run, or the free space."""

import errno
import os
import shutil
from types import SimpleNamespace

import pytest

from srl.errors import OutOfSpace
from srl.rundir.disk import is_full, naming_full_disk


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_error_names_path_and_advice(number, tmp_path):
    with (
        pytest.raises(OutOfSpace, match=rf"{tmp_path} is full .*rerun the command"),
        naming_full_disk(tmp_path),
    ):
        raise OSError(number, os.strerror(number))
    assert is_full(tmp_path, f"OSError: [Errno {number}] {os.strerror(number)}: '/x/1.npz' (at step 64)")


def test_other_errors_pass_unchanged(tmp_path):
    with pytest.raises(PermissionError), naming_full_disk(tmp_path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    assert not is_full(tmp_path, "PermissionError: [Errno 13] Permission denied")


@pytest.mark.parametrize(
    ("total", "free", "full"), [(10**12, 50_000, True), (10**12, 10**9, False), (0, 0, False)]
)
def test_free_space_detects_full_disk_if_reported(total, free, full, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=total, free=free))
    assert is_full(tmp_path) is full
