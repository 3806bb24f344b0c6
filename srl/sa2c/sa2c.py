"""Symmetric A2C."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import torch as th
from stable_baselines3 import A2C
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule

from srl.errors import UserError
from srl.losses import A2CLosses, Coefficient, LossWeights, a2c_losses
from srl.policies import POLICY_ALIASES
from srl.precision import Precision
from srl.symmetric import Evaluated, Samples, SymmetricLossMixin
from srl.updates import UpdateResult

SelfSA2C = TypeVar("SelfSA2C", bound="SA2C")

#: SB3's default of ``rms_prop_eps``.
_RMS_PROP_EPS = 1e-5


class SA2C(SymmetricLossMixin, A2C):
    """Symmetric Advantage Actor Critic (SA2C): A2C with a reverse loss in addition to its policy loss.

    Paper: Byun and Perrault, "Symmetric Reinforcement Learning Loss for Robust Learning on Diverse Tasks
    and Model Scales", ICML 2025, https://arxiv.org/abs/2405.17618

    The loss is ``alpha L_policy + beta L_reverse - ent_coef entropy + vf_coef L_value``. The gradient of
    ``log pi(a)`` is weighted by ``A (alpha - beta z pi(a))`` (``rce``) or ``A (alpha + 2 beta pi(a))``
    (``mae``): likely actions get a larger weight. ``alpha=1, beta=0`` is A2C.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy, or a class)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: The learning rate, it can be a function
        of the current progress remaining (from 1 to 0)
    :param n_steps: The number of steps to run for each environment per update
    :param gamma: Discount factor
    :param gae_lambda: Factor for trade-off of bias vs variance for Generalized Advantage Estimator
    :param ent_coef: Entropy coefficient for the loss calculation
    :param vf_coef: Value function coefficient for the loss calculation
    :param max_grad_norm: The maximum value for the gradient clipping
    :param rms_prop_eps: RMSProp epsilon
    :param use_rms_prop: Whether to use RMSprop (default) or Adam as optimizer. ``optimizer_kwargs`` in
        ``policy_kwargs`` are added to RMSprop's arguments, whereas SB3's A2C ignores them
    :param use_sde: Whether to use generalized State Dependent Exploration (Box actions, ``beta=0``)
    :param sde_sample_freq: Sample a new noise matrix every n steps when using gSDE
        Default: -1 (only sample at the beginning of the rollout)
    :param rollout_buffer_class: Rollout buffer class to use. If ``None``, it will be automatically selected
    :param rollout_buffer_kwargs: Keyword arguments to pass to the rollout buffer on creation
    :param normalize_advantage: Whether to normalize the advantage, per update
    :param stats_window_size: Window size for the rollout logging, specifying the number of episodes to
        average the reported success rate, mean episode length, and mean reward over
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation
    :param verbose: Verbosity level: 0 for no output, 1 for info messages, 2 for debug messages
    :param seed: Seed for the pseudo random generators, including that of the flip noise
    :param device: Device (cpu, cuda, ...) on which the code should be run
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :param alpha: Weight of the policy loss
    :param beta: Weight of the reverse loss. 0 disables it, which a Box action space requires
    :param z: The finite stand-in for log 0 in the reverse cross-entropy, negative
    :param reverse_loss: ``"rce"`` (reverse cross-entropy) or ``"mae"`` (mean absolute error)
    :param advantage_transform: ``"none"``, ``"sign"`` (-1, 0 or 1) or ``"bins"`` (fifths of the
        minibatch's extremes), applied last
    :param advantage_flip_prob: Probability with which the sign of each advantage is flipped, to study
        wrong advantage signs
    :param compile_update: Whether to compile the update, which takes about 15 seconds once for each shape and
        makes it several times faster for small networks. Results differ in the last bits. If it cannot be
        compiled, a warning gives the reason, and the uncompiled update is used
    :param precision: ``"float32"``, or ``"bf16"`` to compute the features extractor in bfloat16 wherever the
        policy is evaluated, which is faster for images. Parameters, gradients, optimizer, heads and losses
        stay in float32
    :raises UserError: (a ``ValueError``) for a parameter out of range, a Box action space with ``beta != 0``,
        unsupported spaces, an ``rms_prop_eps`` without effect, or a ``precision`` that
        the device does not support or that has no effect
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = POLICY_ALIASES

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 7e-4,
        n_steps: int = 5,
        gamma: float = 0.99,
        gae_lambda: float = 1.0,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        rms_prop_eps: float = _RMS_PROP_EPS,
        use_rms_prop: bool = True,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        normalize_advantage: bool = False,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        alpha: float = 0.5,
        beta: float = 1.0,
        z: float = -1.0,
        reverse_loss: str = "rce",
        advantage_transform: str = "none",
        advantage_flip_prob: float = 0.0,
        compile_update: bool = False,
        precision: Precision = "float32",
    ):
        policy_kwargs = _with_rms_prop(policy_kwargs, rms_prop_eps, use_rms_prop)
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            rms_prop_eps=rms_prop_eps,
            use_rms_prop=use_rms_prop,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            normalize_advantage=normalize_advantage,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
        )
        self._init_symmetric_loss(
            alpha=alpha,
            beta=beta,
            z=z,
            reverse_loss=reverse_loss,
            advantage_transform=advantage_transform,
            advantage_flip_prob=advantage_flip_prob,
            compile_update=compile_update,
            precision=precision,
        )
        if _init_setup_model:
            self._setup_model()

    def _losses_of(
        self,
        evaluated: Evaluated,
        data: Samples,
        advantages: th.Tensor,
        coefficients: Mapping[str, Coefficient],
    ) -> A2CLosses:
        return a2c_losses(
            *evaluated,
            advantages=advantages,
            returns=data.returns,
            weights=LossWeights.of(coefficients),
            has_probabilities=self._has_probabilities,
            reverse_loss=self.reverse_loss,
            z=coefficients["z"],
        )

    @property
    def _minibatch_size(self) -> int:
        # The whole rollout
        return self.n_steps * self.n_envs

    def _record_update(self, result: UpdateResult, explained_variance: float) -> None:
        statistics = result.statistics
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/explained_variance", explained_variance)
        self.logger.record("train/entropy_loss", statistics.mean("entropy_loss"))
        self.logger.record("train/policy_loss", statistics.mean("policy_loss"))
        self.logger.record("train/value_loss", statistics.mean("value_loss"))
        self._record_symmetric_loss(statistics)

    def learn(
        self: SelfSA2C,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 100,
        tb_log_name: str = "SA2C",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfSA2C:
        return super().learn(
            total_timesteps=total_timesteps,
            callback=callback,
            log_interval=log_interval,
            tb_log_name=tb_log_name,
            reset_num_timesteps=reset_num_timesteps,
            progress_bar=progress_bar,
        )


def _with_rms_prop(
    policy_kwargs: dict[str, Any] | None, rms_prop_eps: float, use_rms_prop: bool
) -> dict[str, Any]:
    """Add RMSprop's arguments to those in ``policy_kwargs``, which SB3's A2C would drop.

    :return: A new dictionary, since SB3's A2C changes its argument.
    :raises UserError: If ``rms_prop_eps`` is given and has no effect.
    """
    policy_kwargs = dict(policy_kwargs or {})
    optimizer_kwargs = policy_kwargs.get("optimizer_kwargs") or {}
    reason = None
    if "optimizer_class" in policy_kwargs:
        reason = "policy_kwargs names an optimizer_class"
    elif not use_rms_prop:
        reason = "use_rms_prop is False"
    elif optimizer_kwargs.get("eps", rms_prop_eps) != rms_prop_eps:
        reason = f"optimizer_kwargs has eps={optimizer_kwargs['eps']}"
    if reason is not None and rms_prop_eps != _RMS_PROP_EPS:
        raise UserError(
            f"rms_prop_eps={rms_prop_eps} has no effect, because {reason}. Leave it out, and set eps in the "
            "optimizer_kwargs of policy_kwargs."
        )
    if use_rms_prop and optimizer_kwargs and "optimizer_class" not in policy_kwargs:
        defaults = {"alpha": 0.99, "eps": rms_prop_eps, "weight_decay": 0}
        policy_kwargs["optimizer_class"] = th.optim.RMSprop
        policy_kwargs["optimizer_kwargs"] = {**defaults, **optimizer_kwargs}
    return policy_kwargs
