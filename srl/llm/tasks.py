"""Load the models, texts and rewards that the spec of a run names."""

# ruff: noqa: E402
from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from srl.llm.extras import require

require("llm")

import numpy as np
import torch as th
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from srl.config.language_models import (
    OFFLINE,
    LanguageModelHyperparams,
    LoraOptions,
    PolicyModel,
    RewardModel,
    TextData,
)
from srl.config.spec import RunSpec
from srl.envs.seeding import Stream, stream_rng
from srl.errors import UserError
from srl.llm import offline
from srl.llm.rewards import RewardFunction, score
from srl.llm.sampling import Row, check_padding, reward_columns

#: Number of training prompts of the offline task.
_N_OFFLINE_PROMPTS = 2000


@dataclass
class Task:
    """The loaded models, texts and rewards of a run."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    peft_config: Any
    reward: RewardFunction
    judge: RewardFunction | None
    train_rows: Sequence[Row]
    eval_rows: Sequence[Row]


def options(spec: RunSpec) -> LanguageModelHyperparams:
    """The hyperparameters of a run on a language model.

    :raises UserError: If it is not a run on a language model.
    """
    if not isinstance(spec.hyperparams, LanguageModelHyperparams):
        raise UserError(f"{spec.algorithm.label} on {spec.env}: is not a run on a language model.")
    return spec.hyperparams


def load_task(
    spec: RunSpec, local_files: Path | None = None, tell: Callable[[str], None] = lambda text: None
) -> Task:
    """Load the models, texts and rewards of a run; only the cache is written.

    :param spec: The run.
    :param local_files: A folder with the models and data sets that the spec names; None takes the hub.
    :param tell: Called with a line before a long operation.
    :raises UserError: If something cannot be loaded or is incompatible.
    """
    hyperparams = options(spec)
    th.set_num_threads(spec.threads)
    files = Files(local_files, tell)
    model, tokenizer = load_policy(hyperparams.model, files, spec.device)
    task = Task(
        model,
        tokenizer,
        None if hyperparams.model.lora is None else _lora(hyperparams.model.lora),
        load_reward(hyperparams.reward, files, spec.device),
        None if hyperparams.judge is None else load_reward(hyperparams.judge, files, spec.device, judge=True),
        *load_rows(hyperparams, tokenizer, files, spec.n_eval_episodes),
    )
    _check_model(model, task.peft_config, hyperparams)
    # Find mistakes in rewards before training
    first = list(islice(task.eval_rows, 2))
    for function in (task.reward, task.judge):
        if function is not None:
            score(function, [row["prompt"] for row in first], [" good"] * len(first), reward_columns(first))
    return task


def _check_model(model: PreTrainedModel, peft_config: Any, hyperparams: LanguageModelHyperparams) -> None:
    """Check that a model accepts texts of the maximum length, and has the modules of its adapter."""
    n_needed = hyperparams.max_prompt_length + hyperparams.max_new_tokens
    n_positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if n_positions is not None and n_positions < n_needed:
        raise UserError(
            f"{hyperparams.model.path}: has {n_positions} positions, fewer than the {n_needed} of "
            "max_prompt_length + max_new_tokens."
        )
    if peft_config is not None:
        from peft import get_peft_model

        # A copy without data
        with th.device("meta"):
            empty = type(model)(model.config)
        try:
            get_peft_model(empty, copy.deepcopy(peft_config))
        except ValueError as error:
            raise UserError(f"{hyperparams.model.path}, lora: {error}") from None


class Files:
    """The source of models and data sets: a folder, or the Hugging Face hub.

    :param local: A folder that contains them by name, or by the last part of their name; None for the hub.
    :param tell: Called with a line before a long operation.
    """

    def __init__(self, local: Path | None, tell: Callable[[str], None] = lambda text: None):
        if local is not None and not local.is_dir():
            raise UserError(f"--local-files {local}: there is no such folder.")
        self._local, self._tell = local, tell
        self._material: offline.Material | None = None

    @property
    def material(self) -> offline.Material:
        """The models of the offline task."""
        if self._material is None:
            self._material = offline.material(self._tell)
        return self._material

    def find(self, name: str) -> str:
        """Return the folder of a model or data set, or its name on the hub.

        :raises UserError: If there is no such folder.
        """
        if Path(name).is_dir():
            return name
        if self._local is not None:
            for candidate in (self._local / name, self._local / Path(name).name):
                if candidate.is_dir():
                    return str(candidate)
            raise UserError(f"--local-files {self._local}: contains neither {name} nor {Path(name).name}.")
        if name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise UserError(f"{name}: there is no such folder.")
        return name

    def load(self, load: Callable[..., Any], name: str, **arguments: Any) -> Any:
        """Call a loader of transformers, PEFT or datasets. Python code of a model is not executed.

        :raises UserError: If it fails.
        """
        found = self.find(name)
        try:
            return load(found, trust_remote_code=False, **arguments)
        except Exception as error:  # a damaged file can raise anything
            why = " ".join(str(error).split()).partition(". ")[0].rstrip(".")[:300] + "."
            if found != name or Path(found).is_dir():
                raise UserError(f"{found}: cannot be loaded: {why}") from None
            raise UserError(
                f"{name}: cannot be loaded from the Hugging Face hub: {why} Without a network, download it "
                "elsewhere (`hf download NAME --local-dir DIR/NAME`) and give --local-files DIR."
            ) from None


def load_policy(
    model: PolicyModel, files: Files, device: str = "cpu"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a policy and its tokenizer.

    :raises UserError: If one cannot be loaded, or the tokenizer has no padding token.
    """
    path = str(files.material.policy) if model.path == OFFLINE else model.path
    tokenizer = files.load(AutoTokenizer.from_pretrained, model.tokenizer or path)
    if model.pad_token is not None:
        tokenizer.pad_token = model.pad_token
    check_padding(tokenizer)
    arguments: dict[str, Any] = {"dtype": getattr(th, model.dtype)}
    if model.load_in_4bit:
        from transformers import BitsAndBytesConfig

        arguments["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_compute_dtype=getattr(th, model.dtype)
        )
        arguments["device_map"] = {"": device}
    loaded = files.load(AutoModelForCausalLM.from_pretrained, path, **arguments)
    check_padding(tokenizer, loaded)
    return loaded, tokenizer


