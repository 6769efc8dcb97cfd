"""State of a search: what it has committed so far."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ...errors import GemelError
from ..forms.form_map import NO_FORMS, FormMap
from ..forms.quantize import Coded
from ..layers.sharing import SharingMap, Use
from ..strategies import Verdict
from ..training.subjects import State

__all__ = ["Found", "prove_shared"]


@dataclass
class Found:
    """State of a search: committed weights, sharing and accuracies, and the verdicts so far."""

    states: dict[str, State]
    """Model name -> committed weights; the original weights for models that share nothing."""
    sharing: SharingMap = field(default_factory=SharingMap)
    """Sharing map that the search has committed so far."""
    accuracies: dict[str, float] = field(default_factory=dict)
    """Query name -> accuracy with the committed weights, for queries whose models share."""
    samples: int = 0
    """Number of images that models were trained on, summed over models, steps and trials."""
    verdicts: list[Verdict] = field(default_factory=list)
    """Verdicts on all trials, in order, without weights."""
    forms: FormMap = NO_FORMS
    """Forms of weights that the search has committed so far."""
    codes: dict[Use, Coded] = field(default_factory=dict)
    """Weight -> codes of its committed form. Codes of trials that a journal recalled are missing."""

    retained: frozenset[str] = frozenset()
    """Names of the models that keep the weights of an earlier merge, even if nobody shares with them any more."""

    @property
    def models(self) -> frozenset[str]:
        """Names of the models whose weights are not those before the merge: they share, have forms, or are retained."""
        return self.sharing.models | self.forms.models | self.retained


def prove_shared(found: Found) -> None:
    """Check that weights which count as shared are equal, so that a bug in a strategy is not reported as a saving.

    Raises:
        GemelError: two weights that count as shared differ.
    """
    for slot in found.sharing.slots:
        first, *others = (found.states[use.model][use.parameter] for use in slot)
        for use, other in zip(slot[1:], others, strict=True):
            if not torch.equal(first, other):
                raise GemelError(
                    f"{slot[0].model}: {slot[0].parameter} was to be shared with {use.model}: {use.parameter}, but"
                    " their weights differ; this is a bug in the strategy; the last commit is intact"
                )
