"""A task for language models that needs no network: film reviews from a small grammar.

The policy is a GPT-2 of 0.1 million parameters, pretrained on reviews of all kinds in under a minute. The
reward is a classifier of single words. The judge, which training does not see, is a recurrent classifier that
reads words in their order and knows garbled text, so that a policy that repeats praise does not please it.
Everything is made once and kept in a cache.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
import transformers
from safetensors.torch import load_model, save_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from srl.compilation import cache_folder
from srl.envs.seeding import Stream, seed_sequence, seed_torch, stream_rng

#: The seed of the material: all runs begin with the same policy and have the same reward.
MATERIAL_SEED = 0
#: Indices of the stream of texts.
PRETRAINING, REWARD_TEXTS, JUDGE_TEXTS, TRAIN_PROMPTS, EVAL_PROMPTS = range(5)

POSITIVE, NEUTRAL, NEGATIVE, GARBLED = range(4)
ADJECTIVES = {
    POSITIVE: [
        *("great", "good", "wonderful", "brilliant", "excellent", "charming", "funny", "beautiful", "superb"),
        *("enjoyable", "touching", "amazing", "clever", "fantastic", "delightful"),
    ],
    NEUTRAL: [
        *("long", "short", "slow", "quick", "old", "new", "french", "american", "quiet", "loud", "dark"),
        *("early", "late", "modern", "simple"),
    ],
    NEGATIVE: [
        *("bad", "terrible", "awful", "boring", "stupid", "horrible", "weak", "dull", "poor", "annoying"),
        *("disappointing", "pathetic", "ugly", "lame", "dreadful"),
    ],
}
NOUNS = [
    *("movie", "film", "story", "plot", "script", "acting", "cast", "music", "ending", "dialogue"),
    *("direction", "photography", "camera", "character", "scene"),
]
OPENINGS = [
    "this {noun} was",
    "the {noun} is",
    "i thought the {noun} was",
    "last night i saw this {noun} and it was",
    "my friends say the {noun} is",
    "for a {neutral} {noun} the {other} is",
    "in my opinion the {noun} was",
    "we watched the {noun} twice and the {other} was",
]
ADVERBS = ["very", "really", "rather", "quite", "so", "somewhat"]
ENDINGS = {
    POSITIVE: [
        "i loved it",
        "i enjoyed every minute",
        "i recommend it to all",
        "it made me happy",
        "the best {noun} of the year",
    ],
    NEUTRAL: [
        "it was made last year",
        "the {noun} takes two hours",
        "i saw it with my friends",
        "we watched it at home",
        "the {other} was {neutral}",
    ],
    NEGATIVE: [
        "i hated it",
        "i wasted every minute",
        "i regret seeing it",
        "it made me sad",
        "the worst {noun} of the year",
    ],
}


@dataclass(frozen=True)
class Review:
    """A prompt, the rest of the review, and what it thinks of the film: POSITIVE, NEUTRAL or NEGATIVE."""

    prompt: str
    response: str
    label: int


def make_reviews(n: int, index: int) -> list[Review]:
    """Reviews by the grammar, a third of each kind.

    :param n: How many.
    :param index: Of the stream of texts.
    """
    rng = stream_rng(MATERIAL_SEED, Stream.TEXTS, index)
    return [_review(rng) for _ in range(n)]


def _review(rng: np.random.Generator) -> Review:
    def one(words: Sequence[str]) -> str:
        return words[int(rng.integers(len(words)))]

    def fill(template: str) -> str:
        return template.format(noun=one(NOUNS), other=one(NOUNS), neutral=one(ADJECTIVES[NEUTRAL]))

    label = int(rng.integers(3))
    own, every = ADJECTIVES[label], [word for words in ADJECTIVES.values() for word in words]
    words = [one(ADVERBS)] if rng.random() < 0.5 else []
    words.append(one(own))
    if rng.random() < 0.6:
        words += ["and", one(own if rng.random() < 0.8 else ADJECTIVES[NEUTRAL])]
    words.append(".")
    if rng.random() < 0.8:
        words += ["the", one(NOUNS), "was", one(own if rng.random() < 0.8 else every), "and"]
    return Review(fill(one(OPENINGS)), " ".join([*words, fill(one(ENDINGS[label])), "."]), label)


def _garbled(response: str, rng: np.random.Generator) -> str:
    """A response whose words are shuffled, or drawn at random, or one or two words again and again."""
    words = response.split()
    kind = rng.integers(3)
    if kind == 0:
        return " ".join(rng.permutation(words))
    n_words = int(rng.integers(3, 25))
    vocabulary = _words() if kind == 1 else list(rng.choice(_words(), size=2))
    return " ".join(rng.choice(vocabulary, size=n_words))


def _words() -> list[str]:
    """The words of the grammar, in alphabetical order."""
    templates = [*OPENINGS, *(ending for endings in ENDINGS.values() for ending in endings), "and . the was"]
    words = {word for template in templates for word in template.split() if not word.startswith("{")}
    return sorted(words | {*ADVERBS, *NOUNS, *(word for words in ADJECTIVES.values() for word in words)})


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with the words of the grammar as its tokens; it pads on the left."""
    vocabulary = {word: number for number, word in enumerate(["<pad>", "<eos>", "<unk>", *_words()])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )


