"""The choice whether a run's update is compiled."""

from __future__ import annotations

from typing import Literal, get_args

from srl.config.hyperparams import Hyperparams, PPOHyperparams
from srl.errors import UserError, nearest

#: Compile all runs, none, or those that are long enough.
Compile = Literal["auto", "on", "off"]

#: Approximate seconds of a compilation, and the factor by which it must be repaid.
_COMPILE_SECONDS = 20.0
_REPAID = 2.0
#: Approximate seconds that a compiled minibatch saves, with small networks and with those for images.
_SAVED_SECONDS = 0.7e-3
_SAVED_SECONDS_IMAGES = 20e-3


def check_choice(choice: str) -> None:
    """Check the option ``--compile``.

    :raises UserError: If it is not one of ``auto``, ``on`` and ``off``.
    """
    known = get_args(Compile)
    if choice not in known:
        raise UserError(f"--compile {choice}: must be {', '.join(known)}.{nearest(choice, known)}")


def n_minibatches(hyperparams: Hyperparams, n_timesteps: int) -> int:
    """The number of gradient steps of a run."""
    n_samples = hyperparams.n_steps * hyperparams.n_envs
    n_updates = -(-n_timesteps // n_samples)
    if isinstance(hyperparams, PPOHyperparams):
        return n_updates * hyperparams.n_epochs * -(-n_samples // hyperparams.batch_size)
    return n_updates


def repays(hyperparams: Hyperparams, n_timesteps: int) -> bool:
    """Whether a run is long enough to repay the compilation of its update."""
    saved = _SAVED_SECONDS_IMAGES if hyperparams.policy == "CnnPolicy" else _SAVED_SECONDS
    return n_minibatches(hyperparams, n_timesteps) * saved >= _REPAID * _COMPILE_SECONDS


def resolve_compile(
    choice: str, hyperparams: Hyperparams, n_timesteps: int, device: str
) -> tuple[bool, list[str]]:
    """Decide whether a run's update is compiled.

    :param choice: ``auto``, ``on`` or ``off``. ``auto`` compiles runs that repay it, if there is a compiler.
    :return: The decision, and lines for the user.
    :raises UserError: For an unknown choice, or ``on`` without a compiler.
    """
    check_choice(choice)
    if choice == "off":
        return False, []
    if choice == "auto" and not repays(hyperparams, n_timesteps):
        return False, []
    from srl.compilation import why_not

    reason = why_not("cuda" if device.startswith("cuda") else "cpu")
    if reason is None:
        return True, ["Updates are compiled, once for each shape; --compile off turns that off."]
    if choice == "on":
        raise UserError(f"--compile on: {reason}. Install one, or use --compile off.")
    return False, [f"Updates are not compiled: {reason}."]
