"""Many runs of one environment trained as one stacked network."""

from srl.population.grouping import group, population_key
from srl.population.train import train_population

__all__ = ["group", "population_key", "train_population"]
