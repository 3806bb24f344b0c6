"""Which hyperparameters each algorithm has."""

from __future__ import annotations

from srl.config.algorithms import Algorithm
from srl.config.hyperparams import FAMILIES, EnvHyperparams
from srl.config.language_models import LanguageModelHyperparams


def hyperparams_model(algorithm: Algorithm) -> type[EnvHyperparams]:
    """The hyperparameters that an algorithm has."""
    return LanguageModelHyperparams if algorithm.on_language_models else FAMILIES[algorithm.family]