def _lora(lora: LoraOptions) -> Any:
    from peft import LoraConfig

    return LoraConfig(task_type="CAUSAL_LM", **lora.model_dump(exclude_none=True))


def load_reward(reward: RewardModel, files: Files, device: str, *, judge: bool = False) -> RewardFunction:
    """Load a reward.

    :param judge: Whether it is the judge.
    :raises UserError: If it cannot be loaded.
    """
    if reward.function is not None:
        return import_function(reward.function)
    assert reward.path is not None
    if reward.path == OFFLINE:
        return files.material.judge if judge else files.material.reward
    return ClassifierReward(reward, files, device)


def import_function(name: str) -> RewardFunction:
    """Import a reward function.

    :param name: ``module:name``.
    :raises UserError: If it does not exist.
    """
    module, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # the module is the user's
        why = f"{type(error).__name__}: {error}"
        raise UserError(f"Reward function {name}: cannot be imported: {why}. Write module:name.") from None
    if not callable(function):
        raise UserError(f"The reward function {name} is not callable.")
    return function  # type: ignore[no-any-return]


class ClassifierReward:
    """A reward from a sequence classifier: the probability of a class, or the only logit.

    :param reward: The model and its options.
    :param files: The source of the model.
    :param device: The device of the model.
    :raises UserError: If it cannot be loaded, or does not have the class.
    """

    def __init__(self, reward: RewardModel, files: Files, device: str):
        assert reward.path is not None
        self.__name__ = reward.path
        self._options, self._device = reward, th.device(device)
        load: Any = AutoModelForSequenceClassification.from_pretrained
        arguments: dict[str, Any] = {}
        if reward.adapter:
            from peft import AutoPeftModelForSequenceClassification

            load, arguments = AutoPeftModelForSequenceClassification.from_pretrained, {"num_labels": 1}
        arguments["dtype"] = getattr(th, reward.dtype)
        self._model = files.load(load, reward.path, **arguments).to(self._device).eval()
        self._tokenizer = files.load(AutoTokenizer.from_pretrained, reward.path)
        # Causal models take the last token that is not padding
        self._tokenizer.padding_side = "right"
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        config = self._model.config
        config.pad_token_id = self._tokenizer.pad_token_id
        names = {str(name).lower(): int(number) for name, number in (config.label2id or {}).items()}
        label = reward.label
        self._label = names.get(label.lower()) if isinstance(label, str) else label
        n_labels = config.num_labels
        if label is not None and n_labels == 1:
            raise UserError(f"{reward.path}: has one output, which is the score. Leave reward.label out.")
        if label is None and n_labels != 1:
            raise UserError(f"{reward.path}: has {n_labels} classes; name the one to reward as reward.label.")
        if label is not None and (self._label is None or not 0 <= self._label < n_labels):
            raise UserError(f"{reward.path}: has no class {label!r}. Its classes: {', '.join(names)}.")

    @th.no_grad()
    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
        """Return a number for each response."""
        texts = [
            prompt + completion if self._options.with_prompt else completion
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        scores: list[float] = []
        for start in range(0, len(texts), self._options.batch_size):
            chosen = texts[start : start + self._options.batch_size]
            encoded = self._tokenizer(chosen, padding=True, truncation=True, return_tensors="pt")
            logits = self._model(**encoded.to(self._device)).logits.float()
            scores += (logits[:, 0] if self._label is None else logits.softmax(-1)[:, self._label]).tolist()
        return scores


class TextRows(Sequence[Row]):
    """Prompts and references of a data set, computed on access.

    :param dataset: A data set with columns of texts.
    :param data: The names of the columns.
    :param tokenizer: Splits texts that contain both prompt and reference.
    :param max_prompt_length: Number of tokens of the prompt in such texts.
    :param numbers: Indices of the rows; None for all.
    """

    def __init__(
        self,
        dataset: Any,
        data: TextData,
        tokenizer: PreTrainedTokenizerBase,
        max_prompt_length: int,
        numbers: Sequence[int] | None = None,
    ):
        self._dataset, self._data, self._tokenizer = dataset, data, tokenizer
        self._max_prompt_length = max_prompt_length
        self._numbers = range(len(dataset)) if numbers is None else numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, number: Any) -> Any:
        row, data = dict(self._dataset[int(self._numbers[number])]), self._data
        prompt = row.pop(data.prompt)
        if data.response is None:
            return row | {"prompt": prompt}
        if data.response != data.prompt:
            return row | {"prompt": prompt, "response": row.pop(data.response)}
        tokens = self._tokenizer(prompt, truncation=False)["input_ids"]
        divided = tokens[: self._max_prompt_length], tokens[self._max_prompt_length :]
        texts = [self._tokenizer.decode(part, skip_special_tokens=True) for part in divided]
        return row | {"prompt": texts[0], "response": texts[1]}


