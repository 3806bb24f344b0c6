"""Read specs of other versions of srl, with unknown keys apart."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import reduce
from operator import getitem
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from srl.config.algorithms import get_algorithm
from srl.config.language_models import hyperparams_model
from srl.config.spec import LENIENT, RunSpec

_Model = TypeVar("_Model", bound=BaseModel)
_FORMAT: int = RunSpec.model_fields["format"].default


@dataclass(frozen=True)
class LenientSpec:
    """A spec and the unknown keys of its file."""

    spec: RunSpec
    #: Values of unknown keys, by dotted keys such as ``hyperparams.new``; also ``format``, if it is higher
    #: than this version's.
    unknown: dict[str, Any]
    #: SHA-256 of the file and, if it has all keys of this version, of the file that this version would write:
    #: unknown keys and the layout do not change the values of known keys.
    digests: frozenset[str]


def spec_text(spec: RunSpec) -> str:
    """The content of a run's ``spec.json``."""
    return spec.model_dump_json(indent=1) + "\n"


def read_leniently(content: bytes) -> LenientSpec:
    """Read a spec that this version or another one wrote.

    Missing keys have their defaults. Unknown keys, nested ones included, are returned separately. Unknown
    reward noise is kept as it is: the user's module that registers it is not imported.

    :raises ValidationError, ValueError, TypeError: If it is not the spec of a run.
    """
    known = json.loads(content)
    if not isinstance(known, dict):
        raise TypeError("it must be a mapping of keys to values")
    unknown: dict[str, Any] = {}
    if isinstance(known.get("format"), int) and known["format"] > _FORMAT:
        unknown["format"] = known["format"]
        known["format"] = _FORMAT
    parsed = dict(known)
    if isinstance(known.get("hyperparams"), dict):
        model = hyperparams_model(get_algorithm(str(known.get("algo"))))
        parsed["hyperparams"] = _without_unknown(model, known["hyperparams"], "hyperparams.", unknown)
    spec = _without_unknown(RunSpec, parsed, "", unknown)
    known = {key: value for key, value in known.items() if key in parsed}
    digests = {hashlib.sha256(content).hexdigest()}
    if known == spec.model_dump(mode="json"):
        digests.add(hashlib.sha256(spec_text(spec).encode()).hexdigest())
    return LenientSpec(spec, unknown, frozenset(digests))


def _without_unknown(
    model: type[_Model], values: dict[str, Any], prefix: str, unknown: dict[str, Any]
) -> _Model:
    """Validate values; unknown keys are moved to ``unknown``."""
    while True:
        try:
            return model.model_validate(values, context=LENIENT)
        except ValidationError as error:
            places = [detail["loc"] for detail in error.errors() if detail["type"] == "extra_forbidden"]
            if not places:
                raise
            for *parents, key in places:
                holder: Any = reduce(getitem, parents, values)  # type: ignore[arg-type]
                unknown[prefix + ".".join(map(str, [*parents, key]))] = holder.pop(key)
