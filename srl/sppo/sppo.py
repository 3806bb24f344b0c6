"""Symmetric PPO."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule

from srl.losses import Coefficient, LossWeights, PPOLosses, ppo_losses
from srl.policies import POLICY_ALIASES
from srl.precision import Precision
from srl.symmetric import Evaluated, Samples, SymmetricLossMixin
from srl.updates import UpdateResult

SelfSPPO = TypeVar("SelfSPPO", bound="SPPO")


class SPPO(SymmetricLossMixin, PPO):
    """Symmetric Proximal Policy Optimization (SPPO): PPO with a reverse loss in addition to its policy loss.

    Paper: Byun and Perrault, "Symmetric Reinforcement Learning Loss for Robust Learning on Diverse Tasks
    and Model Scales", ICML 2025, https://arxiv.org/abs/2405.17618. Not Self-Play Preference Optimization,
    which has the same acronym.

    The loss of a minibatch is ``alpha L_policy + beta L_reverse - ent_coef entropy + vf_coef L_value``.
    As published (``importance_weighting=True``), the gradient of its first two terms is PPO's policy
    gradient times ``alpha - beta z`` (``rce``) or ``alpha + 2 beta`` (``mae``): compared with PPO,
    the balance with the value loss, the entropy bonus and the gradient clipping changes, so that the fair
    comparison is PPO with the same policy coefficient. ``importance_weighting=False`` weights the gradient
    of ``log pi(a)`` by ``A (alpha ratio - beta z pi(a))`` where PPO does not clip, which is not a rescaling.
    ``alpha=1, beta=0`` is PPO.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy, or a class)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: The learning rate, it can be a function
        of the current progress remaining (from 1 to 0)
    :param n_steps: The number of steps to run for each environment per update
    :param batch_size: Minibatch size
    :param n_epochs: Number of epochs when optimizing the surrogate loss
    :param gamma: Discount factor
    :param gae_lambda: Factor for trade-off of bias vs variance for Generalized Advantage Estimator
    :param clip_range: Clipping parameter, it can be a function of the current progress
        remaining (from 1 to 0)
    :param clip_range_vf: Clipping parameter for the value function, it can be a function of the
        current progress remaining (from 1 to 0). None (default): no clipping of the value function
    :param normalize_advantage: Whether to normalize the advantage, per minibatch
    :param ent_coef: Entropy coefficient for the loss calculation
    :param vf_coef: Value function coefficient for the loss calculation
    :param max_grad_norm: The maximum value for the gradient clipping
    :param use_sde: Whether to use generalized State Dependent Exploration (Box actions, ``beta=0``)
    :param sde_sample_freq: Sample a new noise matrix every n steps when using gSDE
        Default: -1 (only sample at the beginning of the rollout)
    :param rollout_buffer_class: Rollout buffer class to use. If ``None``, it will be automatically selected
    :param rollout_buffer_kwargs: Keyword arguments to pass to the rollout buffer on creation
    :param target_kl: Limit the KL divergence between updates: an update stops early once it passes
        1.5 times this. None (default): no limit. A limit makes each minibatch wait for the device
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
    :param importance_weighting: Whether to divide the reverse loss by ``pi_old(a)``, as published.
        False gives likely actions more weight, as in SA2C
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
        or a ``precision`` that the device does not support or that has no effect
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = POLICY_ALIASES

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        n_steps: int = 2048,
        batch_size: int = 64,
        n_epochs: int = 10,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule = 0.2,
        clip_range_vf: float | Schedule | None = None,
        normalize_advantage: bool = True,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        target_kl: float | None = None,
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
        importance_weighting: bool = True,
        advantage_transform: str = "none",
        advantage_flip_prob: float = 0.0,
        compile_update: bool = False,
        precision: Precision = "float32",
    ):
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            batch_size=batch_size,
            n_epochs=n_epochs,
            gamma=gamma,
            gae_lambda=gae_lambda,
            clip_range=clip_range,
            clip_range_vf=clip_range_vf,
            normalize_advantage=normalize_advantage,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            target_kl=target_kl,
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
        self.importance_weighting = importance_weighting
        if _init_setup_model:
            self._setup_model()

    def _losses_of(
        self,
        evaluated: Evaluated,
        data: Samples,
        advantages: th.Tensor,
        coefficients: Mapping[str, Coefficient],
    ) -> PPOLosses:
        return ppo_losses(
            *evaluated,
            old_values=data.old_values,
            old_log_prob=data.old_log_prob,
            advantages=advantages,
            returns=data.returns,
            clip_range=coefficients["clip_range"],
            clip_range_vf=coefficients.get("clip_range_vf"),
            weights=LossWeights.of(coefficients),
            has_probabilities=self._has_probabilities,
            reverse_loss=self.reverse_loss,
            z=coefficients["z"],
            importance_weighting=self.importance_weighting,
        )

    def _coefficients(self) -> dict[str, float]:
        schedules = {"clip_range": self.clip_range, "clip_range_vf": self.clip_range_vf}
        now = self._current_progress_remaining
        return super()._coefficients() | {
            name: float(schedule(now))  # type: ignore[operator]
            for name, schedule in schedules.items()
            if schedule is not None
        }

    @property
    def _kl_limit(self) -> float | None:
        return None if self.target_kl is None else 1.5 * self.target_kl

    @property
    def _minibatch_size(self) -> int:
        return min(self.batch_size, self.n_steps * self.n_envs)

    def _record_update(self, result: UpdateResult, explained_variance: float) -> None:
        statistics, coefficients = result.statistics, self._coefficients()
        self.logger.record("train/entropy_loss", statistics.mean("entropy_loss"))
        self.logger.record("train/policy_gradient_loss", statistics.mean("policy_loss"))
        self.logger.record("train/value_loss", statistics.mean("value_loss"))
        # Of the last epoch, as in SB3
        self.logger.record("train/approx_kl", statistics.mean("approx_kl", last=result.n_minibatches))
        self.logger.record("train/clip_fraction", statistics.mean("clip_fraction"))
        self.logger.record("train/loss", statistics.mean("loss", last=1))
        self.logger.record("train/explained_variance", explained_variance)
        self._record_symmetric_loss(statistics)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        for name in ("clip_range", "clip_range_vf"):
            if name in coefficients:
                self.logger.record(f"train/{name}", coefficients[name])

    def learn(
        self: SelfSPPO,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "SPPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfSPPO:
        return super().learn(
            total_timesteps=total_timesteps,
            callback=callback,
            log_interval=log_interval,
            tb_log_name=tb_log_name,
            reset_num_timesteps=reset_num_timesteps,
            progress_bar=progress_bar,
        )
