"""The hyperparameters of SPPO for language models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from srl.config.files import user_error
from srl.config.language_models import OFFLINE, LanguageModelHyperparams, PolicyModel, RewardModel, TextData
from srl.envs import parse_noise
from srl.errors import UserError
from srl.symmetric import check_symmetric_loss


@dataclass
class SPPOConfig:
    """Hyperparameters of :class:`~srl.llm.sppo_trainer.SPPOTrainer`. ``alpha=1, beta=0`` is PPO.

    The defaults are the authors' values for IMDB (Byun and Perrault, ICML 2025, arXiv 2405.17618).
    """

    #: Folder of checkpoints and logs.
    output_dir: str = "sppo"
    seed: int = 0
    n_iterations: int = 60
    #: Number of responses of an iteration.
    n_rollouts: int = 112
    #: Number of responses of a minibatch.
    batch_size: int = 28
    n_epochs: int = 5
    learning_rate: float = 5e-6
    #: Of AdamW.
    adam_epsilon: float = 1e-5
    weight_decay: float = 1e-6
    gamma: float = 0.99
    gae_lambda: float = 0.95
    clip_range: float = 0.2
    #: Clip range of the value function; None for no clipping.
    clip_range_vf: float | None = 0.2
    vf_coef: float = 0.5
    ent_coef: float = 0.0
    #: Weight of imitation, the cross-entropy of reference responses (the column ``response``).
    target_coef: float = 0.1
    #: Weight of the KL divergence from the reference model in the reward of each token.
    kl_coef: float = 0.001
    max_grad_norm: float = 1.0
    normalize_advantage: bool = True
    #: Whether advantage normalization excludes padding; False is the authors' form.
    mask_normalization: bool = True

    #: Weights of the clipped surrogate loss and of the reverse loss.
    alpha: float = 0.5
    beta: float = 0.4
    #: The finite stand-in for log 0, negative.
    z: float = -1.0
    #: ``rce`` or ``mae``.
    reverse_loss: str = "rce"
    #: Whether the reverse loss is divided by ``pi_old``, as published.
    importance_weighting: bool = True
    #: Reward noise in training: ``none``, ``gaussian:STD``, ``uniform:HALF_WIDTH`` or ``flip:PROB``.
    noise: str = "none"

    max_prompt_length: int = 64
    max_new_tokens: int = 48
    min_new_tokens: int = 0
    temperature: float = 1.0
    #: Sample among this many tokens; 0 for all. Probabilities in the losses are those over all tokens.
    top_k: int = 0
    #: Whether evaluations sample tokens instead of taking the most probable ones.
    eval_do_sample: bool = True
    #: Iterations between evaluations; 0 for none.
    eval_every: int = 10

    #: Number of responses of a forward pass without gradients.
    inference_batch_size: int = 32
    #: Number of parts of a minibatch, to save memory.
    gradient_accumulation_steps: int = 1
    #: ``no`` or ``bf16``.
    mixed_precision: str = "no"
    #: Trackers of accelerate, such as ``tensorboard`` and ``wandb``; empty for none.
    log_with: str | Sequence[str] = ("tensorboard",)
    #: Seconds between two checkpoints; 0 writes one after each iteration.
    checkpoint_every: float = 180.0
    disable_tqdm: bool = False

    def check(self) -> None:
        """Check the values.

        :raises UserError: If one is invalid.
        """
        parse_noise(self.noise)
        check_symmetric_loss(alpha=self.alpha, beta=self.beta, z=self.z, reverse_loss=self.reverse_loss)
        for name, lowest in (("n_iterations", 1), ("eval_every", 0), ("checkpoint_every", 0)):
            if not getattr(self, name) >= lowest:
                raise UserError(f"{name}={getattr(self, name)}: must be at least {lowest}.")
        names = LanguageModelHyperparams.model_fields
        try:
            LanguageModelHyperparams(
                **{name: value for name, value in vars(self).items() if name in names},
                # The models and texts are arguments of the trainer
                model=PolicyModel(path=OFFLINE),
                data=TextData(path=OFFLINE),
                reward=RewardModel(path=OFFLINE),
            )
        except ValidationError as error:
            raise user_error(error) from None
