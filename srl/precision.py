"""The precision of features extractors: float32 or bfloat16."""

from __future__ import annotations

from functools import cache
from typing import Literal, get_args

from srl.errors import UserError, nearest

Precision = Literal["float32", "bf16"]


@cache
def why_no_bf16(device_type: str) -> str | None:
    """Why bfloat16 is not faster than float32 on a device of this machine.

    :param device_type: ``"cpu"`` or ``"cuda"``.
    :return: The reason in one line; None if the device has instructions for bfloat16.
    """
    import torch as th

    if device_type == "cuda":
        supported = th.cuda.is_bf16_supported(including_emulation=False)
        return None if supported else "this GPU has no bfloat16 instructions"
    has = th.cpu.get_capabilities()
    # The first two on x86, the others on ARM
    if any(has.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")):
        return None
    return (
        f"this CPU ({has.get('cpu_name', has.get('architecture', 'unknown'))}) has no bfloat16 instructions"
    )


def check_precision(precision: str, device_type: str) -> None:
    """Check the parameter and the option ``precision``.

    :param precision: ``"float32"`` or ``"bf16"``.
    :param device_type: ``"cpu"`` or ``"cuda"``.
    :raises UserError: If it is neither of them, or the device has no instructions for it.
    """
    known = get_args(Precision)
    if precision not in known:
        raise UserError(
            f"precision={precision!r} is not one of {', '.join(known)}.{nearest(str(precision), known)}"
        )
    reason = why_no_bf16(device_type) if precision == "bf16" else None
    if reason is not None:
        raise UserError(f"precision='bf16': {reason}. Use float32.")
