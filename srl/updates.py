"""The result of an update of SA2C or SPPO, and the statistics that it logs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch as th
from stable_baselines3.common.logger import Logger

from srl.advantages import PreparedAdvantages
from srl.losses import A2CLosses, PPOLosses


def figures_of(losses: A2CLosses | PPOLosses, prepared: PreparedAdvantages) -> dict[str, th.Tensor]:
    """The logged figures of a minibatch: its losses and statistics of the advantages."""
    figures = {**losses._asdict(), "sign_changes": prepared.n_sign_changes, "abs_max": prepared.abs_max}
    return {name: value.detach() for name, value in figures.items() if value is not None}


def check_losses(logger: Logger) -> None:
    """Check that the losses of the latest update are finite.

    :param logger: The model's, not dumped since the update.
    :raises FloatingPointError: If one is NaN or infinite.
    """
    for name, value in logger.name_to_value.items():
        if name.startswith("train/") and name.endswith("loss") and not math.isfinite(value):
            raise FloatingPointError(f"{name} is {value} after an update; the network is lost")


class UpdateStatistics:
    """The figures of one update, kept on the device until it ends.

    Reading a tensor waits for the device. Therefore minibatches only append, and each figure is read once.
    """

    def __init__(self) -> None:
        self._values: dict[str, list[th.Tensor]] = defaultdict(list)
        self._n_samples = 0

    def add(self, losses: A2CLosses | PPOLosses, prepared: PreparedAdvantages) -> None:
        """Append the figures of a minibatch, each a scalar, or always of shape ``(n_members,)``."""
        self._n_samples += prepared.advantages.shape[-1]
        for name, value in figures_of(losses, prepared).items():
            self._values[name].append(value)

    def add_rows(self, names: Sequence[str], rows: Sequence[th.Tensor], n_samples: int) -> None:
        """Append the figures of minibatches.

        :param names: Names of the figures.
        :param rows: The figures of each minibatch, shape ``(n_figures,)``.
        :param n_samples: Total number of samples of the minibatches.
        """
        self._n_samples += n_samples
        for name, column in zip(names, th.stack(list(rows), dim=1), strict=True):
            self._values[name].append(column)

    def split(self) -> list[UpdateStatistics]:
        """The figures of each member of a population."""
        tables = {name: th.stack(values).T.cpu().contiguous() for name, values in self._values.items()}
        members = []
        for member in range(len(next(iter(tables.values())))):
            statistics = UpdateStatistics()
            statistics._n_samples = self._n_samples
            for name, table in tables.items():
                statistics._values[name] = [table[member]]
            members.append(statistics)
        return members

    @property
    def is_finite(self) -> bool:
        """Whether all figures and their sum are finite."""
        return math.isfinite(th.hstack([part for parts in self._values.values() for part in parts]).sum())

    def _series(self, name: str) -> th.Tensor:
        return th.hstack(self._values[name])

    def mean(self, name: str, last: int = 0) -> float:
        """The mean of a figure over its minibatches, or over the last ones."""
        return self._series(name)[-last:].mean().item()

    def has(self, name: str) -> bool:
        """Whether there are values of a figure."""
        return name in self._values

    @property
    def advantage_sign_change(self) -> float:
        """The percentage of samples whose advantage changed sign, pooled over minibatches."""
        return 100 * self._series("sign_changes").sum().item() / self._n_samples

    @property
    def advantage_abs_max(self) -> float:
        """The largest absolute advantage of all minibatches."""
        return self._series("abs_max").max().item()


class UpdateResult(NamedTuple):
    """The result of an update."""

    statistics: UpdateStatistics
    #: Epochs that were started.
    n_epochs: int
    #: Minibatches of the last epoch.
    n_minibatches: int
    #: Whether the limit on the KL divergence stopped it.
    stopped: bool
