"""Match evaluation environments to training environments with wrappers for training only.

SB3's ``EvalCallback`` copies the statistics of ``VecNormalize`` by walking the wrappers of both environments
in parallel. The evaluation environment therefore needs as many wrappers as the training environment.
"""

from __future__ import annotations

from collections.abc import Iterator

from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EvalCallback, EventCallback
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn


class TrainingOnlyWrapper(VecEnvWrapper):
    """Base class of wrappers for training only, such as reward noise.

    An instance of this class itself is a placeholder in an evaluation environment.
    """

    def reset(self) -> VecEnvObs:
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        return self.venv.step_wait()


def match_wrappers(eval_env: VecEnv, training_env: VecEnv) -> VecEnv:
    """Add a placeholder to an evaluation environment for each wrapper that only training has.

    :param eval_env: The evaluation environment; its wrappers are changed in place to insert placeholders
        below them.
    :param training_env: The training environment.
    :return: The evaluation environment, wrapped if the outermost wrapper of training is for training only.
    """
    while type(eval_env) is TrainingOnlyWrapper:
        eval_env = eval_env.venv  # of an earlier training environment
    if isinstance(training_env, TrainingOnlyWrapper) and not isinstance(eval_env, TrainingOnlyWrapper):
        eval_env = TrainingOnlyWrapper(eval_env)
    if isinstance(training_env, VecEnvWrapper) and isinstance(eval_env, VecEnvWrapper):
        eval_env.venv = match_wrappers(eval_env.venv, training_env.venv)
    return eval_env


def eval_callbacks(callback: MaybeCallback) -> Iterator[EvalCallback]:
    """Find each ``EvalCallback`` in the argument ``callback`` of ``learn``.

    :param callback: A callback, a list of callbacks, a function, or None.
    """
    if isinstance(callback, EvalCallback):
        yield callback
    children: list[BaseCallback] = []
    if isinstance(callback, list):
        children = callback
    elif isinstance(callback, CallbackList):
        children = callback.callbacks
    elif isinstance(callback, EventCallback) and callback.callback is not None:
        children = [callback.callback]
    for child in children:
        yield from eval_callbacks(child)
