"""What an earlier merge has written, as the start of a search that goes on from it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError

from ...bundles.blob import tensor_id
from ...bundles.merge_report import MERGE_REPORT, LayerReport, MergeReport, read_report
from ...errors import GemelError, InputError, first_line
from ...workload import load_workload
from ...workload.document.schema import Workload
from ...workload.models.identity import models_of
from ..forms.form_map import Form, FormMap
from ..forms.quantize import Base, Coded, materialize
from ..layers.sharing import SharingMap, Use
from ..search.found import Found
from ..strategies.cheapest_forms import FormCosts
from ..training.subjects import State, Subject
from .disk_journal import read_weights
from .forms_file import read_codes

__all__ = ["EarlierMerge", "open_earlier"]

_SCHEMA = "1"
"""Major version of merge.json that can be continued."""
_DIGEST = re.compile(r".+-([0-9a-f]{8})\.(safetensors|onnx)")


class EarlierMerge:
    """Folder that an earlier merge of the same workload has written.

    Args:
        folder: the folder.
        report: its merge.json.
        files: merged model -> its weight file.
        digest: hash of merge.json and workload.yaml, by which a search that is resumed knows the folder.
    """

    def __init__(self, folder: Path, report: MergeReport, files: Mapping[str, Path], digest: str) -> None:
        self.folder, self.report, self.files, self.digest = folder, report, dict(files), digest

    def start(self, subjects: Mapping[str, Subject], left: Mapping[str, str], costs: FormCosts) -> Found:
        """Return the state that the earlier merge ended with.

        Args:
            subjects: the models with their original weights, by name.
            left: model -> reason, for models that could not be loaded.
            costs: forms that the weights can have; the bases are in the subjects.

        Raises:
            InputError: a file is damaged or is not that of this workload.
        """
        for name in self.files:
            if name not in subjects:
                raise InputError(f"{self.folder}: query {name}: is merged, and {left.get(name, 'is not a model here')}")
        states = {name: subject.state() for name, subject in subjects.items()}
        for name, path in self.files.items():
            states[name] = self._state(subjects[name], path, states[name])
        forms, codes = self._forms(subjects, states, costs)
        slots = [tuple(sorted(Use(use.query, use.parameter) for use in each.uses)) for each in self.report.shared]
        for slot, shared in zip(slots, self.report.shared, strict=True):
            for use in slot:
                value = states.get(use.model, {}).get(use.parameter)
                if value is None or tensor_id(value.numpy()) != shared.tensor:
                    raise InputError(f"{self.folder}: query {use.model}: {use.parameter} is not what merge.json says")
        bases = {frozenset(slot) for slot in forms.slots}
        sharing = SharingMap().joined(slot for slot in slots if frozenset(slot) not in bases)
        return Found(states, sharing, forms=forms, codes=codes, retained=frozenset(self.files))

    def _state(self, subject: Subject, path: Path, original: State) -> State:
        """Read the merged weights of a model.

        Raises:
            InputError: the file is missing, damaged, or of another model.
        """
        try:
            match, content = _DIGEST.fullmatch(path.name), path.read_bytes()
            if match and hashlib.sha256(content).hexdigest()[:8] != match[1]:
                raise InputError(f"{path}: damaged: it is not the file that its name says")
            state = read_weights(subject.network, path)
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from error
        except (GemelError, SafetensorError) as error:
            raise InputError(f"{self.folder}: query {subject.name}: {first_line(error)}") from error
        if {key: value.shape for key, value in state.items()} != {key: each.shape for key, each in original.items()}:
            raise InputError(f"{self.folder}: query {subject.name}: {path.name} has the weights of another model")
        return state

    def _forms(
        self, subjects: Mapping[str, Subject], states: Mapping[str, State], costs: FormCosts
    ) -> tuple[FormMap, dict[Use, Coded]]:
        """Return the forms of the merged weights, and the codes of these forms.

        A base is known by its values: it is that of the original models' family.

        Raises:
            InputError: the file of forms is damaged, or its bases are not those of the original models.
        """
        if self.report.forms is None:
            return FormMap(), {}
        path = self.folder / self.report.forms.file
        codes, base_codes = read_codes(path, self.report.forms.layers)
        key_of = {cost.use: cost.base for part in costs.families for each in part.values() for cost in each}
        forms: dict[Use, Form] = {}
        for layer in self.report.forms.layers:
            use = Use(layer.model, layer.parameter)
            key = key_of.get(use)
            base = subjects[layer.model].bases[key] if key is not None and layer.model in subjects else None
            held = use.model in self.files and use.parameter in states[use.model]
            if layer.kind == "coded":
                is_base = base is not None and base.coded is not None and _equal(base.coded, codes[use])
                forms[use] = Form(0, key, base.bits) if is_base and base is not None else Form(layer.bits)
                value = materialize(codes[use]) if held else None
            else:
                if base is None or not _is_base(base, layer, base_codes.get(use)):
                    raise InputError(
                        f"{self.folder}: query {use.model}: the base of {use.parameter} is not that of the models of"
                        " this workload; they are other weights now, or another version of gemel merged them"
                    )
                forms[use] = Form(layer.bits, key, base.bits)
                value = materialize(codes[use], base.kernel) if held else None
            if value is None or not torch.equal(value, states[use.model][use.parameter]):
                raise InputError(f"{self.folder}: query {use.model}: {use.parameter} is not what its codes give")
        listed = {use.model for use in forms}
        for use, key in key_of.items():
            # A weight that is a float32 base as it stands has no codes.
            if use not in forms and use.model in listed and key is not None:
                base = subjects[use.model].bases[key]
                if base.coded is None and torch.equal(base.kernel, states[use.model][use.parameter]):
                    forms[use] = Form(0, key)
        found = FormMap().joined(forms)
        return found, {use: codes[use] for use, form in found.forms if form.bits}


def open_earlier(folder: Path, workload: Workload) -> EarlierMerge:
    """Open the folder that an earlier merge of a workload has written.

    Args:
        folder: the folder.
        workload: the original workload.

    Raises:
        InputError: the folder holds no merge, a damaged one, or one of another workload or version.
    """
    path = folder / MERGE_REPORT
    if not path.is_file():
        raise InputError(f"--from: {folder}: holds no merge: {MERGE_REPORT} is missing")
    report = read_report(path)
    if report.schema_version.partition(".")[0] != _SCHEMA:
        raise InputError(f"--from: {path}: version {report.schema_version}; this gemel goes on from {_SCHEMA}.x")
    merged = load_workload(folder / "workload.yaml")
    _check_same(folder, workload, merged)
    models, files = models_of(workload), dict[str, Path]()
    for query in merged.queries:
        reference = query.model.onnx or query.model.weights or ""
        found = folder / reference
        # A merge writes a model's weights into its own folder; other models keep their files.
        if reference.startswith("weights/") and _DIGEST.fullmatch(found.name) and models[query.name] == query.name:
            files[query.name] = found
    wanted = {use.query for tensor in report.shared for use in tensor.uses}
    wanted |= {layer.model for layer in (report.forms.layers if report.forms is not None else ())}
    if missing := sorted(wanted - files.keys()):
        raise InputError(f"--from: {folder}: query {missing[0]}: is merged, and has no weights in {folder}/weights/")
    content = path.read_bytes() + (folder / "workload.yaml").read_bytes()
    return EarlierMerge(folder, report, files, hashlib.sha256(content).hexdigest()[:32])


def _check_same(folder: Path, workload: Workload, merged: Workload) -> None:
    """Check that a merged workload has the queries, feeds and models of a workload.

    Raises:
        InputError: it has not; the message names the first difference.
    """
    other = f"--from: {folder}: is a merge of another workload"
    names, there = ([query.name for query in each.queries] for each in (workload, merged))
    if names != there:
        different = sorted(set(names) ^ set(there))
        raise InputError(f"{other}: {f'query {different[0]}' if different else 'its queries have another order'}")
    if models_of(workload) != models_of(merged):
        raise InputError(f"{other}: other queries use one model there")
    for query, found in zip(workload.queries, merged.queries, strict=True):
        mine, its = (
            (each.feed, each.task, each.decode, each.model.factory, each.model.onnx is None, each.model.input)
            for each in (query, found)
        )
        if mine != its:
            raise InputError(f"{other}: query {query.name} has another feed, task or model there")


def _is_base(base: Base, layer: LayerReport, codes: Coded | None) -> bool:
    """Check whether a base is the one that a weight in a file of forms, whose base may have codes, differs from."""
    if layer.shape != tuple(base.kernel.shape):
        return False
    if layer.base is not None:
        return layer.base == f"base.{tensor_id(base.kernel.numpy())}"
    return base.coded is not None and codes is not None and _equal(base.coded, codes)


def _equal(first: Coded, second: Coded) -> bool:
    """Check whether codes and scales are equal."""
    same = first.bits == second.bits and first.codes.shape == second.codes.shape
    return same and torch.equal(first.codes, second.codes) and torch.equal(first.scale, second.scale)
