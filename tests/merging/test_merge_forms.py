"""Tests of merges of fine-tunes: differences are found, judged, written and resumed without training."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
from drift_samples import put_sample
from helpers import edit_json
from safetensors.torch import load_file, save_file
from trained_models import stripes

from gemel.bundles.blob import tensor_id
from gemel.bundles.codes import Bits, unpack_codes
from gemel.bundles.manifest import Manifest
from gemel.bundles.merge_report import MergeReport, read_report
from gemel.compiler import compile_workload
from gemel.errors import GemelError, InputError
from gemel.merging.forms.quantize import Coded, materialize
from gemel.merging.merge import Listener, MergeOptions, merge_workload
from gemel.merging.output.confirm import Confirmer
from gemel.merging.search.search import Found
from gemel.merging.strategies import SearchSettings
from gemel.merging.training.trial import Outcome, Trial, TrialRunner
from gemel.workload import load_workload

NAMES = ("one", "two", "three")


def options(**changes: Any) -> MergeOptions:
    """Return options for a merge without training, on the CPU."""
    settings = {"retrain": False, **changes.pop("settings", {})}
    return MergeOptions(**{"settings": SearchSettings(**settings), "device": "cpu", **changes})


@pytest.fixture
def tuned(trained: Path) -> Path:
    """Make three fine-tunes of the small model that tells the direction of stripes, and their workload.

    Each output channel of a kernel is multiplied by 0.45 or 1.55, and the BatchNorm behind it undoes that. So all
    models are as accurate as the first, and their kernels are about half of their norm away from those of
    ``direction.safetensors``, which break them.
    """
    document = json.loads((trained / "workload.yaml").read_text())
    query = document["queries"][0]
    base = load_file(trained / "direction.safetensors")
    queries = []
    for seed, name in enumerate(NAMES):
        generator = torch.Generator().manual_seed(seed)
        state = dict(base)
        for key in [key for key, value in base.items() if value.ndim == 4]:
            factor = torch.where(torch.rand(len(base[key]), generator=generator) < 0.5, 0.45, 1.55)
            norm = key.replace("conv", "bn").removesuffix("weight")
            state[key] = base[key] * factor.view(-1, 1, 1, 1)
            state[f"{norm}running_mean"] = base[f"{norm}running_mean"] * factor
            state[f"{norm}running_var"] = base[f"{norm}running_var"] * factor**2
        save_file(state, trained / f"{name}.safetensors")
        queries.append({**query, "name": name, "model": {**query["model"], "weights": f"{name}.safetensors"}})
    document["queries"] = queries
    (trained / "workload.yaml").write_text(json.dumps(document))
    return trained


def edit_workload(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    edit_json(folder / "workload.yaml", change)


def merge(folder: Path, listener: Listener | None = None, **changes: Any) -> MergeReport:
    """Merge the workload in a folder into its subfolder ``merged``."""
    return merge_workload(load_workload(folder / "workload.yaml"), folder / "merged", options(**changes), listener)


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """Read the merged weights of a model."""
    return load_file(next((folder / "merged" / "weights").glob(f"{name}-*")))


def check_forms(folder: Path, report: MergeReport) -> None:
    """Check that every weight in merge.json's list of forms is, bit for bit, what the file of forms gives."""
    assert report.forms is not None
    tensors = load_file(folder / "merged" / report.forms.file)
    # A base that a model holds as it is is not in the file.
    for name in NAMES:
        tensors |= {f"base.{tensor_id(value.numpy())}": value for value in weights(folder, name).values()}
    for layer in report.forms.layers:
        own = weights(folder, layer.model)[layer.parameter]
        base = None if layer.base is None else tensors[layer.base]
        if layer.base_index is not None:
            base = materialize(read_coded(tensors, layer.base_index, 8, own.shape))
        assert torch.equal(materialize(read_coded(tensors, layer.index, layer.bits, own.shape), base), own)


def read_coded(tensors: dict[str, torch.Tensor], index: int, bits: Bits, shape: torch.Size) -> Coded:
    """Read codes from the tensors of a file of forms."""
    codes = unpack_codes(tensors[f"{index}.codes"].numpy(), bits, shape.numel()).reshape(shape)
    return Coded(torch.from_numpy(codes), tensors[f"{index}.scale"], bits)


