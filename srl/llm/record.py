"""The record of a run on a language model: logs, evaluations and texts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from stable_baselines3.common.logger import Logger

from srl.llm.sampling import Evaluation
from srl.rundir.files import write_text
from srl.rundir.names import SAMPLES
from srl.training.attempt import Attempt
from srl.training.callbacks import Episodes, EvaluationLog
from srl.training.logs import log_state, make_logger, restore_logger

#: Number of texts in the record.
N_SAMPLES = 12


class Record:
    """Logs, evaluations and texts of a run.

    :param attempt: The attempt at the run.
    :param progress: Existing content of ``progress.csv``.
    """

    def __init__(self, attempt: Attempt, progress: str = ""):
        self._attempt = attempt
        self._spec, self._path = attempt.spec, attempt.path
        self.logger: Logger = make_logger(self._path, progress)
        self._log = EvaluationLog(self._spec, self._path, attempt.note)
        self._samples: list[dict[str, Any]] = []

    @property
    def n_evaluations(self) -> int:
        """Number of evaluations so far."""
        return len(self._log.timesteps)

    def is_due(self, steps: int) -> bool:
        """Whether an evaluation is due: before training, and after each ``eval_freq`` steps."""
        done = self._log.timesteps
        return not done or steps // self._spec.eval_freq > done[-1] // self._spec.eval_freq

    def is_due_at_end(self) -> bool:
        """Whether the final evaluation is missing."""
        return self._log.due_at_end(self._spec.n_timesteps)

    def add(self, steps: int, figures: Mapping[str, float]) -> None:
        """Log the figures of an iteration."""
        for name, figure in figures.items():
            self.logger.record(name, figure)
        self.logger.record("time/total_timesteps", steps, exclude="tensorboard")
        self.logger.dump(steps)

    def add_evaluation(self, steps: int, found: Evaluation) -> None:
        """Log an evaluation, and record some of its texts."""
        for name, figure in found.metrics.items():
            self.logger.record(name, figure)
        n = len(found.scores)
        nothing = [False] * n
        episodes = Episodes(found.scores.tolist(), found.lengths.tolist(), nothing, list(nothing))
        self._log.add(steps, episodes, self.logger)
        texts = list(zip(found.prompts, found.responses, found.scores.tolist(), strict=True))[:N_SAMPLES]
        if not self._samples:
            self._samples = [{"prompt": p, "before": r, "reward_before": s} for p, r, s in texts]
        for sample, (_, response, reward) in zip(self._samples, texts, strict=True):
            sample |= {"after": response, "reward_after": reward}
        write_text(self._path / SAMPLES, json.dumps(self._samples, indent=1, ensure_ascii=False) + "\n")

    def state(self) -> dict[str, Any]:
        """The record as plain data."""
        return {
            "evaluations": self._log.state(),
            "samples": self._samples,
            "logs": log_state(self._path, self.logger),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue the record of an earlier attempt."""
        self._log.restore(state["evaluations"])
        self._samples = state["samples"]
        restore_logger(self.logger, state["logs"])