def pretrain(
    tokenizer: PreTrainedTokenizerFast, *, n_reviews: int = 8000, n_epochs: int = 3, batch_size: int = 64
) -> GPT2LMHeadModel:
    """A small GPT-2 that writes reviews of all kinds.

    :param tokenizer: Of the grammar.
    :param n_reviews: Texts to train on.
    :param n_epochs: How often it reads each.
    :param batch_size: Texts of a step.
    """
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=64,
        n_embd=64,
        n_layer=2,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=eos,
        eos_token_id=eos,
        pad_token_id=pad,
    )
    seed_torch(th.default_generator, seed_sequence(MATERIAL_SEED, Stream.WEIGHTS))
    model = GPT2LMHeadModel(config)
    reviews = make_reviews(n_reviews, PRETRAINING)
    texts = [
        [*tokenizer(f"{review.prompt} {review.response}")["input_ids"], eos]  # type: ignore[misc]
        for review in reviews
    ]
    n_steps = n_epochs * (n_reviews // batch_size)
    optimizer = th.optim.AdamW(model.parameters(), 3e-3)
    schedule = th.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=n_steps + 1)
    rng = stream_rng(MATERIAL_SEED, Stream.MINIBATCHES)
    for _ in range(n_epochs):
        for chosen in rng.permutation(n_reviews)[: n_steps // n_epochs * batch_size].reshape(-1, batch_size):
            batch = [th.tensor(texts[number]) for number in chosen]
            tokens = nn.utils.rnn.pad_sequence(batch, batch_first=True, padding_value=pad)
            is_text = nn.utils.rnn.pad_sequence([th.ones_like(row) for row in batch], batch_first=True)
            labels = tokens.masked_fill(is_text == 0, -100)
            loss = model(input_ids=tokens, attention_mask=is_text, labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model


class WordClassifier(nn.Module):
    """The sentiment of a text from the words that are in it: a softmax regression over three labels."""

    n_labels = 3

    def __init__(self, n_words: int):
        super().__init__()
        self.weights = nn.Linear(n_words, self.n_labels)

    def forward(self, tokens: th.Tensor) -> th.Tensor:
        """Logits, shape ``(n_texts, n_labels)``, of tokens padded with 0, shape ``(n_texts, n_tokens)``."""
        contains = F.one_hot(tokens, self.weights.in_features).amax(1).float()
        contains[:, 0] = 0.0
        logits: th.Tensor = self.weights(contains)
        return logits


class OrderClassifier(nn.Module):
    """The sentiment of a text from its words in their order; the fourth label is for garbled texts."""

    n_labels = 4

    def __init__(self, n_words: int, width: int = 48):
        super().__init__()
        self.embedding = nn.Embedding(n_words, width, padding_idx=0)
        self.recurrent = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, self.n_labels)

    def forward(self, tokens: th.Tensor) -> th.Tensor:
        """Logits, shape ``(n_texts, n_labels)``, of tokens padded with 0, shape ``(n_texts, n_tokens)``."""
        lengths = (tokens != 0).sum(1).clamp(min=1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(
            self.embedding(tokens), lengths, batch_first=True, enforce_sorted=False
        )
        logits: th.Tensor = self.head(self.recurrent(packed)[1][0])
        return logits


Classifier = WordClassifier | OrderClassifier


def _tokens(texts: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> th.Tensor:
    rows = [th.tensor(tokenizer(text)["input_ids"] or [0]) for text in texts]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True)


def fit_classifier(
    model: Classifier,
    tokenizer: PreTrainedTokenizerFast,
    index: int,
    *,
    n_reviews: int = 6000,
    n_steps: int = 400,
    learning_rate: float = 0.03,
) -> None:
    """Train a classifier on the responses of reviews.

    :param model: One that knows garbled texts gets as many of these as there are of each other label.
    :param tokenizer: Of the grammar.
    :param index: Of the stream of texts.
    :param n_reviews: Texts to train on.
    :param n_steps: Steps of 128 texts.
    :param learning_rate: Of Adam.
    """
    texts, labels = labelled_texts(n_reviews, index, garbled=model.n_labels == 4)
    tokens, targets = _tokens(texts, tokenizer), th.tensor(labels)
    rng = stream_rng(MATERIAL_SEED, Stream.MINIBATCHES, index)
    optimizer = th.optim.Adam(model.parameters(), learning_rate)
    for _ in range(n_steps):
        chosen = th.from_numpy(rng.integers(len(texts), size=128))
        loss = F.cross_entropy(model(tokens[chosen]), targets[chosen])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def labelled_texts(n: int, index: int, *, garbled: bool) -> tuple[list[str], list[int]]:
    """Responses and their labels; with ``garbled``, garbled ones besides, a third as many."""
    reviews = make_reviews(n, index)
    texts, labels = [review.response for review in reviews], [review.label for review in reviews]
    if garbled:
        rng = stream_rng(MATERIAL_SEED, Stream.TEXTS, 100 + index)
        texts += [_garbled(text, rng) for text in texts[: n // 3]]
        labels += [GARBLED] * (n // 3)
    return texts, labels


class Positivity:
    """A reward: the probability of a response being positive, by a classifier."""

    def __init__(self, model: Classifier, tokenizer: PreTrainedTokenizerFast, name: str):
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.__name__ = name

    @th.no_grad()
    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
        """Return one number in [0, 1] for each response."""
        logits = self.model(_tokens(list(completions), self.tokenizer))
        scores: list[float] = logits.softmax(1)[:, POSITIVE].tolist()
        return scores


@dataclass(frozen=True)
class Material:
    """What the offline task consists of."""

    #: The folder of the pretrained policy and its tokenizer.
    policy: Path
    reward: Positivity
    judge: Positivity


def material(tell: Callable[[str], None] = lambda text: None) -> Material:
    """The offline task's models, from the cache, or made now and kept there.

    :param tell: Is given a line before they are made.
    """
    versions = f"{th.__version__} {transformers.__version__}"
    source = Path(__file__).read_bytes()
    key = hashlib.sha256(source + versions.encode()).hexdigest()[:16]
    folder = cache_folder() / "llm" / f"offline-{key}"
    tokenizer = make_tokenizer()
    reward, judge = WordClassifier(len(tokenizer)), OrderClassifier(len(tokenizer))
    if not folder.is_dir():
        tell("Pretraining the policy of the offline task; this takes about a minute, once.")
        _make(folder, tokenizer)
    for model, name in ((reward, "reward"), (judge, "judge")):
        load_model(model, folder / f"{name}.safetensors")
    return Material(folder, Positivity(reward, tokenizer, "reward"), Positivity(judge, tokenizer, "judge"))


def _make(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside its place, and moved there as a whole
    made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        with th.random.fork_rng(devices=[]):
            pretrain(tokenizer).save_pretrained(made)
            tokenizer.save_pretrained(made)
            for kind, name, index in (
                (WordClassifier, "reward", REWARD_TEXTS),
                (OrderClassifier, "judge", JUDGE_TEXTS),
            ):
                seed_torch(th.default_generator, seed_sequence(MATERIAL_SEED, Stream.WEIGHTS, index))
                model = kind(len(tokenizer))
                fit_classifier(model, tokenizer, index)
                save_model(model, str(made / f"{name}.safetensors"))
        # Another process may have made it meanwhile
        with suppress(OSError):
            os.rename(made, folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
