"""The differences between two specs."""

from __future__ import annotations

from typing import Any

from srl.config.spec import RunSpec


def differs_only_in_length(there: RunSpec, asked: RunSpec) -> bool:
    """Whether two specs are the same but for ``n_timesteps`` and ``stacked``."""
    same = {"stacked": asked.stacked, "n_timesteps": asked.n_timesteps}
    return there.model_copy(update=same) == asked


def describe_difference(there: RunSpec, asked: RunSpec) -> str:
    """The first few keys in which two specs differ, with both values."""
    if there.format < asked.format:
        return "an earlier version of srl made it, with other random streams"
    left, right = flatten(there.model_dump(mode="json")), flatten(asked.model_dump(mode="json"))
    different = [key for key in left | right if left.get(key) != right.get(key)]
    shown = [f"{key} is {left.get(key)!r} there and {right.get(key)!r} here" for key in different[:3]]
    more = f" and {len(different) - 3} more" if len(different) > 3 else ""
    return "; ".join(shown) + more


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with keys such as ``hyperparams.gamma``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
