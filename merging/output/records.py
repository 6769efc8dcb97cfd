"""Convert trials to journal entries and weights to files, and back, so that a search can be resumed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save

from ...errors import InputError, first_line
from ..layers.sharing import Use
from ..strategies import Verdict
from ..training.subjects import State
from ..training.trial import Outcome, Trial

__all__ = [
    "Confirmed",
    "entry_of",
    "key_of",
    "outcome_of",
    "pack_states",
    "read_confirmed",
    "trial_number",
    "unpack_states",
]


class Confirmed(NamedTuple):
    """What a merge goes back to if less is left of its last step."""

    trial: int = 0
    """Number of the trial after which the search had it; 0 for the original models."""
    failed: tuple[str, ...] = ()
    """Names of the models that had weights which were not confirmed."""


def entry_of(verdict: Verdict) -> dict[str, Any]:
    """Return the journal entry for the verdict on a trial, as a dict that can be written as JSON."""
    outcome = verdict.outcome
    return {
        "key": key_of(verdict.trial),
        "group": verdict.trial.group,
        "accepted": verdict.accepted,
        "accuracies": outcome.accuracies,
        "relative": outcome.relative,
        "met": sorted(outcome.met),
        "samples": outcome.samples,
        "seconds": outcome.seconds,
        "ended": outcome.ended,
        "strain": [[list(use), value] for use, value in sorted(outcome.strain.items())],
    }


def outcome_of(entry: Mapping[str, Any]) -> Outcome:
    """Return the outcome of a trial, without weights, from a journal entry that :func:`entry_of` made."""
    strain = {Use(*use): value for use, value in entry["strain"]}
    fields = {name: entry[name] for name in ("accuracies", "relative", "samples", "seconds", "ended")}
    return Outcome(met=frozenset(entry["met"]), strain=strain, **fields)


def key_of(trial: Trial) -> str:
    """Return a hash of a trial that is equal for equal trials, in any process."""
    fields = asdict(trial) | {"learners": sorted(trial.learners)}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:32]


def pack_states(states: Mapping[str, State]) -> bytes:
    """Return the content of one safetensors file with the weights of several models (model name -> state dict)."""
    content: bytes = save(
        {f"{model}/{name}": value for model, state in states.items() for name, value in state.items()}
    )
    return content


def unpack_states(path: Path) -> dict[str, State]:
    """Load model name -> state dict from a file with the content that :func:`pack_states` makes.

    Raises:
        InputError: the file is damaged or cannot be read.
    """
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: damaged; the search cannot be resumed: {first_line(error)}") from error
    states: dict[str, State] = {}
    for name, value in tensors.items():
        model, _, parameter = name.partition("/")
        states.setdefault(model, {})[parameter] = value
    return states


def read_confirmed(path: Path, trials: int) -> Confirmed:
    """Read what a merge with some trials goes back to; the original models if the file is not sound."""
    try:
        entry = json.loads(path.read_text())
        found = Confirmed(entry["trial"], tuple(map(str, entry["failed"])))
        return found if 0 <= found.trial <= trials else Confirmed()
    except (OSError, ValueError, TypeError, KeyError):
        return Confirmed()


def trial_number(path: Path) -> int:
    """Return the number N of a file that is named ``last-N.safetensors``; 0 if the name has no number."""
    digits = path.stem.partition("-")[2]
    return int(digits) if digits.isdigit() else 0
