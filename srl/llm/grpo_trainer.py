"""The symmetric loss in TRL's GRPOTrainer."""

# ruff: noqa: E402
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from srl.llm.extras import require

require("trl")

import torch as th
from trl import GRPOConfig, GRPOTrainer

from srl.envs import parse_noise
from srl.errors import UserError
from srl.llm.losses import advantage_weights
from srl.llm.rewards import add_noise
from srl.symmetric import check_symmetric_loss

#: TRL's loss types with PPO's clipped surrogate loss and ratio for each token.
LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo")


@dataclass
class SymmetricGRPOConfig(GRPOConfig):  # type: ignore[misc]
    """TRL's GRPOConfig and the weights of the symmetric loss. ``beta`` is TRL's: the KL coefficient."""

    srl_alpha: float = field(default=0.5, metadata={"help": "Weight of the clipped surrogate loss."})
    srl_beta: float = field(default=1.0, metadata={"help": "Weight of the reverse loss."})
    srl_z: float = field(default=-1.0, metadata={"help": "The finite stand-in for log 0, negative."})
    srl_reverse_loss: str = field(default="rce", metadata={"help": "rce or mae."})
    srl_importance_weighting: bool = field(
        default=True, metadata={"help": "Whether the reverse loss is divided by pi_old, as published."}
    )
    srl_noise: str = field(
        default="none",
        metadata={"help": "Noise on the scores that training sees: none, gaussian:STD or flip:PROB."},
    )

    @property
    def is_symmetric(self) -> bool:
        """Whether the loss differs from TRL's."""
        return self.srl_alpha != 1 or self.srl_beta != 0

    def check(self) -> None:
        """Check that TRL's options are compatible with the symmetric loss.

        :raises UserError: If one is not.
        """
        parse_noise(self.srl_noise)
        try:
            check_symmetric_loss(
                alpha=self.srl_alpha, beta=self.srl_beta, z=self.srl_z, reverse_loss=self.srl_reverse_loss
            )
        except UserError as error:
            raise UserError(f"srl_{error}") from None
        if not self.is_symmetric:
            return
        if self.loss_type not in LOSS_TYPES:
            raise UserError(
                f"loss_type={self.loss_type!r}: the symmetric loss needs PPO's clipped surrogate of each "
                f"token. Use one of {', '.join(LOSS_TYPES)}."
            )
        if self.importance_sampling_level != "token":
            raise UserError(
                f"importance_sampling_level={self.importance_sampling_level!r}: the reverse loss needs the "
                "probability of a token; that of a sequence is about 0. Use 'token'."
            )
        if self.delta is not None:
            raise UserError(f"delta={self.delta}: clips ratios that PPO does not clip. Leave it out.")


class SymmetricGRPOTrainer(GRPOTrainer):  # type: ignore[misc]
    """TRL's GRPOTrainer with ``alpha L_clip + beta L_reverse`` of each token in place of ``L_clip``.

    Paper: https://arxiv.org/abs/2405.17618. With ``srl_alpha=1, srl_beta=0`` it is bitwise identical to
    TRL's trainer. All features of TRL remain: rewards, KL and entropy terms, masks, vLLM, PEFT, resuming.

    The gradient of the symmetric loss is that of the clipped surrogate with weighted advantages
    (:func:`srl.llm.losses.advantage_weights`), which TRL's own loss uses. The logged loss therefore has no
    constant part, which is of the order of ``1 / pi_old``. The parameters are
    those of GRPOTrainer.

    :raises UserError: If an option of TRL is not compatible with the symmetric loss.
    """

    #: Inputs of the loss during its computation.
    _loss_inputs: dict[str, Any] | None = None

    def __init__(self, model: Any, reward_funcs: Any, args: SymmetricGRPOConfig, *more: Any, **kwargs: Any):
        if not isinstance(args, SymmetricGRPOConfig):
            raise UserError("args: must be a SymmetricGRPOConfig.")
        args.check()
        super().__init__(model, reward_funcs, args, *more, **kwargs)
        if args.is_symmetric and getattr(self, "use_liger_kernel", False):
            raise UserError("use_liger_kernel: this TRL computes its loss elsewhere then. Leave it out.")

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> th.Tensor:
        if not self.args.is_symmetric:
            loss: th.Tensor = super()._compute_loss(model, inputs)
            return loss
        self._loss_inputs = dict(inputs)
        try:
            loss = super()._compute_loss(model, self._loss_inputs)
            if "weighted" not in self._loss_inputs:
                raise RuntimeError("TRL computes log probabilities differently: the loss is not symmetric.")
            return loss
        finally:
            self._loss_inputs = None

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        found = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if self._loss_inputs is not None:
            # Called by `_compute_loss`, which reads the advantages afterwards
            self._weigh_advantages(self._loss_inputs, found[0].detach())
        return found

    def _weigh_advantages(self, inputs: dict[str, Any], log_prob: th.Tensor) -> None:
        """Weight the advantages of a loss, shape ``(n_responses, n_tokens)``."""
        args, old = self.args, inputs.get("old_per_token_logps")
        weights = advantage_weights(
            # Without them, the policy has not changed since the rollout
            log_prob if old is None else old,
            alpha=args.srl_alpha,
            beta=args.srl_beta,
            z=args.srl_z,
            reverse_loss=args.srl_reverse_loss,
            importance_weighting=args.srl_importance_weighting,
        )
        advantages = inputs["advantages"]
        inputs["advantages"] = (advantages.unsqueeze(1) if advantages.dim() == 1 else advantages) * weights
        inputs["weighted"] = True

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> th.Tensor:
        rewards: th.Tensor = super()._calculate_rewards(*args, **kwargs)
        if not self.model.training or self.args.srl_noise == "none":
            return rewards
        # The rewards of all processes are in the same order in each process. Each generation has its own
        # index, also after resuming
        n_parts = self.args.gradient_accumulation_steps
        index = self.state.global_step * n_parts + self._step % n_parts
        # Summed as for TRL's figure "reward"; a response without any score does not count
        sums = (rewards * self.reward_weights.to(rewards)).nansum(1)[~rewards.isnan().all(1)]
        self._metrics["train"]["srl/reward_without_noise"].append(sums.mean().item())
        noisy = add_noise(rewards.double().cpu().numpy(), self.args.srl_noise, self.args.seed, index)
        return th.from_numpy(noisy).to(rewards)
