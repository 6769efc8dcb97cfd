"""Measure what accuracy models keep, without training, with the same number of bits in all layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..forms.costs import uniform_forms
from ..forms.form_map import FormMap, saved_bytes
from ..layers.groups import ratio
from ..layers.problem import Problem
from ..layers.sharing import SharingMap
from ..strategies.cheapest_forms import DIFFERENCE_BITS, OWN_BITS, FormCosts
from ..training.subjects import Subject
from ..training.trial import Start, Trial, TrialRunner

__all__ = ["KeptAccuracy", "measure_forms"]


@dataclass(frozen=True)
class KeptAccuracy:
    """Accuracies that models keep with the same number of bits in all layers."""

    kind: str
    """``difference`` or ``own``."""
    bits: int
    relative: Mapping[str, float]
    """Query name -> accuracy divided by the accuracy with the original weights."""
    saving: float
    """Fraction of the bytes of these models' convolutions and linear layers that is saved, from 0 to 1."""


def measure_forms(subjects: Mapping[str, Subject], costs: FormCosts) -> Iterator[KeptAccuracy]:
    """Measure every number of bits: differences family by family, then codes of the models' own weights.

    A query that misses its target is measured on a part of its images only.

    Args:
        subjects: the models with their original weights, by name.
        costs: errors of the forms that weights can have.
    """
    runner = TrialRunner(subjects)
    states = {name: subject.state() for name, subject in subjects.items()}
    kinds = [("difference", DIFFERENCE_BITS, family) for family in costs.families] + [("own", OWN_BITS, costs.own)]
    for kind, counts, part in kinds:
        problem = Problem({name: subjects[name].layers for name in part})
        for bits in counts:
            forms, relative = FormMap(), dict[str, float]()
            for name, layers in part.items():
                own = uniform_forms(layers, bits)
                trial = Trial(name, SharingMap(), frozenset({name}), Start("keep"), forms=own, measure=True)
                relative |= runner(trial, states, SharingMap()).relative
                forms = forms.joined(own)
            saving = ratio(saved_bytes(problem, SharingMap(), forms), problem.bytes)
            yield KeptAccuracy(kind, bits, relative, saving)
    for name, subject in subjects.items():
        subject.restore(states[name])
