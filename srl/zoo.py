"""Use SPPO and SA2C from rl-baselines3-zoo: ``python -m srl.zoo train --algo sppo --env CartPole-v1``.

The first argument is the name of a script of rl_zoo3, and its options follow. Before the script runs,
``sppo`` and ``sa2c`` are registered with their search spaces, and their hyperparameter files, or the one that
``--conf-file`` names, are converted to its format.
"""

from __future__ import annotations

import runpy
import sys
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from srl.errors import MissingExtra, UserError, nearest

#: Modules of rl_zoo3's scripts by name.
SCRIPTS = {
    "train": "rl_zoo3.train",
    "enjoy": "rl_zoo3.enjoy",
    "plot": "rl_zoo3.plots.plot_train",
    "plot_train": "rl_zoo3.plots.plot_train",
    "plot_from_file": "rl_zoo3.plots.plot_from_file",
    "all_plots": "rl_zoo3.plots.all_plots",
    "benchmark": "rl_zoo3.benchmark",
    "record_video": "rl_zoo3.record_video",
    "record_training": "rl_zoo3.record_training",
    "load_from_hub": "rl_zoo3.load_from_hub",
    "push_to_hub": "rl_zoo3.push_to_hub",
}
#: Names of srl's algorithms in the zoo.
ALGORITHMS = ("sppo", "sa2c")
#: The module from which the zoo reads the hyperparameters.
_HYPERPARAMS_MODULE = "srl_hyperparams"


def register() -> None:
    """Register SPPO and SA2C in rl_zoo3, with their search spaces.

    :raises UserError: If a package is missing.
    """
    try:
        from rl_zoo3 import ALGOS
        from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
    except ModuleNotFoundError as error:
        raise MissingExtra("srl.zoo", error, "zoo") from None
    import srl
    from srl.config.algorithms import get_algorithm
    from srl.config.hyperparams import PolicyOptions
    from srl.training.policy_options import policy_kwargs
    from srl.tuning.space import sampled_hyperparams, search_space

    for name in ALGORITHMS:
        space = search_space(get_algorithm(name))

        def convert(sampled: Mapping[str, Any], space: Any = space) -> dict[str, Any]:
            values = sampled_hyperparams(space, sampled)
            return values | {"policy_kwargs": policy_kwargs(PolicyOptions(**values["policy_kwargs"]))}

        def sample(
            trial: Any, n_actions: int, n_envs: int, additional_args: Any, space: Any = space
        ) -> dict[str, Any]:
            # The public methods take the arguments of a distribution, and not a distribution
            return convert({each.name: trial._suggest(each.name, each.distribution) for each in space}, space)

        ALGOS[name] = getattr(srl, name.upper())
        HYPERPARAMS_SAMPLER[name] = sample
        HYPERPARAMS_CONVERTER[name] = convert


def zoo_hyperparams(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the entries of a hyperparameter file to the format of rl_zoo3.

    :param entries: Entries by environment, in the format of srl or of the zoo.
    :raises UserError: If the zoo cannot read a value of an entry.
    """
    return {
        env: _zoo_entry(env, entry) if isinstance(entry, dict) else entry for env, entry in entries.items()
    }


def _zoo_entry(env: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    from srl.training.policy_options import ACTIVATIONS

    values = {name: value for name, value in entry.items() if name != "profiles"}
    if values.get("clip_range_vf", 0) is None:  # SB3's default, which the zoo rejects
        del values["clip_range_vf"]
    options = values.get("policy_kwargs")
    if isinstance(options, dict):
        arguments = []
        for name, value in options.items():
            if name in ("features_extractor_class", "features_extractor_kwargs"):
                raise UserError(f"{env}: {name} in policy_kwargs cannot be given to rl_zoo3 as YAML.")
            text = repr(value)
            if name == "activation_fn":
                text = f"nn.{ACTIVATIONS[value].__name__}" if value in ACTIVATIONS else str(value)
            elif name == "optimizer_class":
                text = value if value == "RMSpropTFLike" else f"th.optim.{value}"
            arguments.append(f"{name}={text}")
        # The zoo evaluates this string
        values["policy_kwargs"] = f"dict({', '.join(arguments)})"
    if values.get("env_wrapper") is not None:
        values["env_wrapper"] = _zoo_wrappers(values["env_wrapper"])
    return values


def _zoo_wrappers(wrappers: Any) -> Any:
    """Replace the colon before the class by a dot in the names of wrappers."""
    if isinstance(wrappers, list):
        return [_zoo_wrappers(wrapper) for wrapper in wrappers]
    if isinstance(wrappers, dict):
        return {name.replace(":", "."): arguments for name, arguments in wrappers.items()}
    return wrappers.replace(":", ".")


def with_hyperparams(words: Sequence[str]) -> list[str]:
    """Convert the options of a training run with srl's algorithms to the zoo's format.

    :raises UserError: If the file cannot be read.
    """
    from srl.config.files import configs_dir, read_config

    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--algo")
    parser.add_argument("--conf-file", "-conf")
    options, rest = parser.parse_known_args(words)
    if options.algo not in ALGORITHMS:
        return list(words)
    named = options.conf_file
    if named is not None and not named.endswith((".yml", ".yaml")):
        return list(words)  # a Python module, which the zoo imports
    file = configs_dir() / "hyperparams" / f"{options.algo}.yml" if named is None else Path(named)
    module = ModuleType(_HYPERPARAMS_MODULE, f"The hyperparameters of {file}.")
    module.hyperparams = zoo_hyperparams(read_config(file).data)  # type: ignore[attr-defined]
    sys.modules[_HYPERPARAMS_MODULE] = module
    return ["--algo", options.algo, *rest, "--conf-file", _HYPERPARAMS_MODULE]


def main(words: Sequence[str]) -> None:
    """Run a script of rl_zoo3 with srl's algorithms.

    :param words: The script's name and its options.
    :raises UserError: If there is no such script, or a package is missing.
    """
    name = words[0] if words else ""
    if name in ("-h", "--help"):
        print(f"{__doc__}\nScripts: {', '.join(SCRIPTS)}. Their options: python -m srl.zoo train --help.")
        return
    if name not in SCRIPTS:
        raise UserError(
            f"srl.zoo {name}: name a script of rl_zoo3 first: {', '.join(SCRIPTS)}.{nearest(name, SCRIPTS)}"
        )
    if find_spec("rl_zoo3") is None:
        raise MissingExtra("srl.zoo", "rl_zoo3", "zoo")
    register()
    options = with_hyperparams(words[1:]) if name == "train" else list(words[1:])
    sys.argv = [f"python -m srl.zoo {name}", *options]
    module = SCRIPTS[name]
    if module.startswith("rl_zoo3.plots"):
        # The functions have the names of their modules
        getattr(import_module("rl_zoo3.plots"), module.rpartition(".")[2])()
    else:
        runpy.run_module(module, run_name="__main__")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"srl: {error}", file=sys.stderr)
        sys.exit(2)