class Heard(Listener):
    """Listener that keeps what it is told, and stops the merge after ``stop`` verdicts."""

    def __init__(self, stop: int | None = None) -> None:
        self.families: list[str] = []
        self.verdicts: list[Any] = []
        self._stop = stop

    def fine_tunes(self, models: Any) -> None:
        self.families.append(models.description)

    def verdict(self, verdict: Any, report: MergeReport) -> None:
        self.verdicts.append(verdict)
        if len(self.verdicts) == self._stop:
            raise KeyboardInterrupt


def test_fine_tunes_become_differences_to_a_given_base(tuned: Path) -> None:
    edit_workload(tuned, lambda document: document.update(base="direction.safetensors"))
    heard = Heard()
    report = merge(tuned, heard)
    assert report.forms is not None
    bases = {layer.base_index for layer in report.forms.layers if layer.kind == "difference"}
    assert bases and None not in bases
    # Weights that are their base have its codes.
    assert {layer.index for layer in report.forms.layers if layer.kind == "coded"} & bases
    assert all(layer.bits == 8 for layer in report.forms.layers if layer.kind == "coded")
    assert not any(layer.base for layer in report.forms.layers)
    check_forms(tuned, report)
    assert all(found.relative >= found.target for found in report.queries.values())
    assert report.layer_saving > 0.8
    assert report.merged_bytes < 0.2 * report.original_bytes
    assert "direction.safetensors" in heard.families[0]
    # What trains nothing costs no image.
    assert sum(trial.samples for trial in report.trials) == 0
    merged = load_workload(tuned / "merged" / "workload.yaml")
    assert merged.base == "../direction.safetensors"
    assert read_report(tuned / "merged" / "merge.json") == report


def test_biases_norms_and_heads_stay_as_they_are(tuned: Path) -> None:
    merge(tuned)
    for name in NAMES:
        now, before = weights(tuned, name), load_file(tuned / f"{name}.safetensors")
        for key, value in before.items():
            if value.ndim < 4:
                assert torch.equal(now[key], value)


def test_fine_tunes_are_found_without_a_base(tuned: Path) -> None:
    heard = Heard()
    report = merge(tuned, heard)
    assert report.forms is not None
    assert len(heard.families) == 1
    assert "the mean of them" in heard.families[0]
    check_forms(tuned, report)
    assert report.parts is not None
    # Codes of the bases are compression.
    assert 0 < report.parts.compression < report.parts.sharing
    assert report.parts.sharing + report.parts.compression == pytest.approx(report.layer_saving)
    assert report.parts.compression_alone is not None


def test_layers_that_were_frozen_stay_as_they_are(tuned: Path) -> None:
    key, first = "layer3.0.conv2.weight", load_file(tuned / "one.safetensors")
    for name in NAMES:
        state = load_file(tuned / f"{name}.safetensors")
        norm = {each: first[each] for each in first if each.startswith("layer3.0.bn2")}
        save_file({**state, **norm, key: first[key]}, tuned / f"{name}.safetensors")
    report = merge(tuned)
    assert report.forms is not None
    assert key not in {layer.parameter for layer in report.forms.layers}
    assert all(torch.equal(weights(tuned, name)[key], first[key]) for name in NAMES)
    (shared,) = (tensor for tensor in report.shared if tensor.uses[0].parameter == key)
    assert len(shared.uses) == 3
    check_forms(tuned, report)
    check_bundle(tuned, report)


def test_a_base_of_one_model_alone_saves_nothing(tuned: Path) -> None:
    edit_json(
        tuned / "workload.yaml",
        lambda document: document.update(base="direction.safetensors", queries=document["queries"][:1]),
    )
    report = merge(tuned)
    assert report.forms is None
    assert report.saving == 0
    assert report.finished


@pytest.mark.parametrize("place", ["workload", "model"])
def test_a_base_that_is_no_ancestor_is_refused(place: str, tuned: Path) -> None:
    base = load_file(tuned / "direction.safetensors")
    generator = torch.Generator().manual_seed(9)
    strange = {
        key: torch.randn(value.shape, generator=generator) * value.std() if value.ndim == 4 else value
        for key, value in base.items()
    }
    save_file(strange, tuned / "strange.safetensors")

    def change(document: dict[str, Any]) -> None:
        holder = document if place == "workload" else document["queries"][0]["model"]
        holder["base"] = "strange.safetensors"

    edit_workload(tuned, change)
    with pytest.raises(InputError, match=r"query one: base: strange.safetensors is no ancestor .* away"):
        merge(tuned)


