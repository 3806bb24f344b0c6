"""Many runs of one environment trained as one stacked network: see :mod:`srl.population.train`."""

from srl.population.train import train_population

__all__ = ["train_population"]
