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
    IntervalReport,
    MergeReport,
    QueryReport,
    SharedTensor,
    TrialReport,
    UseReport,
)
from ...frames.reference import is_local_file
from ...workload.document.schema import Workload
from ...workload.models.identity import PRETRAINED_FOLDER
from ..forms.form_map import saved_bytes
from ..forms.quantize import Coded
from ..layers.groups import ratio
from ..layers.problem import Problem, pair_layers
from ..layers.sharing import Use
from ..search.search import Found
from ..training.subjects import JudgedQuery, Judgement, State, Subject
from .confirm import Confirmer
from .footprint import bundle_bytes, held_by
from .parts import saving_parts, stored_forms
from .remembered import Remembered

__all__ = ["Reporter", "merged_workload"]

_PRIVATE = (
    "private: it missed its target with shared weights on the samples, and nothing that was tried has brought it back;"
    " it has its original weights; more samples of the new scene, more --steps or a lower target would help"
)
"""Note on a query whose model lost its shared weights when a search went on from an earlier merge."""


class Reporter:
    """Maker of reports (merge.json) on one search. The bytes of the original models are counted once, for all reports.

    Args:
        problem: the layers of all models.
        subjects: the models, by name.
        originals: model name -> original weights.
        strategy: name of the search strategy.
        left: model -> reason, for models that the search leaves as they are.
    """

    def __init__(
        self,
        problem: Problem,
        subjects: Mapping[str, Subject],
        originals: Mapping[str, State],
        strategy: str,
        left: Mapping[str, str] | None = None,
    ) -> None:
        self._problem, self._subjects, self._strategy = problem, subjects, strategy
        self._left, self.confirmer = dict(left or {}), Confirmer(problem, subjects, originals)
        # All at once: what originals have in common, such as the anchors of two detectors, merging does not save.
        self._original = bundle_bytes(held_by(subject) for subject in subjects.values())
        self._least = _least_bytes(problem, subjects)
        self._merged = Remembered[int]()

    def confirmed(self, found: Found) -> Found:
        """Return what holds of a search's result on images which chose nothing, and so may be written."""
        return self.confirmer.confirmed(found)

    def report(
        self,
        found: Found,
        *,
        finished: bool,
        codes: Mapping[Use, Coded] | None = None,
        forms: FormsReport | None = None,
    ) -> MergeReport:
        """Return a report on a search, which may be still going on, with what may be written of its result.

        ``original_bytes`` and ``merged_bytes`` count what bundles hold (:mod:`.footprint`): one bundle with all
        original models, and one bundle with all merged models. ``layer_bytes`` and ``layer_saving`` follow from the
        sharing map alone: every shared kernel counts as held once, even a small kernel that the compiler folds and so
        holds several times.

        Args:
            found: state of the search.
            finished: whether the search has come to its end.
            codes: codes of all weights that are kept as codes.
            forms: entry in the report of the weights that are confirmed and kept as codes.
        """
        problem = self._problem
        searched, found = found, self.confirmed(found)
        merged = self._merged.of(found, lambda: self._bytes(found, codes or {}))
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
            queries=dict(self._query_reports(searched, found)),
            left=self._left,
            trials=tuple(_trial_reports(problem, found)),
            shared=tuple(_shared_tensors(problem, found)),
            forms=forms,
            parts=saving_parts(problem, searched, found),
        )

    def _bytes(self, found: Found, codes: Mapping[Use, Coded]) -> int:
        """Return the bytes of a bundle with all models of a search's state.

        Args:
            found: state of the search.
            codes: codes of all weights that are kept as codes and not in ``found``.
        """
        stored = stored_forms(found.forms, {**codes, **found.codes}, self._subjects)
        return bundle_bytes(
            held_by(subject, found.states[name], stored.get(name)) for name, subject in self._subjects.items()
        )

    def _query_reports(self, searched: Found, written: Found) -> Iterator[tuple[str, QueryReport]]:
        """Yield each query's name and report, by the images that confirm.

        Args:
            searched: state of the search.
            written: the part of it that is confirmed.
        """
        released = {name for each in searched.verdicts if each.trial.release for name in each.trial.learners}
        went_back = self.confirmer.kept is not None and written.states is self.confirmer.kept.states
        for name, subject in self._subjects.items():
            found = kept = self.confirmer.judgements(name, searched.states[name])
            refused, now = written.states[name] is not searched.states[name], "its original weights"
            if refused and name in written.models:
                kept = self.confirmer.judgements(name, written.states[name])
                now = "the weights of an earlier step, which are confirmed" if went_back else "forms of more bits"
            elif refused:
                kept = self.confirmer.originals(name)
            left_private = name in released and name not in searched.models
            for held in subject.held:
                query = held.query.name
                report = _query_report(name, held, kept[query], found[query] if refused else None, now)
                yield query, report.model_copy(update={"notes": (*report.notes, _PRIVATE)}) if left_private else report


def _query_report(model: str, held: JudgedQuery, found: Judgement, refused: Judgement | None, now: str) -> QueryReport:
    """Return the report on one query.

    Args:
        model: name of the query's model.
        held: the query.
        found: judgement of the weights that are written.
        refused: judgement of the weights that the search found, if these were not confirmed.
        now: name of the weights that are written in their place.
    """
    target, notes = held.query.target, list(held.notes)
    if refused is not None:
        state = "not confirmed" if not refused.passes(target) else "not merged, as its partners were not confirmed"
        advice = refused.advice(target) or "more frames, or a lower target, would help"
        notes.append(f"{state}: {refused}; it has {now}; {advice}")
    parts = {
        name: None
        if part is None
        else IntervalReport(images=part.images, value=part.value, low=part.low, high=part.high)
        for name, part in (("own", found.own), ("mix", found.mix), ("scores", found.scores), ("samples", found.samples))
    }
    return QueryReport(
        model=model,
        original=found.original,
        reached=found.accuracy,
        relative=found.own.value,
        target=target,
        notes=tuple(notes),
        **parts,
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
    if workload.stills is not None:
        content["stills"] = _rebase(workload.stills, workload.root, output)
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
