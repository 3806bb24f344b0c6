"""Specs of runs on language models: models, data, reward and hyperparameters.

Reports of such runs need neither torch nor transformers.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from srl.config.algorithms import Algorithm
from srl.config.hyperparams import FAMILIES, EnvHyperparams, Hyperparams, NormalizeOptions
from srl.config.values import Number, Positive, Probability, Strict

#: The name of the model, data set and reward of :mod:`srl.llm.offline`.
OFFLINE = "offline"

Count = Annotated[int, Field(ge=0)]
AboveZero = Annotated[Number, Field(gt=0)]
NotNegative = Annotated[Number, Field(ge=0)]


class LoraOptions(Strict):
    """Arguments of PEFT's LoraConfig."""

    r: Positive = 8
    lora_alpha: AboveZero = 16
    lora_dropout: Probability = 0.0
    target_modules: list[str] | str | None = None


class PolicyModel(Strict):
    """The model to train. The critic and the reference model are initialized as copies of it."""

    #: A folder, a name on the Hugging Face hub, or ``offline``.
    path: str
    #: The same for its tokenizer; None for the model's tokenizer.
    tokenizer: str | None = None
    #: The padding token; None for the tokenizer's own.
    pad_token: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    #: Quantize the weights, which then do not train; needs ``lora`` and the package bitsandbytes.
    load_in_4bit: bool = False
    #: Train an adapter in place of all weights; needs the package peft.
    lora: LoraOptions | None = None

    @model_validator(mode="after")
    def _trains_something(self) -> PolicyModel:
        if self.load_in_4bit and self.lora is None:
            raise ValueError("load_in_4bit needs lora: quantized weights do not train")
        return self


class RewardModel(Strict):
    """The score of a response: a classifier, an adapter for one, or a function."""

    #: A folder, a name on the Hugging Face hub, or ``offline``.
    path: str | None = None
    #: The class whose probability is the score, by number or name; None takes the only logit as it is.
    label: int | str | None = None
    #: The score is that of the prompt and the response together.
    with_prompt: bool = True
    #: ``path`` is a PEFT adapter for a sequence classifier.
    adapter: bool = False
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    #: Number of texts per forward pass.
    batch_size: Positive = 32
    #: A Python function in place of a model, as ``module:name``, with the signature of TRL's rewards.
    function: str | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> RewardModel:
        if (self.path is None) == (self.function is None):
            raise ValueError("give either path or function")
        return self


class TextData(Strict):
    """Prompts, and optional reference responses."""

    #: A folder, a name on the Hugging Face hub, or ``offline``.
    path: str
    train_split: str = "train"
    eval_split: str = "test"
    #: The column of prompts.
    prompt: str = "prompt"
    #: The column of reference responses; None if there is none. With the value of ``prompt``, the text is
    #: divided: ``max_prompt_length`` tokens are the prompt, the rest the reference.
    response: str | None = None
    #: Where longer prompts are cut.
    truncation_side: Literal["left", "right"] = "right"


