"""Suppress one known, harmless message of MuJoCo."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Gymnasium's half_cheetah.xml has `settotalmass`, which MuJoCo 4 reports as deprecated each time the model is
# loaded: on stderr, and in a file MUJOCO_LOG.TXT that it creates in the working folder. The physics is
# not affected, and users cannot change Gymnasium's file.
_NOISE = re.compile(r"compiler attribute '\w+' is deprecated")


@contextmanager
def without_deprecation_messages() -> Iterator[None]:
    """Suppress MuJoCo's messages on deprecated model attributes, and no others."""
    try:
        mujoco = importlib.import_module("mujoco")
    except ImportError:  # making the environment gives a better message
        yield
        return
    previous = mujoco.get_mju_user_warning()

    def handler(message: str) -> None:
        if _NOISE.match(message):
            return
        if previous is not None:
            previous(message)
            return
        # MuJoCo's default without a handler
        print(f"WARNING: {message}\n", file=sys.stderr)
        mujoco.mju_writeLog("WARNING", message)

    mujoco.set_mju_user_warning(handler)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(previous)
