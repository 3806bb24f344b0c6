"""Common parts of SA2C and SPPO: the parameters of the symmetric loss, and the parts of an update."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.save_util import recursive_getattr
from stable_baselines3.common.type_aliases import (
    DictRolloutBufferSamples,
    GymEnv,
    MaybeCallback,
    RolloutBufferSamples,
    TensorDict,
)
from stable_baselines3.common.utils import explained_variance
from stable_baselines3.common.vec_env import VecEnv

from srl.advantages import ADVANTAGE_TRANSFORMS, PreparedAdvantages, prepare_advantages
from srl.compiled import CompiledUpdate, whole_rollout
from srl.errors import NotCompiled, UserError, nearest
from srl.evaluation import eval_callbacks, match_wrappers
from srl.losses import REVERSE_LOSSES, A2CLosses, Coefficient, PPOLosses
from srl.policies import PolicyMixin
from srl.precision import Precision, check_precision
from srl.rewards import explained
from srl.spaces import check_supported, has_start
from srl.updates import UpdateResult, UpdateStatistics, check_losses

#: A minibatch, as SB3's rollout buffers give it.
Samples = RolloutBufferSamples | DictRolloutBufferSamples

#: Separates the flip noise's random stream from others with the same seed.
_FLIP_NOISE_STREAM = 1


def check_symmetric_loss(
    *,
    alpha: float,
    beta: float,
    z: float,
    reverse_loss: str,
    advantage_transform: str = "none",
    advantage_flip_prob: float = 0.0,
) -> None:
    """Check the parameters of the symmetric loss.

    :raises UserError: For a weight that is negative or not finite, ``z >= 0``, an unknown reverse loss or
        transform, or a probability outside [0, 1].
    """
    for name, weight in (("alpha", alpha), ("beta", beta)):
        if not (_is_finite(weight) and weight >= 0):
            raise UserError(f"{name}={weight} is not a finite number >= 0; it is the weight of a loss.")
    if not (_is_finite(z) and z < 0):
        raise UserError(f"z={z} is not a finite number < 0; it replaces log 0, and the paper uses -1.")
    for name, value, known in (
        ("reverse_loss", reverse_loss, REVERSE_LOSSES),
        ("advantage_transform", advantage_transform, ADVANTAGE_TRANSFORMS),
    ):
        if value not in known:
            raise UserError(f"{name}={value!r} is not one of {', '.join(known)}.{nearest(str(value), known)}")
    if not (_is_finite(advantage_flip_prob) and 0 <= advantage_flip_prob <= 1):
        raise UserError(f"advantage_flip_prob={advantage_flip_prob} is not a probability in [0, 1].")


def _is_finite(value: Any) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


class Evaluated(NamedTuple):
    """A minibatch under the current policy, tensors of shape ``(..., batch_size)``."""

    values: th.Tensor
    log_prob: th.Tensor
    entropy: th.Tensor | None


class SymmetricLossMixin(OnPolicyAlgorithm):
    """The parameters of the symmetric loss, checked, and the update that both algorithms use.

    A subclass calls :meth:`_init_symmetric_loss` before SB3's constructor builds the model, and computes its
    losses in :meth:`_losses_of`.
    """

    #: Passes over a rollout in an update.
    n_epochs: int = 1
    alpha: float
    beta: float
    z: float
    reverse_loss: str
    advantage_transform: str
    advantage_flip_prob: float
    normalize_advantage: bool
    compile_update: bool
    precision: Precision

    def _init_symmetric_loss(self, *, compile_update: bool, precision: Precision, **parameters: Any) -> None:
        check_symmetric_loss(**parameters)
        check_precision(precision, self.device.type)
        self.precision = precision
        for name, value in parameters.items():
            setattr(self, name, value)
        self._flip_rng = np.random.default_rng()
        self.compile_update = compile_update
        self._compiled: CompiledUpdate | None = None
        #: The reason why the update could not be compiled.
        self.not_compiled: str | None = None

    def _check_symmetric_loss(self) -> None:
        """Check the action space, and again the parameters, which ``load`` and users set as attributes."""
        names = ("alpha", "beta", "z", "reverse_loss", "advantage_transform", "advantage_flip_prob")
        check_symmetric_loss(**{name: getattr(self, name) for name in names})
        if self.beta != 0 and isinstance(self.action_space, spaces.Box):
            raise UserError(
                f"{type(self).__name__} with beta={self.beta} needs the probability of an action, and the "
                f"Box action space {self.action_space} has only a density. Discretize the actions, for "
                "example with srl.envs.DiscretizeAction(env, bins=11) or `srl train --algo "
                f"d{type(self).__name__.lower()}`, or set beta=0."
            )

    def _setup_model(self) -> None:
        self._check_symmetric_loss()
        if has_start(self.observation_space, self.action_space):
            name = self.policy_class.__name__
            if not issubclass(self.policy_class, PolicyMixin):
                raise UserError(
                    f"The policy {name} counts actions and observations from 0, and the spaces are "
                    f"{self.observation_space} and {self.action_space}. Derive {name} from the policies of "
                    "srl.policies, or use spaces with start=0."
                )
        if self.policy_kwargs.get("squash_output") and not self.use_sde:
            raise UserError(
                "squash_output=True has no effect without gSDE. Set use_sde=True, or leave it out."
            )
        super()._setup_model()
        self.set_policy_precision()
        # The results of a compiled update differ in the last bits anyway
        if self.compile_update and isinstance(self.policy, PolicyMixin):
            self.policy.numpy_acting = True
            self.policy.channels_last = self.device.type == "cpu"

    def set_policy_precision(self) -> None:
        """Set the precision of the policy's features extractors.

        :raises UserError: If it has no effect.
        """
        if self.precision == "float32":
            return
        if not isinstance(self.policy, PolicyMixin):
            name = type(self.policy).__name__
            raise UserError(
                f"precision='bf16' has no effect: derive {name} from the policies of srl.policies."
            )
        if not any(True for _ in self.policy.features_extractor.parameters()):
            name = type(self.policy.features_extractor).__name__
            raise UserError(
                f"precision='bf16' has no effect: the features extractor {name} has no parameters. Leave it "
                "out."
            )
        self.policy.precision = self.precision

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        self._check_symmetric_loss()
        check_precision(self.precision, self.device.type)
        return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        assert self.env is not None
        for evaluation in eval_callbacks(callback):
            evaluation.eval_env = match_wrappers(evaluation.eval_env, self.env)
        return super()._init_callback(callback, progress_bar)

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        if isinstance(env.action_space, spaces.Space):  # SB3 converts environments of OpenAI Gym
            check_supported(env.observation_space, env.action_space)
        return OnPolicyAlgorithm._wrap_env(env, verbose, monitor_wrapper)

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        try:
            return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        except (TypeError, ValueError) as error:
            reason = explained(error)
            if reason is error:
                raise
            raise reason from error

    def set_parameters(
        self, load_path_or_dict: str | TensorDict, exact_match: bool = True, device: th.device | str = "auto"
    ) -> None:
        """Load parameters of the networks and the optimizer, as SB3 does.

        :param load_path_or_dict: A saved model, or a dictionary as :meth:`get_parameters` returns it.
        :param exact_match: Whether all parameters of every network are required.
        :param device: Device on which a file is loaded.
        :raises UserError: If a name is not that of a network or an optimizer, such as ``"alpha"``, or the
            parameters of the symmetric loss are out of range.
        """
        self._check_symmetric_loss()
        if isinstance(load_path_or_dict, dict):
            for name in load_path_or_dict:
                if not isinstance(recursive_getattr(self, name, None), th.nn.Module | th.optim.Optimizer):
                    raise UserError(
                        f"set_parameters: {name!r} is not a network or an optimizer. Pass hyperparameters to "
                        f"{type(self).__name__}() or to {type(self).__name__}.load()."
                    )
        super().set_parameters(load_path_or_dict, exact_match, device)

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed the random generators, including that of the advantage flip noise.

        :param seed: None does not change them.
        """
        super().set_random_seed(seed)
        if seed is not None:
            self._flip_rng = np.random.default_rng([seed, _FLIP_NOISE_STREAM])

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_compiled": None}

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_compiled", "not_compiled"]

    def train(self) -> None:
        """Update policy using the currently gathered rollout buffer.

        :raises FloatingPointError: If a loss is NaN or infinite.
        """
        # Switch to train mode (this affects batch norm / dropout)
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        compiled = self.compile_now()
        if compiled is None:
            result = self._update()
        else:
            result = compiled.run(whole_rollout(self.rollout_buffer), np.random.permutation, self.n_epochs)
        self._n_updates += result.n_epochs
        if result.stopped and self.verbose >= 1:
            print(
                f"Early stopping at step {result.n_epochs - 1} due to reaching max kl: "
                f"{result.statistics.mean('approx_kl', last=1):.2f}"
            )
        self._record_update(result, self._explained_variance())
        check_losses(self.logger)

    def _update(self) -> UpdateResult:
        coefficients = self._coefficients()
        statistics = UpdateStatistics()
        epoch = n_minibatches = 0
        for epoch in range(1, self.n_epochs + 1):
            n_minibatches = 0
            for rollout_data in self.rollout_buffer.get(self._minibatch_size):
                n_minibatches += 1
                flip_mask = self._flip_mask(len(rollout_data.advantages))
                losses, prepared = self._losses(
                    self._evaluate(rollout_data), rollout_data, flip_mask, coefficients
                )
                statistics.add(losses, prepared)
                # The only place that waits for the device, and only if there is a limit
                limit = self._kl_limit
                if limit is not None and isinstance(losses, PPOLosses) and losses.approx_kl.item() > limit:
                    return UpdateResult(statistics, epoch, n_minibatches, stopped=True)
                self._optimize(losses.loss)
        return UpdateResult(statistics, epoch, n_minibatches, stopped=False)

    def _flip_mask(self, n_samples: int) -> th.Tensor | None:
        """Draw the mask of the advantages whose sign the flip noise flips; None without noise."""
        if self.advantage_flip_prob == 0:
            return None
        flips = self._flip_rng.random(n_samples) < self.advantage_flip_prob
        return th.as_tensor(flips, device=self.device)

    def _coefficients(self) -> dict[str, float]:
        """The numbers in the loss that may change between updates."""
        names = ("alpha", "beta", "z", "ent_coef", "vf_coef")
        return {name: getattr(self, name) for name in names}

    def _evaluate(self, data: Samples) -> Evaluated:
        """Values, log probabilities and entropies of a minibatch under the current policy."""
        actions = data.actions
        if isinstance(self.action_space, spaces.Discrete):
            actions = actions.long().flatten()
        values, log_prob, entropy = self.policy.evaluate_actions(data.observations, actions)
        return Evaluated(values.flatten(), log_prob, entropy)

    @property
    def _has_probabilities(self) -> bool:
        """Whether actions have a probability, which the reverse loss needs, and not a density."""
        return not isinstance(self.action_space, spaces.Box)

    @property
    def _kl_limit(self) -> float | None:
        """The approximate KL divergence above which an update ends; None for no limit."""
        return None

    def _losses(
        self,
        evaluated: Evaluated,
        data: Samples,
        flip_mask: th.Tensor | None,
        coefficients: Mapping[str, Coefficient],
    ) -> tuple[A2CLosses | PPOLosses, PreparedAdvantages]:
        """The losses of a minibatch, or of a minibatch of each member of a population with the same options.

        :param evaluated: The minibatch under the current policy.
        :param data: The minibatch, tensors of shape ``(..., batch_size)``.
        :param flip_mask: Mask of the advantages that change sign; None for none.
        :param coefficients: :meth:`_coefficients`, as numbers or tensors without dimensions; of members,
            those of :class:`~srl.losses.LossWeights` of shape ``(...)`` and the others of shape ``(..., 1)``.
        """
        prepared = prepare_advantages(
            data.advantages,
            flip_mask=flip_mask,
            normalize=self.normalize_advantage,
            transform=self.advantage_transform,
        )
        return self._losses_of(evaluated, data, prepared.advantages, coefficients), prepared

    def _losses_of(
        self,
        evaluated: Evaluated,
        data: Samples,
        advantages: th.Tensor,
        coefficients: Mapping[str, Coefficient],
    ) -> A2CLosses | PPOLosses:
        """The losses of a minibatch with prepared advantages."""
        raise NotImplementedError

    def _record_update(self, result: UpdateResult, explained_variance: float) -> None:
        """Log an update with SB3's names and order."""
        raise NotImplementedError

    def _trace_options(self) -> tuple[Any, ...]:
        """The options that a compiled update depends on, besides shapes and the optimizer's options."""
        names = ("normalize_advantage", "advantage_transform", "reverse_loss", "importance_weighting")
        options = (getattr(self, name, None) for name in names)
        return (*options, tuple(self._coefficients()), self._kl_limit, self.precision)

    @property
    def _minibatch_size(self) -> int:
        """Size of a minibatch; the last one may be smaller."""
        raise NotImplementedError

    def compile_now(self, others: Sequence[CompiledUpdate] = ()) -> CompiledUpdate | None:
        """Compile the update, or load it from the user's cache, unless that was done for the current shapes.

        :param others: Updates of other models. If one differs only in coefficients, its code is shared.
        :return: None if the update is not compiled; then ``not_compiled`` is the reason, if there is one.
        """
        if not self.compile_update or self.not_compiled is not None:
            return None
        try:
            rollout = whole_rollout(self.rollout_buffer)
            if self._compiled is None or not self._compiled.fits(rollout, self._minibatch_size):
                self._compiled = CompiledUpdate(self, rollout, self._minibatch_size, others)
        except NotCompiled as error:
            self.not_compiled = str(error)
            warnings.warn(f"{type(self).__name__}: the update is not compiled: {error}", stacklevel=2)
            return None
        return self._compiled

    def _optimize(self, loss: th.Tensor) -> None:
        optimizer = self.policy.optimizer
        # SB3's optimizer has all parameters of the policy, and collecting them from the modules is slow
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for parameter in parameters:
            parameter.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        th.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
        optimizer.step()

    def _explained_variance(self) -> float:
        buffer = self.rollout_buffer
        columns = (buffer.values, buffer.returns)
        # The rounding of sums depends on the order of samples; this is that of minibatches
        in_order = columns if buffer.generator_ready else map(buffer.swap_and_flatten, columns)
        values, returns = (column.flatten() for column in in_order)
        return float(explained_variance(values, returns))

    def _record_symmetric_loss(self, statistics: UpdateStatistics) -> None:
        """Log the values that SB3's algorithm does not log."""
        if statistics.has("reverse_loss"):
            self.logger.record("train/reverse_loss", statistics.mean("reverse_loss"))
        self.logger.record("train/advantage_sign_change", statistics.advantage_sign_change)
        self.logger.record("train/advantage_abs_max", statistics.advantage_abs_max)
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", th.exp(self.policy.log_std).mean().item())
