"""Symmetric RL losses for Stable-Baselines3: SA2C and SPPO (Byun and Perrault, ICML 2025)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from srl.sa2c import SA2C
    from srl.sppo import SPPO
    from srl.training.load import load_run

__version__ = "0.1.0"

__all__ = ["SA2C", "SPPO", "__version__", "load_run"]


def __getattr__(name: str) -> Any:
    # Importing the algorithms imports torch, which takes seconds; `srl --help` should not
    if name in ("SA2C", "SPPO"):
        return getattr(import_module(f"srl.{name.lower()}"), name)
    if name == "load_run":
        return import_module("srl.training.load").load_run
    raise AttributeError(f"module 'srl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
