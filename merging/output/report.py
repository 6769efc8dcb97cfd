"""Make merge.json and workload.yaml from the state of a search."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import yaml

from ...bundles.blob import tensor_id
from ...bundles.merge_report import (
    FormsReport,
    MergeReport,
    QueryReport,
    SavingParts,
    SharedTensor,
    TrialReport,
    UseReport,
)
from ...frames.reference import is_local_file
from ...workload.document.schema import Workload
from ...workload.models.identity import PRETRAINED_FOLDER
from ..forms.form_map import FormMap, saved_bytes
from ..forms.quantize import Coded
from ..layers.groups import ratio
from ..layers.problem import Problem, pair_layers
from ..layers.sharing import SharingMap, Use
from ..search.search import Found
from ..training.subjects import Subject
from .footprint import StoredForm, bundle_bytes, held_by

__all__ = ["Reporter", "merged_workload"]


class Reporter:
    """Maker of reports (merge.json) on one search. The bytes of the original models are counted once, for all reports.

    Args:
        problem: the layers of all models.
        subjects: the models, by name.
        strategy: name of the search strategy.
    """

    def __init__(self, problem: Problem, subjects: Mapping[str, Subject], strategy: str) -> None:
        self._problem, self._subjects, self._strategy = problem, subjects, strategy
        self._original = sum(bundle_bytes([held_by(subject)]) for subject in subjects.values())
        self._least = _least_bytes(problem, subjects)

    def report(
        self,
        found: Found,
        *,
        finished: bool,
        codes: Mapping[Use, Coded] | None = None,
        forms: FormsReport | None = None,
    ) -> MergeReport:
        """Return a report on a search, which may be still going on.

        ``original_bytes`` and ``merged_bytes`` count what bundles hold (:mod:`.footprint`): the sum of one bundle per
        original model, and one bundle with all merged models. ``layer_bytes`` and ``layer_saving`` follow from the
        sharing map alone: every shared kernel counts as held once, even a small kernel that the compiler folds and so
        holds several times.

        Args:
            found: state of the search.
            finished: whether the search has come to its end.
            codes: codes of all weights that are kept as codes.
            forms: entry of these weights in the report.
        """
        problem, subjects = self._problem, self._subjects
        stored = _stored_forms(found.forms, codes or {}, subjects)
        merged = bundle_bytes(
            held_by(subject, found.states[name], stored.get(name)) for name, subject in subjects.items()
        )
        layers = sum(layer.bytes for part in problem.layers.values() for layer in part)
        return MergeReport(
            strategy=self._strategy,
            seed=problem.seed,
            original_bytes=self._original,
            merged_bytes=merged,
            layer_bytes=layers,
            saving=ratio(self._original - merged, self._original),
            layer_saving=ratio(saved_bytes(problem, found.sharing, found.forms), layers),
            potential=ratio(self._original - self._least, self._original),
            finished=finished,
            queries=dict(_query_reports(subjects, found)),
            trials=tuple(_trial_reports(problem, found)),
            shared=tuple(_shared_tensors(problem, found)),
            forms=forms,
            parts=_saving_parts(problem, found),
        )


def _stored_forms(
    forms: FormMap, codes: Mapping[Use, Coded], subjects: Mapping[str, Subject]
) -> dict[str, dict[str, StoredForm]]:
    """Return model -> name in the state dict -> what a bundle holds of the kernel, for kernels kept as codes."""
    found: dict[str, dict[str, StoredForm]] = {}
    for use, form in forms.forms:
        if form.bits:
            base = subjects[use.model].bases[form.base] if form.base is not None else None
            found.setdefault(use.model, {})[use.parameter] = StoredForm(codes[use], base)
    return found


def _saving_parts(problem: Problem, found: Found) -> SavingParts:
    """Return what sharing and compression save of a merge's layers, together and alone."""
    total = saved_bytes(problem, found.sharing, found.forms)
    sharing = saved_bytes(problem, found.sharing, found.forms.differences)
    alone = [
        saved_bytes(problem, verdict.sharing, verdict.forms.differences)
        for verdict in found.verdicts
        if verdict.accepted
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


def _query_reports(subjects: Mapping[str, Subject], found: Found) -> Iterator[tuple[str, QueryReport]]:
    """Yield each query's name and report. A query whose model keeps its weights gets its original accuracy."""
    for name, subject in subjects.items():
        for held in subject.held:
            merged = name in found.models
            reached = found.accuracies[held.query.name] if merged else held.original
            yield (
                held.query.name,
                QueryReport(
                    model=name,
                    original=held.original,
                    reached=reached,
                    relative=reached / held.original,
                    target=held.query.target,
                ),
            )


def _least_bytes(problem: Problem, subjects: Mapping[str, Subject]) -> int:
    """Return the bytes of a bundle in which the original models share all layers that they could share."""
    held = {name: held_by(subject) for name, subject in subjects.items()}
    states = {name: dict(each.state) for name, each in held.items()}
    for _, slot in pair_layers(problem):
        for use in slot:
            states[use.model][use.parameter] = states[slot[0].model][slot[0].parameter]
    return bundle_bytes(replace(each, state=states[name]) for name, each in held.items())


def _trial_reports(problem: Problem, found: Found) -> Iterator[TrialReport]:
    """Yield a report on each trial, in the order of the search."""
    for verdict in found.verdicts:
        yield TrialReport(
            group=verdict.trial.group,
            models=tuple(sorted(verdict.trial.learners)),
            accepted=verdict.accepted,
            seconds=round(verdict.outcome.seconds, 3),
            samples=verdict.outcome.samples,
            accuracies=verdict.outcome.accuracies,
            ended=verdict.outcome.ended,
            saved_bytes=saved_bytes(problem, verdict.sharing, verdict.forms),
        )


def _shared_tensors(problem: Problem, found: Found) -> Iterator[SharedTensor]:
    """Yield a report on each tensor that several layer weights share."""
    for slot in (*found.sharing.slots, *found.forms.slots):
        value = found.states[slot[0].model][slot[0].parameter]
        uses = tuple(UseReport(query=use.model, parameter=use.parameter) for use in slot)
        yield SharedTensor(tensor=tensor_id(value.numpy()), bytes=problem.size(slot[0]), uses=uses)


def merged_workload(workload: Workload, files: Mapping[str, str], model_of: Mapping[str, str], output: Path) -> bytes:
    """Return the content of the merged workload.yaml: the queries of the original workload, with merged weights.

    Args:
        workload: the original workload.
        files: merged model's name -> its weight file, relative to ``output``; other models keep their files.
        model_of: query name -> model name.
        output: folder of the merged workload.yaml; relative paths are rewritten so that they start from this folder.
    """
    content = workload.model_dump(mode="json", exclude_unset=True)
    if workload.base is not None:
        content["base"] = _rebase(workload.base, workload.root, output)
    for feed in content["feeds"].values():
        # A source that still begins with a variable is a camera's address, which is filled in where the bundle runs.
        if is_local_file(feed["source"]) and not feed["source"].startswith("${"):
            feed["source"] = _rebase(feed["source"], workload.root, output)
    for query, entry in zip(workload.queries, content["queries"], strict=True):
        model = entry["model"]
        field = "onnx" if query.model.onnx is not None else "weights"
        if (file := files.get(model_of[query.name])) is not None:
            model[field] = file
        elif (reference := getattr(query.model, field)) is not None:
            model[field] = _rebase(reference, workload.root, output)
        if query.model.base is not None:
            model["base"] = _rebase(query.model.base, workload.root, output)
        folder = (model.get("args") or {}).get(PRETRAINED_FOLDER)
        if isinstance(folder, str) and (workload.root / Path(folder).expanduser()).is_dir():
            model["args"][PRETRAINED_FOLDER] = _rebase(folder, workload.root, output)
        for name, reference in (entry.get("data") or {}).items():
            if reference is not None:
                entry["data"][name] = _rebase(reference, workload.root, output)
    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    return text.encode()


def _rebase(reference: str, root: Path, output: Path) -> str:
    """Rewrite a path that is relative to ``root`` so that it is relative to ``output``.

    An absolute path and a reference into a package (``package:``) stay as they are.
    """
    path = Path(reference).expanduser()
    if reference.startswith("package:") or path.is_absolute():
        return reference
    # Resolve links: `..` in a linked folder leads to the parent of the folder that the link points to.
    return os.path.relpath(root.resolve() / path, output.resolve())
