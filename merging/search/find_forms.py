"""Find the forms that the weights of a workload's models can have, with their bases and errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ...workload.document.schema import Workload
from ..forms.costs import difference_costs, own_costs
from ..forms.fine_tunes import FineTunes, find_fine_tunes
from ..models.bases import given_bases
from ..strategies.cheapest_forms import OWN_BITS, FormCosts
from ..training.subjects import Subject

__all__ = ["find_forms"]


def find_forms(
    workload: Workload,
    subjects: Mapping[str, Subject],
    found: Callable[[FineTunes], None] = lambda models: None,
    *,
    differences: bool = True,
    compress: bool = False,
) -> FormCosts:
    """Return the errors of all forms that weights can have, and give each model the bases of its fine-tunes.

    Args:
        workload: the workload, which may give bases.
        subjects: the models with their original weights, by name; their ``bases`` are set.
        found: function called with each set of fine-tunes of one checkpoint.
        differences: whether to look for fine-tunes at all.
        compress: whether to measure the errors of codes of the models' own weights.

    Raises:
        InputError: a base that the workload gives is no ancestor of its models.
        ModelError: the file of a base is missing or cannot be read.
    """
    layers = {name: subject.layers for name, subject in subjects.items()}
    states = {name: subject.state() for name, subject in subjects.items()}
    shapes = {name: {layer.parameter: layer.shape for layer in part} for name, part in layers.items()}
    families = []
    for each in find_fine_tunes(layers, states, given_bases(workload, shapes)) if differences else ():
        found(each)
        families.append({name: difference_costs(each, layers[name], states[name]) for name in each.members})
        for name in each.members:
            subjects[name].bases = each.bases
    # The errors of own codes only serve to mix numbers of bits, which takes long to prepare for large models.
    own = {name: own_costs(layers[name], states[name], OWN_BITS if compress else ()) for name in layers}
    return FormCosts(tuple(families), own)