def load_rows(
    hyperparams: LanguageModelHyperparams, tokenizer: PreTrainedTokenizerBase, files: Files, n_eval_rows: int
) -> tuple[Sequence[Row], Sequence[Row]]:
    """Load the prompts for training and for evaluations, which are the same in all runs.

    :raises UserError: If they cannot be loaded, lack a column, or are too few.
    """
    data = hyperparams.data
    tokenizer.truncation_side = data.truncation_side
    if data.path == OFFLINE:
        _check_number(OFFLINE, _N_OFFLINE_PROMPTS, hyperparams.n_rollouts)
        return _offline_rows(_N_OFFLINE_PROMPTS, offline.TRAIN_PROMPTS), _offline_rows(
            n_eval_rows, offline.EVAL_PROMPTS
        )
    splits = []
    for split in (data.train_split, data.eval_split):
        dataset = files.load(_load_split, data.path, split=split)
        for column in {data.prompt, data.response or data.prompt}:
            if column not in dataset.column_names:
                there = ", ".join(dataset.column_names)
                raise UserError(f"{data.path}, split {split}: has no column {column!r}, only {there}.")
            _check_texts(f"{data.path}, split {split}", column, dataset[column])
        splits.append(dataset)
    train, evaluation = splits
    for dataset, n_needed, split in (
        (train, hyperparams.n_rollouts, data.train_split),
        (evaluation, n_eval_rows, data.eval_split),
    ):
        _check_number(f"{data.path}, split {split}", len(dataset), n_needed)
    chosen = stream_rng(offline.MATERIAL_SEED, Stream.TEXTS, offline.EVAL_PROMPTS).choice(
        len(evaluation), n_eval_rows, replace=False
    )
    length = hyperparams.max_prompt_length
    numbers: list[int] = np.sort(chosen).tolist()
    return TextRows(train, data, tokenizer, length), TextRows(evaluation, data, tokenizer, length, numbers)


def _check_number(where: str, n_rows: int, n_needed: int) -> None:
    if n_rows < n_needed:
        raise UserError(f"{where}: has {n_rows} rows; {n_needed} are needed.")


def _check_texts(where: str, column: str, texts: Iterable[Any]) -> None:
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"{where}: row {number} of column {column!r} is {text!r:.40}, not a text.")
        if not text.strip():
            raise UserError(f"{where}: row {number} of column {column!r} is empty. Remove the row.")


def _offline_rows(n: int, index: int) -> list[Row]:
    return [
        {"prompt": review.prompt, "response": review.response} for review in offline.make_reviews(n, index)
    ]


def _load_split(path: str, split: str, trust_remote_code: bool) -> Any:
    import datasets  # which executes no code of a data set

    if (Path(path) / "dataset_dict.json").is_file():
        return datasets.load_from_disk(path)[split]
    return datasets.load_dataset(path, split=split)
