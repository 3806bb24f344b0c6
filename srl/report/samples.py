"""Texts that a language model wrote before and after training, from a run's ``samples.json``."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

from srl.rundir.files import read_bytes
from srl.rundir.names import SAMPLES


@dataclass(frozen=True)
class SampledText:
    """A prompt, the responses of the model before and after training, and their rewards."""

    prompt: str
    before: str
    after: str
    reward_before: float
    reward_after: float


_SAMPLES = TypeAdapter(list[SampledText])


def read_samples(path: Path) -> list[SampledText]:
    """The texts of a run; empty if it has none that can be read."""
    try:
        return _SAMPLES.validate_python(json.loads(read_bytes(path / SAMPLES)))
    except (OSError, ValueError):
        return []