def test_a_base_of_another_architecture_is_refused(tuned: Path) -> None:
    save_file({"layer.weight": torch.zeros(4, 4)}, tuned / "other.safetensors")
    edit_workload(tuned, lambda document: document.update(base="other.safetensors"))
    with pytest.raises(InputError, match=r"base: other\.safetensors fits no model"):
        merge(tuned)
    edit_workload(tuned, lambda document: document.pop("base"))
    edit_json(
        tuned / "workload.yaml", lambda document: document["queries"][1]["model"].update(base="other.safetensors")
    )
    with pytest.raises(InputError, match=r"query two: base: other.safetensors .* has 0 of"):
        merge(tuned)


def test_a_missing_base_is_named(tuned: Path) -> None:
    edit_workload(tuned, lambda document: document.update(base="gone.safetensors"))
    with pytest.raises(InputError, match=r"base: .*gone.safetensors: no such file"):
        merge(tuned)


def test_no_differences_where_the_user_wants_none(tuned: Path) -> None:
    heard = Heard()
    report = merge(tuned, heard, settings={"differences": False})
    assert report.forms is None
    assert heard.families == []


def check_bundle(folder: Path, report: MergeReport) -> Manifest:
    """Compile merged models, check that the bundle has the bytes that the merge counts, and return its manifest."""
    content = compile_workload(load_workload(folder / "merged" / "workload.yaml"), folder / "bundle").manifest
    assert len(content.forms) > 0
    assert sum(spec.length for spec in content.tensors.values()) == report.merged_bytes
    return content


def test_a_bundle_of_differences_has_the_bytes_that_the_merge_counts(tuned: Path) -> None:
    content = check_bundle(tuned, merge(tuned))
    bases = {(form.base, form.base_scale) for form in content.forms.values() if form.base is not None}
    assert all(scale is not None for _, scale in bases)
    # Codes of a base are there once, also where a layer is its base.
    assert {form.codes for form in content.forms.values() if form.base is None} & {codes for codes, _ in bases}


def test_compression_competes_under_the_same_judge(tuned: Path) -> None:
    report = merge(tuned, settings={"compress": True, "differences": False})
    assert report.forms is not None
    assert {layer.kind for layer in report.forms.layers} == {"coded"}
    check_forms(tuned, report)
    assert report.parts is not None
    assert report.parts.sharing == 0
    assert report.parts.compression == pytest.approx(report.layer_saving)
    assert all(found.relative >= found.target for found in report.queries.values())
    check_bundle(tuned, report)