class LanguageModelHyperparams(Hyperparams):
    """Of PPO and SPPO on language models: a step is a response. Defaults are those of the authors for IMDB,
    where these do not depend on the task."""

    # Hyperparameters of environments do not apply
    policy: Literal["MlpPolicy"] = Field("MlpPolicy", exclude=True)
    n_envs: Positive = Field(1, exclude=True)
    normalize: NormalizeOptions | None = Field(None, exclude=True)
    frame_stack: Positive = Field(1, exclude=True)
    env_wrapper: list[Any] | None = Field(None, exclude=True)
    policy_kwargs: Any = Field(None, exclude=True)
    n_steps: Positive = Field(1, exclude=True)
    use_sde: bool = Field(False, exclude=True)
    sde_sample_freq: int = Field(-1, exclude=True)
    advantage_transform: Literal["none"] = Field("none", exclude=True)
    advantage_flip_prob: Annotated[float, Field(ge=0, le=0)] = Field(0.0, exclude=True)

    model: PolicyModel
    data: TextData
    reward: RewardModel
    #: Scores responses in evaluations, but not in training.
    judge: RewardModel | None = None

    #: Number of responses of an iteration.
    n_rollouts: Positive = 112
    batch_size: Positive = 28
    n_epochs: Positive = 5
    learning_rate: AboveZero = 5e-6
    #: AdamW's.
    adam_epsilon: AboveZero = 1e-5
    weight_decay: NotNegative = 1e-6
    gamma: Probability = 0.99
    gae_lambda: Probability = 0.95
    clip_range: AboveZero = 0.2
    clip_range_vf: AboveZero | None = 0.2
    vf_coef: NotNegative = 0.5
    ent_coef: NotNegative = 0.0
    #: Weight of imitation: the cross-entropy of reference responses.
    target_coef: NotNegative = 0.1
    #: Weight of the KL divergence from the reference model in the reward of each token.
    kl_coef: NotNegative = 0.001
    max_grad_norm: AboveZero = 1.0
    normalize_advantage: bool = True
    #: Whether padding is left out of advantage normalization; False is the authors' form.
    mask_normalization: bool = True
    importance_weighting: bool = True

    max_prompt_length: Positive = 64
    max_new_tokens: Positive = 48
    min_new_tokens: Count = 0
    temperature: AboveZero = 1.0
    #: Sample among this many tokens; 0 for all.
    top_k: Count = 0
    #: Responses of a forward pass without gradients.
    inference_batch_size: Positive = 32
    gradient_accumulation_steps: Positive = 1
    mixed_precision: Literal["no", "bf16"] = "no"

    #: Of GRPO: responses to each prompt, updates with each rollout, and TRL's ``loss_type``.
    num_generations: Annotated[int, Field(ge=2)] = 7
    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = "dapo"

    @field_validator("policy_kwargs", "env_wrapper", mode="before")
    @classmethod
    def _nothing(cls, value: Any) -> Any:
        return None

    @model_validator(mode="after")
    def _whole_minibatches(self) -> LanguageModelHyperparams:
        if self.n_rollouts % self.batch_size:
            raise ValueError(
                f"n_rollouts={self.n_rollouts} is not a multiple of batch_size={self.batch_size}"
            )
        if self.batch_size % self.gradient_accumulation_steps:
            raise ValueError(
                f"batch_size={self.batch_size} is not a multiple of gradient_accumulation_steps="
                f"{self.gradient_accumulation_steps}"
            )
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens={self.min_new_tokens} is above max_new_tokens={self.max_new_tokens}"
            )
        return self

    def named_code(self) -> dict[str, str]:
        """The names of the user's Python code, with the key of each."""
        rewards = {"reward": self.reward, "judge": self.judge}
        return {r.function: f"{key}.function" for key, r in rewards.items() if r is not None and r.function}

    def without_effect(self, given: Any) -> dict[str, str]:
        """See the base class; for keys of other algorithms see :func:`of_other_algorithms`."""
        reasons = {"z": "reverse_loss is mae"} if self.reverse_loss == "mae" and self.z != -1 else {}
        if not (self.normalize_advantage or self.mask_normalization):
            reasons["mask_normalization"] = "normalize_advantage is false"
        return reasons


#: Hyperparameters that only algorithms with a critic have, and those that only GRPO has.
_OF_CRITIC = frozenset(
    (
        *("gamma", "gae_lambda", "clip_range_vf", "vf_coef", "ent_coef"),
        *("normalize_advantage", "mask_normalization", "min_new_tokens"),
    )
)
_OF_GRPO = frozenset(("num_generations", "loss_type"))


def of_other_algorithms(algorithm: Algorithm) -> frozenset[str]:
    """The hyperparameters that have no effect on an algorithm; the files of tasks have those of all."""
    return _OF_CRITIC if algorithm.family == "llm-grpo" else _OF_GRPO


def hyperparams_model(algorithm: Algorithm) -> type[EnvHyperparams]:
    """The hyperparameters that an algorithm has."""
    return LanguageModelHyperparams if algorithm.on_language_models else FAMILIES[algorithm.family]
