"""Registration of environments: ids, renamed ids, and requirements.

Importing this module registers the Atari games of ale-py and the games of MinAtar with Gymnasium; the
package ``minatar`` itself is imported when a game is made.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import ale_py
import gymnasium as gym
from ale_py import roms
from gymnasium.envs.registration import find_highest_version, get_env_id, parse_env_id, registry

from srl.errors import UserError, nearest

gym.register_envs(ale_py)

for _game in ("asterix", "breakout", "freeway", "seaquest", "space_invaders"):
    # With the ids of the package `minatar`, and only the actions that have an effect in the game
    gym.register(
        f"MinAtar/{_game.title().replace('_', '')}-v1",
        entry_point="minatar.gym:BaseEnv",
        kwargs={"game": _game, "use_minimal_action_set": True},
    )

# Ids in the paper's protocol that have a new version number in Gymnasium
RENAMED = {"LunarLander-v2": "LunarLander-v3", "LunarLanderContinuous-v2": "LunarLanderContinuous-v3"}


def resolve_env_id(env_id: str) -> tuple[str, str | None]:
    """Find the current id of an environment in Gymnasium.

    :param env_id: A Gymnasium id; ``module:Name-v0`` imports that module first, as ``gymnasium.make`` does.
        Without a version, the latest is used.
    :return: The id to use, and a note if it differs from ``env_id``, otherwise None.
    :raises UserError: If there is no such environment, or it was withdrawn, or the module fails to import.
    """
    module, name = _split_id(env_id)
    if module:
        import_packages([module.rstrip(":")], needed_by=env_id)
    if name in RENAMED:
        current = RENAMED[name]
        return module + current, f"Gymnasium has renamed {name} to {current}; {current} is used."
    if name in registry:
        return env_id, None
    try:
        namespace, base, version = parse_env_id(name)
    except gym.error.Error:
        raise UserError(f"{env_id!r} is not an environment id; ids look like CartPole-v1.") from None
    latest = find_highest_version(namespace, base)
    if latest is None:
        hint = nearest(name, registry)
        raise UserError(f"Gymnasium knows no environment {name!r}.{hint}")
    current = get_env_id(namespace, base, latest)
    if version is None:
        return module + current, f"{name} has no version; the latest, {current}, is used."
    reason = "was withdrawn by Gymnasium" if version < latest else "does not exist"
    raise UserError(f"{name} {reason}; the current version is {current}.")


def is_atari(env_id: str) -> bool:
    """Whether an environment is one of ale-py's games. Nothing is imported.

    :param env_id: A Gymnasium id, known to its registry or not.
    """
    return _entry_point(env_id).startswith("ale_py")


def is_mujoco(env_id: str) -> bool:
    """Whether an environment is one of Gymnasium's own MuJoCo tasks. Nothing is imported.

    :param env_id: A Gymnasium id, known to its registry or not.
    """
    return _entry_point(env_id).startswith("gymnasium.envs.mujoco")


def import_packages(names: Iterable[str], *, needed_by: str = "--gym-packages") -> None:
    """Import a user's packages, which register their environments with Gymnasium.

    Only packages that the user named are imported, never names in a run directory.

    :param names: Names as in an ``import`` statement.
    :param needed_by: The source of the names, for the message.
    :raises UserError: If an import fails.
    """
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:  # a module can raise anything
            raise UserError(f"{needed_by} needs the module {name!r}: {_one_line(error)}") from error


def import_object(name: str) -> Any:
    """Import a user's class or function.

    :param name: ``package.module:Name``, or ``package.module.Name`` as in rl-baselines3-zoo's files.
    :return: The object.
    :raises UserError: If there is none.
    """
    module, _, attribute = name.rpartition(":" if ":" in name else ".")
    if not module or not attribute:
        raise UserError(f"{name!r} does not name an object of a module; write package.module:Name.")
    import_packages([module], needed_by=name)
    try:
        return getattr(importlib.import_module(module), attribute)
    except AttributeError:
        hint = nearest(attribute, dir(importlib.import_module(module)))
        raise UserError(f"The module {module!r} has no {attribute!r}.{hint}") from None


def is_builtin(env_id: str) -> bool:
    """Whether an environment is part of Gymnasium or ale-py.

    :param env_id: A Gymnasium id, known to its registry or not.
    """
    return _entry_point(env_id).startswith(("gymnasium.", "ale_py"))


def check_rom(env_id: str) -> None:
    """Check the ROM of an Atari game; other environments pass.

    :param env_id: A Gymnasium id, as for :func:`resolve_env_id`.
    :raises UserError: If ale-py finds no valid ROM of the game.
    """
    if not is_atari(env_id):
        return
    game = registered(env_id).kwargs["game"]
    try:
        found = roms.get_rom_path(game) is not None
        reason = "ale-py does not support it"
    except OSError as error:
        found, reason = False, " ".join(str(error).split())
    if not found:
        raise UserError(
            f"The ROM of the Atari game {game!r} ({env_id}) cannot be used: {reason}. The wheel of ale-py "
            "brings the ROMs: unset ALE_ROMS_DIR if it is set, else run "
            "`pip install --force-reinstall ale-py`."
        )


@contextmanager
def explained_failures(env_id: str) -> Iterator[None]:
    """A context that turns errors of ``gymnasium.make`` into a :class:`~srl.errors.UserError`.

    It handles unknown ids, missing optional packages (the message names the package), and arguments that the
    environment does not accept.

    :param env_id: The environment being made, for the message.
    """
    try:
        yield
    except (gym.error.Error, ImportError) as error:
        package = str(getattr(error, "name", "")).partition(".")[0]
        hint = " Run `pip install 'symmetric-rl[minatar]'`." if package == "minatar" else ""
        raise UserError(f"{env_id} cannot be made: {_one_line(error)}{hint}") from error
    except TypeError as error:
        # Gymnasium's mark of errors of the environment's constructor; any other TypeError is a bug
        if "was raised from the environment creator" not in str(error):
            raise
        raise UserError(f"{env_id} cannot be made with these env_kwargs: {_one_line(error)}") from error


def _split_id(env_id: str) -> tuple[str, str]:
    """Split ``module:Name-v0`` into ``"module:"``, empty without a module, and ``"Name-v0"``."""
    if not isinstance(env_id, str) or env_id.count(":") > 1:
        raise UserError(f"{env_id!r} is not an environment id; ids look like CartPole-v1.")
    module, colon, name = env_id.rpartition(":")
    return module + colon, name


def registered(env_id: str) -> gym.envs.registration.EnvSpec:
    """Return Gymnasium's registry entry of an id.

    :param env_id: A Gymnasium id, as for :func:`resolve_env_id`.
    :raises UserError: As :func:`resolve_env_id` does.
    """
    current, _ = resolve_env_id(env_id)
    return registry[current.rpartition(":")[2]]


def is_lunar_lander(env_id: str) -> bool:
    """Whether an environment is Gymnasium's LunarLander."""
    return _entry_point(env_id).startswith("gymnasium.envs.box2d.lunar_lander")


def _entry_point(env_id: str) -> str:
    """Return the entry point or module of an environment; empty for an unknown one."""
    try:
        entry_point = registered(str(env_id).rpartition(":")[2]).entry_point
    except UserError:
        return ""
    return entry_point if isinstance(entry_point, str) else getattr(entry_point, "__module__", "")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
