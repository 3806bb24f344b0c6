"""Types of values in configuration files."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator


def whole_number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a whole number is needed")
    # YAML reads 1e6 as text and 1.0e+6 as a float
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise ValueError("a whole number is needed") from None
    return value


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number is needed")
    return value


def _schedule(value: Any) -> Any:
    """A number, or ``lin_X`` for a linear schedule from X to 0 over the run."""
    if isinstance(value, str) and value.startswith("lin_"):
        try:
            start = float(value.removeprefix("lin_"))
        except ValueError:
            raise ValueError("lin_ must be followed by a number, as in lin_2.5e-4") from None
        if not 0 < start < float("inf"):
            raise ValueError("lin_ must be followed by a positive number")
        return f"lin_{start!r}"
    try:
        number = float(_number(value))
    except (TypeError, ValueError, OverflowError):
        raise ValueError("must be a number, or lin_ and a number as in lin_2.5e-4") from None
    if not 0 <= number < float("inf"):
        raise ValueError("must be a finite number >= 0")
    return number


def _not_zero(value: Any) -> Any:
    if value == 0:
        raise ValueError("must be above 0")
    return value


def _layers(value: Any) -> list[int]:
    if not isinstance(value, list):
        raise ValueError("must be a list of layer sizes such as [64, 64]")
    sizes = [whole_number(size) for size in value]
    if not all(isinstance(size, int | float) and 1 <= size < 2**31 and size == int(size) for size in sizes):
        raise ValueError("layer sizes must be whole numbers of at least 1")
    return [int(size) for size in sizes]


def _net_arch(value: Any) -> list[int] | dict[str, list[int]] | None:
    """Hidden layers of both networks, or of each by name."""
    if value is None:
        return None
    if isinstance(value, list) and any(isinstance(part, dict) for part in value):
        # Layers in front of the mapping were shared by both networks
        shared = [part for part in value if not isinstance(part, dict)]
        own = next(part for part in value if isinstance(part, dict))
        sizes = {name: own[name] if isinstance(own.get(name), list) else [] for name in ("pi", "vf")}
        layers = ", ".join(f"{name}: {shared + sizes[name]}" for name in sizes)
        raise ValueError(f"this is the format of SB3 before version 1.8. Write net_arch: {{{layers}}}")
    if isinstance(value, dict):
        if set(value) != {"pi", "vf"}:
            raise ValueError("must name the layers of both pi and vf, as in {pi: [64, 64], vf: [64, 64]}")
        return {name: _layers(layers) for name, layers in value.items()}
    return _layers(value)


def _optimizer_kwargs(value: Any) -> dict[str, Any] | None:
    """Arguments of an optimizer: numbers, lists of numbers, true and false."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise ValueError("must be a mapping such as {weight_decay: 0.01}")
    return {str(name): _optimizer_argument(str(name), argument) for name, argument in value.items()}


def _optimizer_argument(name: str, value: Any) -> bool | float | list[float]:
    if isinstance(value, bool):
        return value
    try:
        numbers = [float(number) for number in (value if isinstance(value, list) else [value])]
    except (TypeError, ValueError, OverflowError):
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{name} must be a finite number, a list of these, true or false")
    return numbers if isinstance(value, list) else numbers[0]


WholeNumber = Annotated[int, BeforeValidator(whole_number)]
Positive = Annotated[WholeNumber, Field(ge=1)]
Number = Annotated[float, BeforeValidator(_number)]
Probability = Annotated[Number, Field(ge=0, le=1)]
Schedule = Annotated[float | str, BeforeValidator(_schedule)]
PositiveSchedule = Annotated[float | str, BeforeValidator(_schedule), AfterValidator(_not_zero)]
NetArch = Annotated[list[int] | dict[str, list[int]] | None, PlainValidator(_net_arch)]
OptimizerKwargs = Annotated[dict[str, Any] | None, PlainValidator(_optimizer_kwargs)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
