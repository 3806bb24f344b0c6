"""Environment ids: renamed versions and helpful error messages."""

from __future__ import annotations

import sys

import gymnasium as gym
import pytest
from ale_py import roms

from srl.envs.registration import check_rom, explained_failures, is_atari, is_mujoco, resolve_env_id
from srl.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:.*is out of date:DeprecationWarning")


@pytest.mark.parametrize(
    "env_id",
    ["CartPole-v1", "HalfCheetah-v4", "BipedalWalker-v3", "PongNoFrameskip-v4", "ALE/Pong-v5", "Pong-v4"],
)
def test_current_id_is_unchanged_without_notice(env_id):
    assert resolve_env_id(env_id) == (env_id, None)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("LunarLanderContinuous-v2", "LunarLanderContinuous-v3"),
        ("LunarLander-v2", "LunarLander-v3"),
        ("CartPole", "CartPole-v1"),
    ],
)
def test_renamed_or_unversioned_id_resolves_to_current_id_with_notice(old, new):
    current, notice = resolve_env_id(old)
    assert current == new
    assert current in gym.registry
    assert old in notice
    assert new in notice
    assert "\n" not in notice


@pytest.mark.parametrize(
    ("env_id", "says"),
    [
        ("halfcheeta-v4", "HalfCheetah-v4"),
        ("pongnoframeskip-v4", "PongNoFrameskip-v4"),
        ("BipedalWalker-v2", "withdrawn by Gymnasium; the current version is BipedalWalker-v3"),
        ("CartPole-v9", "does not exist; the current version is CartPole-v1"),
        ("Qqqqqqq-v0", "knows no environment 'Qqqqqqq-v0'."),
        ("a space-v0", "not an environment id"),
        ("", "not an environment id"),
        ("a:b:C-v0", "not an environment id"),
        ("no_such_module:CartPole-v1", "no_such_module"),
        (":CartPole-v1", "needs the module"),
        (None, "not an environment id"),
    ],
)
def test_unknown_or_malformed_id_raises_helpful_user_error(env_id, says):
    with pytest.raises(UserError) as error:
        resolve_env_id(env_id)
    assert says in str(error.value)


def test_id_with_module_prefix_imports_the_module(tmp_path, monkeypatch):
    (tmp_path / "srl_test_module.py").write_text(
        "import gymnasium\n"
        "gymnasium.register('FromModule-v0', 'gymnasium.envs.classic_control:CartPoleEnv')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        assert resolve_env_id("srl_test_module:FromModule-v0") == ("srl_test_module:FromModule-v0", None)
        assert resolve_env_id("srl_test_module:LunarLander-v2")[0] == "srl_test_module:LunarLander-v3"
        assert not is_atari("srl_test_module:FromModule-v0")
        gym.make("srl_test_module:FromModule-v0").close()
    finally:
        gym.registry.pop("FromModule-v0", None)
        sys.modules.pop("srl_test_module", None)


@pytest.mark.parametrize(
    ("env_id", "atari", "mujoco"),
    [
        ("PongNoFrameskip-v4", True, False),
        ("ALE/Pong-v5", True, False),
        ("HalfCheetah-v4", False, True),
        ("LunarLanderContinuous-v2", False, False),
    ],
)
def test_kind_of_environment_is_derived_from_entry_point(env_id, atari, mujoco):
    assert is_atari(env_id) is atari
    assert is_mujoco(env_id) is mujoco


def test_kind_of_environment_with_callable_entry_point_is_detected():
    gym.register("Function-v0", entry_point=lambda: None)
    try:
        assert not is_atari("Function-v0")
    finally:
        del gym.registry["Function-v0"]


@pytest.mark.parametrize("env_id", ["PongNoFrameskip-v4", "ALE/MsPacman-v5", "CartPole-v1"])
def test_rom_check_passes_if_rom_exists_or_is_not_needed(env_id):
    check_rom(env_id)


def test_missing_rom_raises_user_error_with_game_name(tmp_path, monkeypatch):
    monkeypatch.setenv("ALE_ROMS_DIR", str(tmp_path))
    with pytest.raises(UserError, match=r"(?s)'ms_pacman'.*No such file.*unset ALE_ROMS_DIR"):
        check_rom("MsPacmanNoFrameskip-v4")


def test_missing_rom_folder_raises_user_error(tmp_path, monkeypatch):
    monkeypatch.setenv("ALE_ROMS_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="doesn't exist"):
        check_rom("PongNoFrameskip-v4")


def test_damaged_rom_raises_user_error(tmp_path, monkeypatch):
    (tmp_path / "pong.bin").write_bytes(b"not a game")
    monkeypatch.setenv("ALE_ROMS_DIR", str(tmp_path))
    with pytest.raises(UserError, match="hash of pong"):
        check_rom("PongNoFrameskip-v4")


def test_game_that_ale_does_not_support_raises_user_error(monkeypatch):
    monkeypatch.setattr(roms, "get_rom_path", lambda game: None)
    with pytest.raises(UserError, match="does not support"):
        check_rom("PongNoFrameskip-v4")


def make(env_id: str, **kwargs: object) -> gym.Env:
    with explained_failures(env_id):
        return gym.make(env_id, **kwargs)


def test_missing_package_raises_user_error_with_its_name(monkeypatch):
    for module in [name for name in sys.modules if name.startswith("gymnasium.envs.box2d")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "Box2D", None)
    with pytest.raises(UserError, match=r"LunarLander-v3 cannot be made: .*gymnasium\[box2d\]"):
        make("LunarLander-v3")


def test_environment_moved_to_another_package_raises_user_error_with_its_name():
    with pytest.raises(UserError, match="gymnasium-robotics"):
        make("HalfCheetah-v2")


def test_unexpected_env_kwarg_raises_user_error_with_its_name():
    with pytest.raises(UserError, match=r"env_kwargs: .*unexpected keyword argument 'wings'"):
        make("CartPole-v1", wings=2)


def test_unrelated_error_passes_unchanged():
    with pytest.raises(TypeError, match="a bug"), explained_failures("CartPole-v1"):
        raise TypeError("a bug")
