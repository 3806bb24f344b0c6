"""The library works with SB3's dependencies only; commands name the extra that they need."""

import subprocess
import sys

import pytest

#: Packages that only the extras install.
EXTRAS = (
    "ale_py", "Box2D", "cv2", "mujoco", "pydantic", "rich", "scipy", "tensorboard", "tqdm", "tyro", "yaml",
    "rliable", "pyarrow", "jinja2",
)  # fmt: skip
WITHOUT_EXTRAS = f"""
import sys

class WithoutExtras:
    # It finds no module of the extras

    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        hidden = name.partition(".")[0] in {EXTRAS}
        return None if hidden else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = map(WithoutExtras, sys.meta_path)
"""


def python(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT_EXTRAS + code]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.slow
def test_algorithms_train_without_extras_with_noise_and_discretized_actions():
    ended = python("""
import gymnasium as gym, srl
from srl.envs import DiscretizeAction, RewardNoise, VecRewardNoise
from stable_baselines3.common.env_util import make_vec_env

noisy = VecRewardNoise(make_vec_env("CartPole-v1"), "gaussian:0.1", seed=0)
model = srl.SPPO("MlpPolicy", noisy, n_steps=64, batch_size=64, n_epochs=1, device="cpu").learn(64)
assert model.num_timesteps == 64
pendulum = DiscretizeAction(RewardNoise(gym.make("Pendulum-v1"), "gaussian:0.1"), 11)
srl.SA2C("MlpPolicy", pendulum, device="cpu").learn(5)
""")
    assert ended.returncode == 0, ended.stderr


def test_command_without_extras_names_the_pip_command():
    ended = python("from srl.__main__ import main; sys.argv = ['srl', '--version']; main()")
    assert ended.returncode == 2
    assert ended.stderr.startswith("srl: The command srl needs the package ")
    assert ended.stderr.endswith(": pip install 'symmetric-rl[experiments]'.\n")
    assert ended.stderr.count("\n") == 1


def test_language_models_without_experiments_name_the_pip_command():
    ended = python("""
try:
    from srl.llm import SPPOConfig, SPPOTrainer
except ImportError as error:
    print(error)
""")
    assert ended.stdout == "srl.llm needs the package pydantic: pip install 'symmetric-rl[experiments]'.\n"


def test_environments_without_extras_name_the_pip_command():
    ended = python("""
import srl.envs
try:
    srl.envs.make_train_env
except ImportError as error:
    print(error)
""")
    assert ended.stdout.startswith("srl.envs.make_train_env needs the package ")
    assert ended.stdout.endswith(": pip install 'symmetric-rl[experiments]'.\n")
