"""Train many runs on one environment as one stacked network: see :mod:`srl.training.stacked.train`."""

from srl.training.stacked.train import train_population

__all__ = ["train_population"]
