"""Preparation of models that are exported as one stage: any module whose outputs a decoder reads, and zoo models."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models import GoogLeNet, Inception3

from ...bundles.manifest import InputSpec
from ...errors import ModelError
from ..recognition import Evidence, MeasuredOutput, OutputWords, Recognised, read_metadata, recognise_outputs
from .inputs import known_input
from .libraries import describe_module, keep_anchors, library_activation, library_outputs, prepare_module
from .module_outputs import ONLY_OUTPUT, PickedOutputs, pick_outputs
from .observe import Observed, observe
from .refuse import explain_clips
from .stages import BATCH, Cut, StageModule, Whole, ZooModel, as_tuple, attempt, example

__all__ = ["cut_module", "cut_zoo"]

_NAMES = {"classification": "logits", "embedding": "embedding"}
"""Task -> output name for a module that returns one tensor, which has no name of its own."""


def cut_module(model: nn.Module, task: str, spec: InputSpec, wanted: InputSpec | None, words: OutputWords) -> Cut:
    """Turn a module into one stage to export, and choose the decoder by running the module on noise.

    The module may return a tensor, or tensors in tuples, lists, dicts, dataclasses and ModelOutputs. Outputs that the
    decoder does not read are dropped, so that layers which reach no other output are not exported.

    Args:
        model: module with its weights.
        task: task of the query.
        spec: input of the model.
        wanted: input that the workload asks for; its set fields take precedence over those of the recognised family.
        words: what the workload says about the outputs.

    Raises:
        ModelError: no decoder of the task reads the outputs, or the model does not run on this input.
    """
    if isinstance(model, Inception3 | GoogLeNet) and model.transform_input:
        model, spec = _fold_transform(model, spec)
    prepare_module(model)
    image = example(spec)
    try:
        seen = observe(model, Whole(model), image)
    except ModelError as error:
        explain_clips(model, error)
        raise
    keep_anchors(model)
    where = type(model).__name__
    entries = describe_module(model)
    asked = pick_outputs(tuple(seen.outputs), words.outputs, where)
    if words.outputs is None:
        asked = library_outputs(model, task, asked)
    metadata = read_metadata(entries)
    meaning = recognise_outputs(
        Evidence(
            where=where,
            task=task,
            outputs=tuple(_measured(seen, name) for name in asked),
            size=spec.size,
            metadata=metadata,
            decode=words.decode,
            activation=words.activation or library_activation(model, task),
            labels=words.labels,
        )
    )
    names = _read_by(meaning, asked)
    if task != "raw":
        _check_batch(seen, names, len(image), where)
    if known_input(model) is None and meaning.input:
        given = wanted.model_dump(include=wanted.model_fields_set) if wanted is not None else {}
        spec = InputSpec.model_validate({"size": spec.size, "color": spec.color, **meaning.input, **given})
    stage: nn.Module = PickedOutputs(model, names)
    if names == (ONLY_OUTPUT,) and isinstance(seen.outputs[ONLY_OUTPUT], Tensor) and task in _NAMES:
        stage, names = Whole(model), (_NAMES[task],)
    labels = meaning.labels or metadata.names
    return Cut({"main": StageModule(stage, {"image": image}, names, BATCH)}, meaning.decode, spec, labels=labels)


def _measured(seen: Observed, name: str) -> MeasuredOutput:
    """Return one output of a module for the first image, with the activation or argmax that was seen at its end."""
    value = seen.outputs[name].detach()
    if value.is_meta:  # a module without weights, which is cut for its layers alone
        value = torch.zeros_like(value, device="cpu")
    value = value[:1] if value.ndim else value
    value = value.float() if value.is_floating_point() else value
    return MeasuredOutput(name, value.numpy(), seen.activations.get(name), seen.classes.get(name))


def _read_by(meaning: Recognised, names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the outputs that a decoder reads, in the module's order.

    If the decoder reads only the first output, the output that it needs is moved to the front.
    """
    if meaning.decode.kind == "raw":
        return tuple(names)
    mentioned = {meaning.first}
    for _, value in meaning.decode:
        mentioned.update(value if isinstance(value, tuple) else (value,))
    return tuple(sorted((name for name in names if name in mentioned), key=lambda name: name != meaning.first))


def _check_batch(seen: Observed, names: Sequence[str], count: int, where: str) -> None:
    """Refuse a module whose outputs do not have one row for each image of the batch.

    Raises:
        ModelError: an output has another number of rows; the message names the output.
    """
    for name in names:
        shape = list(seen.outputs[name].shape)
        if shape[:1] != [count]:
            raise ModelError(
                f"{where}: output {name} has shape {shape} for {count} images; one row per image is needed"
            )


def cut_zoo(model: ZooModel, task: str, spec: InputSpec) -> Cut:
    """Turn a zoo model, which names its outputs and its decoder itself, into one stage to export.

    Args:
        model: module with its weights.
        task: task of the query.
        spec: input of the model.

    Raises:
        ModelError: the model is for another task, or has more or fewer outputs than it names.
    """
    assert isinstance(model, nn.Module)
    decode, tensors = model.decode(spec.size)
    made_for = decode.kind if decode.kind in ("classification", "embedding") else "detection"
    if made_for != task:
        raise ModelError(f"{type(model).__name__} is for the task {made_for}, not {task}")
    image = example(spec)
    module = Whole(model)
    count = len(as_tuple(attempt(model, module, image)))
    names = tuple(model.output_names)
    if count != len(names):
        raise ModelError(f"{type(model).__name__} gives {count} outputs and names {len(names)}: {', '.join(names)}")
    return Cut({"main": StageModule(module, {"image": image}, names, BATCH)}, decode, spec, tensors)


def _fold_transform(model: Inception3 | GoogLeNet, spec: InputSpec) -> tuple[Inception3 | GoogLeNet, InputSpec]:
    """Move an Inception's own normalisation from the graph into the input.

    torchvision's pretrained Inceptions turn ImageNet's normalisation into (x - 0.5) / 0.5 themselves. Both are linear
    in the pixel, so one normalisation outside the graph does the same.

    Returns:
        A copy of the model with ``transform_input`` off, which shares all layers with the given model, and the input.
    """
    scales = [std / 0.5 for std in (0.229, 0.224, 0.225)]
    shifts = [(mean - 0.5) / 0.5 for mean in (0.485, 0.456, 0.406)]
    means, stds = (values * 3 if len(values) == 1 else values for values in (spec.mean, spec.std))
    mean = tuple(m - b * s / a for m, s, a, b in zip(means, stds, scales, shifts, strict=True))
    std = tuple(s / a for s, a in zip(stds, scales, strict=True))
    model = copy.copy(model)
    model.transform_input = False
    return model, spec.model_copy(update={"mean": mean, "std": std})
