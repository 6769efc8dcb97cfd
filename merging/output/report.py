"""merge.json and workload.yaml of what a search found."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import yaml

from ...bundles.blob import tensor_id
from ...bundles.merge_report import MergeReport, QueryReport, SharedTensor, TrialReport, UseReport
from ...environment import expand
from ...frames.reference import is_local_file
from ...workload.document.schema import Workload
from ..layers.groups import ratio
from ..layers.problem import Problem, pair_layers
from ..search.search import Found
from ..training.subjects import Subject
from .footprint import bundle_bytes, held_by

__all__ = ["Reporter", "merged_workload"]


class Reporter:
    """Reports on one search. What the original models hold does not change in it, and is counted once.

    Args:
        problem: what is searched.
        subjects: its models.
        strategy: the name of what searches.
    """

    def __init__(self, problem: Problem, subjects: Mapping[str, Subject], strategy: str) -> None:
        self._problem, self._subjects, self._strategy = problem, subjects, strategy
        self._original = sum(bundle_bytes([held_by(subject)]) for subject in subjects.values())
        self._least = _least_bytes(problem, subjects)

    def report(self, found: Found, *, finished: bool) -> MergeReport:
        """The report at the end of the search, or on the way.

        ``original_bytes`` and ``merged_bytes`` are what bundles hold (:mod:`.footprint`): the original
        models each alone, and the merged ones together. What is said of layers alone is of the sharing map: all that
        is shared counts, also small kernels that a bundle holds folded.
        """
        problem, subjects = self._problem, self._subjects
        now = bundle_bytes(held_by(subject, found.states[name]) for name, subject in subjects.items())
        layers = sum(layer.bytes for part in problem.layers.values() for layer in part)
        return MergeReport(
            strategy=self._strategy,
            seed=problem.seed,
            original_bytes=self._original,
            merged_bytes=now,
            layer_bytes=layers,
            saving=ratio(self._original - now, self._original),
            layer_saving=ratio(problem.saved(found.sharing), layers),
            potential=ratio(self._original - self._least, self._original),
            finished=finished,
            queries=dict(_queries(subjects, found)),
            trials=tuple(_trials(problem, found)),
            shared=tuple(_shared(problem, found)),
        )


def _queries(subjects: Mapping[str, Subject], found: Found) -> Iterator[tuple[str, QueryReport]]:
    for name, subject in subjects.items():
        for held in subject.held:
            merged = name in found.sharing.models
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
    """What a bundle of the original models holds when they share all that they could share with each other."""
    held = {name: held_by(subject) for name, subject in subjects.items()}
    states = {name: dict(each.state) for name, each in held.items()}
    for _, slot in pair_layers(problem):
        for use in slot:
            states[use.model][use.parameter] = states[slot[0].model][slot[0].parameter]
    return bundle_bytes(replace(each, state=states[name]) for name, each in held.items())


def _trials(problem: Problem, found: Found) -> Iterator[TrialReport]:
    for verdict in found.verdicts:
        yield TrialReport(
            group=verdict.trial.group,
            models=tuple(sorted(verdict.trial.learners)),
            accepted=verdict.accepted,
            seconds=round(verdict.outcome.seconds, 3),
            samples=verdict.outcome.samples,
            accuracies=verdict.outcome.accuracies,
            ended=verdict.outcome.ended,
            saved_bytes=problem.saved(verdict.sharing),
        )


def _shared(problem: Problem, found: Found) -> Iterator[SharedTensor]:
    for slot in found.sharing.slots:
        value = found.states[slot[0].model][slot[0].parameter]
        uses = tuple(UseReport(query=use.model, parameter=use.parameter) for use in slot)
        yield SharedTensor(tensor=tensor_id(value.numpy()), bytes=problem.size(slot[0]), uses=uses)


def merged_workload(workload: Workload, files: Mapping[str, str], model_of: Mapping[str, str], output: Path) -> bytes:
    """workload.yaml for the folder ``output``: the same queries with merged weights.

    Args:
        workload: the original one.
        files: a model's name to its weight file, relative to ``output``; other models keep theirs.
        model_of: query to model.
        output: where the file will be; paths are written relative to it.
    """
    content = workload.model_dump(mode="json", exclude_unset=True)
    for feed in content["feeds"].values():
        # What stands for the address of a camera may be a variable alone.
        if is_local_file(expand(feed["source"])):
            feed["source"] = _moved(feed["source"], workload.root, output)
    for query, entry in zip(workload.queries, content["queries"], strict=True):
        model = entry["model"]
        field = "onnx" if query.model.onnx is not None else "weights"
        if (file := files.get(model_of[query.name])) is not None:
            model[field] = file
        elif (reference := getattr(query.model, field)) is not None:
            model[field] = _moved(reference, workload.root, output)
        for name, reference in (entry.get("data") or {}).items():
            if reference is not None:
                entry["data"][name] = _moved(reference, workload.root, output)
    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    return text.encode()


def _moved(reference: str, root: Path, output: Path) -> str:
    """A path seen from another folder; what is absolute or in a package stays."""
    path = Path(reference).expanduser()
    if reference.startswith("package:") or path.is_absolute():
        return reference
    # Through a link to a folder, .. leads to where that folder really lies.
    return os.path.relpath(root.resolve() / path, output.resolve())
