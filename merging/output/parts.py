"""Parts of what a merge saves: sharing and compression, and what a bundle holds of weights that are kept as codes."""

from __future__ import annotations

from collections.abc import Mapping

from ...bundles.merge_report import SavingParts
from ..forms.form_map import FormMap, saved_bytes
from ..forms.quantize import Coded
from ..layers.groups import ratio
from ..layers.problem import Problem
from ..layers.sharing import SharingMap, Use
from ..search.search import Found
from ..training.subjects import Subject
from .footprint import StoredForm

__all__ = ["saving_parts", "stored_forms"]


def stored_forms(
    forms: FormMap, codes: Mapping[Use, Coded], subjects: Mapping[str, Subject]
) -> dict[str, dict[str, StoredForm]]:
    """Return model -> name in the state dict -> what a bundle holds of the kernel, for kernels kept as codes."""
    found: dict[str, dict[str, StoredForm]] = {}
    for use, form in forms.forms:
        base = subjects[use.model].bases[form.base] if form.base is not None else None
        if form.bits:
            found.setdefault(use.model, {})[use.parameter] = StoredForm(codes[use], base)
        elif base is not None and base.coded is not None:
            found.setdefault(use.model, {})[use.parameter] = StoredForm(base.coded)
    return found


def saving_parts(problem: Problem, searched: Found, found: Found) -> SavingParts:
    """Return what sharing and compression save of a merge's layers, together and alone.

    Differences are sharing, as if their bases were float32. What codes save of the bases is compression.

    Args:
        problem: the layers of all models.
        searched: state of the search.
        found: the part of it that is confirmed.
    """
    total = saved_bytes(problem, found.sharing, found.forms)
    sharing = saved_bytes(problem, found.sharing, found.forms.plain_differences)
    alone = [
        saved_bytes(problem, verdict.sharing, verdict.forms.plain_differences)
        for verdict in found.verdicts
        # What is not confirmed may not be claimed.
        if verdict.accepted and (found.models, found.sharing) == (searched.models, searched.sharing)
    ]
    # Codes of original weights are measured one model at a time; the best of each model add up.
    measured = [
        verdict
        for verdict in found.verdicts
        if verdict.trial.measure and verdict.trial.forms.own == verdict.trial.forms
    ]
    best = dict[str, int]()
    for verdict in measured:
        if verdict.trial.base == "original" and verdict.outcome.met:
            (name,) = verdict.trial.learners
            best[name] = max(best.get(name, 0), saved_bytes(problem, SharingMap(), verdict.trial.forms))
    return SavingParts(
        sharing=ratio(sharing, problem.bytes),
        compression=ratio(total - sharing, problem.bytes),
        sharing_alone=ratio(max([sharing, *alone]), problem.bytes),
        compression_alone=ratio(sum(best.values()), problem.bytes) if measured else None,
    )
