"""Models that are exported whole: classification, embedding, and the architectures of the zoo."""

from __future__ import annotations

import copy

from torch import Tensor, nn
from torchvision.models import GoogLeNet, Inception3

from ...bundles.decode_specs import ClassificationDecode, DecodeSpec, EmbeddingDecode
from ...bundles.manifest import InputSpec
from ...errors import ModelError
from .stages import BATCH, Cut, StageModule, Whole, ZooModel, as_tuple, attempt, example

__all__ = ["cut_plain", "cut_zoo"]


def cut_plain(model: nn.Module, task: str, spec: InputSpec) -> Cut:
    """Cut a model whose only output is class scores ``[N, classes]`` or an embedding ``[N, D]`` or ``[N, C, H, W]``.

    Args:
        model: module with its weights.
        task: classification or embedding.
        spec: input of the model.

    Raises:
        ModelError: the model has other outputs, or does not run on this input.
    """
    if isinstance(model, Inception3 | GoogLeNet) and model.transform_input:
        model, spec = _fold_transform(model, spec)
    image = example(spec)
    module = Whole(model)
    output = attempt(model, module, image)
    allowed = {"classification": (2,), "embedding": (2, 4)}[task]
    if not isinstance(output, Tensor) or output.ndim not in allowed or len(output) != len(image):
        found = f"shape {list(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        shape = "[N, classes]" if task == "classification" else "[N, D] or [N, C, H, W]"
        raise ModelError(f"{type(model).__name__}: {task} needs one tensor {shape} as output, got {found}")
    decode: DecodeSpec = EmbeddingDecode()
    if task == "classification":
        classes = output.shape[1]
        decode = ClassificationDecode(classes=classes, top_k=min(5, classes))
    name = "logits" if task == "classification" else "embedding"
    return Cut({"main": StageModule(module, {"image": image}, (name,), BATCH)}, decode, spec)


def cut_zoo(model: ZooModel, task: str, spec: InputSpec) -> Cut:
    """Cut a model that knows its outputs and how they are decoded.

    Args:
        model: module with its weights.
        task: classification, detection or embedding.
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