@pytest.mark.parametrize("after", [1, 5, 10])
def test_a_merge_of_differences_that_was_stopped_goes_on(after: int, tuned: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        merge(tuned, Heard(after))
    heard = Heard()
    report = merge(tuned, heard, resume=True)
    assert report.finished
    assert report.forms is not None
    check_forms(tuned, report)
    again = merge(tuned, resume=True)
    assert again.forms == report.forms
    assert [path.name for path in (tuned / "merged").glob("forms-*")] == [report.forms.file]


def test_damaged_codes_are_named_when_a_merge_is_resumed(tuned: Path) -> None:
    report = merge(tuned)
    assert report.forms is not None
    (tuned / "merged" / report.forms.file).write_bytes(b"nothing")
    with pytest.raises(InputError, match=rf"{report.forms.file}: damaged"):
        merge(tuned, resume=True)


def test_a_weight_that_differs_from_its_codes_is_not_written(tuned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gemel.merging.output import forms_file

    monkeypatch.setattr(forms_file, "materialize", lambda coded, base=None: torch.zeros(1))
    with pytest.raises(GemelError, match="differs from what its codes give"):
        merge(tuned)


def test_a_merge_goes_on_from_differences(tuned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = merge(tuned)
    assert report.forms is not None
    for number, image in enumerate(stripes("direction", 60)[0]):
        data = cv2.imencode(".jpg", image[..., ::-1])[1].tobytes()
        digest = hashlib.sha256(data).hexdigest()
        put_sample(tuned / "samples", number, "0" * 64, data=data, sha256=digest, size=[16, 16], answers={})
    going_on: dict[str, Any] = {"earlier": tuned / "merged", "samples": str(tuned / "samples")}

    def go_on(output: str, heard: Listener | None = None, **changes: Any) -> MergeReport:
        """Go on from the merge in the folder of the fine-tunes."""
        workload = load_workload(tuned / "workload.yaml")
        return merge_workload(workload, tuned / output, options(**{**going_on, **changes}), heard)

    same = go_on("same")
    # All hold: forms, codes and weights are those of the earlier merge, bit for bit.
    assert same.forms == report.forms and same.shared == report.shared
    for path in (tuned / "merged").glob("*/*.safetensors"):
        if path.parent.name == "weights":
            assert (tuned / "same" / "weights" / path.name).read_bytes() == path.read_bytes()
    assert (tuned / "same" / report.forms.file).read_bytes() == (tuned / "merged" / report.forms.file).read_bytes()

    # One query misses its target until its differences have more bits.
    real = TrialRunner.__call__

    def strict(self: TrialRunner, trial: Trial, *arguments: Any) -> Outcome:
        outcome = real(self, trial, *arguments)
        fine = trial.learners != {"two"} or all(form.bits >= 4 for _, form in trial.forms.forms)
        return outcome if fine and trial.forms.forms else replace(outcome, met=outcome.met - {"two"})

    monkeypatch.setattr(TrialRunner, "__call__", strict)
    with pytest.raises(KeyboardInterrupt):
        go_on("more", Heard(6))
    heard = Heard()
    more = go_on("more", heard, resume=True)
    assert heard.verdicts
    assert more.forms is not None
    bits = {name: {layer.bits for layer in more.forms.layers if layer.model == name} for name in NAMES}
    assert min(bits["two"]) >= 4 and min(bits["one"]) < 4
    files = [{path.name for path in (tuned / folder / "weights").iterdir()} for folder in ("merged", "more")]
    assert {name.rpartition("-")[0] for name in files[0] ^ files[1]} == {"two"}
    assert sum(trial.samples for trial in more.trials) == 0

    # Codes of another merge are refused.
    monkeypatch.setattr(TrialRunner, "__call__", real)
    save_file(
        {key: value * 1.5 if value.ndim == 4 else value for key, value in load_file(tuned / "one.safetensors").items()},
        tuned / "one.safetensors",
    )
    with pytest.raises(InputError, match=r"query (one|two|three): the base of .* is not that of the models"):
        go_on("refused")


def test_forms_that_are_not_confirmed_step_back(tuned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written is whole: weights, codes and report are those of the forms of more bits, also when resumed."""
    confirmed = Confirmer.confirmed

    def refuse_two(self: Confirmer, found: Found) -> Found:
        """Confirm everything but what the search found for the model ``two``."""
        sought = found.states.get("two")
        monkeypatch.setattr(Confirmer, "_passes", lambda self, model, state: state is not sought)
        return confirmed(self, found)

    monkeypatch.setattr(Confirmer, "confirmed", refuse_two)
    heard = Heard()
    report = merge(tuned, heard)
    assert report.forms is not None
    *_, last = (verdict.trial.forms.of({"two"}) for verdict in heard.verdicts if verdict.accepted)
    bits = {layer.parameter: layer.bits for layer in report.forms.layers if layer.model == "two"}
    assert all(form.bits <= bits[use.parameter] for use, form in last.forms)
    assert any(form.bits < bits[use.parameter] for use, form in last.forms)
    (note,) = (note for note in report.queries["two"].notes if "it has" in note)
    assert "it has forms of more bits" in note
    bundle = compile_workload(load_workload(tuned / "merged" / "workload.yaml"), tuned / "bundle")
    content = Manifest.model_validate_json((bundle.path / "manifest.json").read_text())
    assert {"one", "two", "three"} == {
        name for name, model in content.models.items() if set(model.weights) & content.forms.keys()
    }
    again = merge(tuned, resume=True)
    assert again == report
    compile_workload(load_workload(tuned / "merged" / "workload.yaml"), tuned / "bundle")
