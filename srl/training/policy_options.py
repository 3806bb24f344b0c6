"""The arguments of SB3's policies, from the plain YAML of a hyperparameter file."""

from __future__ import annotations

from typing import Any

import torch as th
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from srl.config.hyperparams import PolicyOptions
from srl.envs.registration import import_object
from srl.errors import UserError

ACTIVATIONS = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}
_OPTIMIZERS: dict[str, type[th.optim.Optimizer]] = {
    "Adam": th.optim.Adam,
    "AdamW": th.optim.AdamW,
    "RMSprop": th.optim.RMSprop,
    "RMSpropTFLike": RMSpropTFLike,
    "SGD": th.optim.SGD,
}


def policy_kwargs(options: PolicyOptions) -> dict[str, Any]:
    """The options that were given, with classes in place of their names.

    :param options: From a hyperparameter file or the command line.
    :raises UserError: If a named class does not exist, or SB3 does not accept it.
    """
    kwargs = options.model_dump(exclude_none=True)
    if "activation_fn" in kwargs:
        kwargs["activation_fn"] = ACTIVATIONS[kwargs["activation_fn"]]
    if "optimizer_class" in kwargs:
        kwargs["optimizer_class"] = _OPTIMIZERS[kwargs["optimizer_class"]]
    if "features_extractor_class" in kwargs:
        name = kwargs["features_extractor_class"]
        kwargs["features_extractor_class"] = extractor = import_object(name)
        if not (isinstance(extractor, type) and issubclass(extractor, BaseFeaturesExtractor)):
            raise UserError(
                f"Hyperparameter policy_kwargs.features_extractor_class: {name} is not a subclass of "
                "stable_baselines3.common.torch_layers.BaseFeaturesExtractor."
            )
    return kwargs


def checking_optimizer(optimizer: type[th.optim.Optimizer]) -> type[th.optim.Optimizer]:
    """A copy of an optimizer that checks its arguments and ignores the parameters.

    The first optimizer with parameters in a process imports modules, which takes most of a second.

    :param optimizer: The optimizer.
    :return: A class whose constructor raises :class:`~srl.errors.UserError` for wrong arguments.
    """

    class CheckingOptimizer(optimizer):  # type: ignore[misc, valid-type]
        def __init__(self, params: Any, **arguments: Any):
            try:
                super().__init__(params, **arguments)
            except (TypeError, ValueError, RuntimeError) as error:
                raise UserError(
                    f"Hyperparameter policy_kwargs.optimizer_kwargs: {optimizer.__name__} does not take "
                    f"{arguments}: {error}."
                ) from error

        def add_param_group(self, param_group: dict[str, Any]) -> None:
            pass

    return CheckingOptimizer
