"""Symmetric losses for language models: SPPO with a critic, in TRL's GRPOTrainer, and in verl.

Needs Python 3.11 and ``pip install 'symmetric-rl[experiments,llm]'``, for TRL ``[experiments,trl]``. The rest
of srl imports this package only when it is used, and transformers and TRL are imported at first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from srl.llm.extras import require_experiments

if TYPE_CHECKING:
    from srl.llm.grpo_trainer import SymmetricGRPOConfig, SymmetricGRPOTrainer
    from srl.llm.sppo_config import SPPOConfig
    from srl.llm.sppo_trainer import SPPOTrainer

__all__ = ["SPPOConfig", "SPPOTrainer", "SymmetricGRPOConfig", "SymmetricGRPOTrainer"]
_MODULES = {
    "SPPOConfig": "srl.llm.sppo_config",
    "SPPOTrainer": "srl.llm.sppo_trainer",
    "SymmetricGRPOConfig": "srl.llm.grpo_trainer",
    "SymmetricGRPOTrainer": "srl.llm.grpo_trainer",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require_experiments()
    return getattr(import_module(_MODULES[name]), name)
