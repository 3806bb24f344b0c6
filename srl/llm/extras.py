"""The optional packages for training language models."""

from __future__ import annotations

import sys
from importlib import metadata
from importlib.util import find_spec

from srl.errors import MissingExtra, UserError

#: The packages of each extra of the distribution.
EXTRAS = {
    "llm": ("transformers", "accelerate", "peft", "datasets"),
    "trl": ("transformers", "accelerate", "peft", "datasets", "trl"),
}
#: The tested versions of TRL, and their requirement. TRL 1.15.0 does not train on the CPU.
TRL_VERSIONS = ("1.12", "1.13", "1.14", "1.16")
TRL_REQUIREMENT = "trl>=1.12,!=1.15.*,<1.17"


def require_experiments() -> None:
    """Check that the packages of the extra ``experiments`` are installed.

    :raises MissingExtra: If one is missing.
    """
    for name in ("pydantic", "ale_py"):
        if find_spec(name) is None:
            raise MissingExtra("srl.llm", name, "experiments")


def require(extra: str) -> None:
    """Check that an extra is installed.

    :param extra: A name of :data:`EXTRAS`.
    :raises UserError: If Python is too old, a package is missing, or the version of TRL was not tested.
    """
    if sys.version_info < (3, 11):
        raise UserError(
            f"Language models need Python 3.11 or later (transformers 5 does); this is Python "
            f"{sys.version_info[0]}.{sys.version_info[1]}."
        )
    missing = [name for name in EXTRAS[extra] if find_spec(name) is None]
    if missing:
        raise UserError(f"Missing: {', '.join(missing)}. Install them: pip install 'symmetric-rl[{extra}]'")
    if extra == "trl":
        check_trl(metadata.version("trl"))


def check_trl(version: str) -> None:
    """Check that a version of TRL was tested, since its internals change.

    :param version: For example ``1.16.0``.
    :raises UserError: If it was not tested.
    """
    if version.rpartition(".")[0] not in TRL_VERSIONS:
        raise UserError(
            f"TRL {version} was not tested with SymmetricGRPOTrainer. Install one that was: "
            f"pip install '{TRL_REQUIREMENT}'"
        )
