"""Small float32 graphs to convert to lower precision, and images to calibrate on and to judge by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch
from helpers import SIZE, query, save
from numpy.typing import NDArray
from tiny_models import TinyNet, tiny
from torch import Tensor, nn

from gemel.bundles.manifest import InputSpec
from gemel.compiler.heads import cut
from gemel.compiler.lowering.export import export_stages
from gemel.compiler.lowering.lower import Lowered, lower
from gemel.compiler.passes import choose_batch_norm, clean, fold
from gemel.workload.document.schema import Query

__all__ = [
    "APART",
    "CLASSES",
    "apart",
    "asked",
    "balanced",
    "colours",
    "drawn",
    "frames",
    "initializer",
    "kinds",
    "lower_once",
    "lowered",
    "noise",
    "passed",
    "run",
    "shapes",
    "write_classes",
    "write_frames",
    "write_pair",
    "write_workload",
]

Array = NDArray[np.float32]
CLASSES = ("blue", "gray", "red")
APART = "x = Conv(image, k)\n y = Conv<group=6, kernel_shape=[1,1]>(x, gamma, beta)\n out = Relu(y)"
"""Nodes of :func:`apart`."""
_RANDOM = np.random.default_rng(0)


def drawn(nodes: str, size: Sequence[int], outputs: Sequence[str] = ("out",), **weights: NDArray[Any]) -> ir.Model:
    """Return a graph with one input, ``image``, that is written in ONNX's text form.

    Args:
        nodes: the nodes as text.
        size: dimensions of the image, without the batch.
        outputs: names of the values that the graph gives.
        weights: initializers that the nodes read.
    """
    image = ",".join(map(str, ("batch", *size)))
    ports = f"(float[{image}] image) => ({', '.join(f'float {name}' for name in outputs)})"
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 20]> drawn {ports} {{ {nodes} }}')
    for port in proto.graph.output:
        port.type.tensor_type.ClearField("shape")
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    proto = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    onnx.checker.check_model(proto, full_check=True)
    return ir.from_proto(proto)


def noise(*shape: int) -> Array:
    """Return normally distributed numbers, other ones in every call."""
    return _RANDOM.normal(0, 1, shape).astype(np.float32)


def apart(gamma: Array | None = None, text: str = APART, **more: Array) -> ir.Model:
    """Return a convolution whose BatchNorm the compiler has kept apart.

    Args:
        gamma: the six factors of the BatchNorm.
        text: the nodes as text.
        more: further initializers.
    """
    factors = np.linspace(0.5, 2, 6) if gamma is None else gamma
    return drawn(
        text,
        (4, 8, 8),
        ("out",),
        k=noise(6, 4, 3, 3),
        gamma=factors.astype(np.float32).reshape(6, 1, 1, 1),
        beta=noise(6),
        **more,
    )


def lowered(models: Mapping[str, nn.Module], size: tuple[int, int] = SIZE) -> list[Lowered]:
    """Export classifiers, and run all passes of the compiler."""
    made = []
    for name, module in models.items():
        parts = cut(module, "classification", InputSpec(size=size))
        graph = export_stages(parts.stages["main"], name)
        graph.graph.name = name
        clean(graph, module.state_dict().keys())
        made.append(Lowered(name, {"main": graph}, parts.decode, parts.input))
    return passed(made)


def passed(models: Sequence[Lowered]) -> list[Lowered]:
    """Run the compiler's last passes on models, in place, and return the models."""
    graphs = [model.stages["main"] for model in models]
    choice = choose_batch_norm(graphs)
    for graph in graphs:
        fold(graph, choice.keep)
    return list(models)


def lower_once(query: Query, root: Path, known: object = None) -> Lowered:
    """Call :func:`gemel.compiler.lowering.lower.lower`, but export each model with the same weights only once."""
    weights = hashlib.sha256((root / str(query.model.weights)).read_bytes()).hexdigest()
    key = f"{query.name} {weights} {query.model.model_dump_json()}"
    if key not in _exported:
        _exported[key] = lower(query, root)
    found = _exported[key]
    return replace(found, stages={name: graph.clone() for name, graph in found.stages.items()})


_exported: dict[str, Lowered] = {}
"""Query, weights and model -> the exported model; see :func:`lower_once`."""


def run(model: ir.Model, image: Array, *names: str) -> list[Array]:
    """Return the outputs of a graph, which runs as it is written: without ONNX Runtime's optimisations."""
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(proto.SerializeToString(), options)
    found: list[Array] = session.run(list(names) or None, {session.get_inputs()[0].name: image})
    return found


def kinds(model: ir.Model) -> list[str]:
    """Return the operators of a graph, except QuantizeLinear and DequantizeLinear."""
    return [node.op_type for node in model.graph if "uantizeLinear" not in node.op_type]


def initializer(model: ir.Model, name: str) -> NDArray[Any]:
    """Return the values of an initializer."""
    value = model.graph.initializers[name].const_value
    assert value is not None
    return np.asarray(value.numpy())


def shapes(model: ir.Model) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return initializer -> (dtype, shape)."""
    return {
        name: (initializer(model, name).dtype.name, initializer(model, name).shape) for name in model.graph.initializers
    }


def frames(count: int = 4, size: Sequence[int] = (3, *SIZE), seed: int = 0) -> list[Array]:
    """Return images of noise, each with its own colour, so that a model that averages over places tells them apart."""
    random = np.random.default_rng(seed)
    means = random.normal(0, 1, (count, size[0], 1, 1))
    return [(mean + random.normal(0, 0.5, size))[None].astype(np.float32) for mean in means]


def colours(count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Return images ``[N, height, width, 3]`` uint8 RGB, each of one colour with a little noise."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 200, (count, 1, 1, 3)) + random.integers(0, 55, (count, *SIZE, 3))
    return images.astype(np.uint8)


def asked(name: str, **changes: Any) -> dict[str, Any]:
    """Return a query that has the images that :func:`write_classes` wrote for its model."""
    data = {part: f"data/{name}/{part}" for part in ("train", "val")}
    return query(name, **{"labels": list(CLASSES), "data": data, **changes})


def write_workload(folder: Path, *queries: dict[str, Any], **changes: Any) -> Path:
    """Write ``workload.yaml`` with one feed, the folder ``frames``, and return its path."""
    document = {"schema_version": "1", "feeds": {"yard": {"source": "frames"}}, "queries": list(queries), **changes}
    (folder / "workload.yaml").write_text(json.dumps(document))
    return folder / "workload.yaml"


def balanced(model: TinyNet) -> TinyNet:
    """Shift a model's head, in place, so that the model finds every class in some :func:`colours`; return the model."""
    with torch.no_grad():
        model.head.bias.sub_(_scores(model, colours(100)).mean(0))
    return model


def write_classes(folder: Path, model: nn.Module, count: int, names: Sequence[str], seed: int = 0) -> None:
    """Write a folder for each class, all with the same number of images, whose class a model is sure of.

    The model is never wrong on these images. Rounding, which differs a little between CPUs, does not make it wrong.
    """
    candidates = colours(20 * count, seed)
    scores = _scores(model, candidates)
    best, second = scores.topk(2).values.T
    order = (best - second).argsort(descending=True).tolist()
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        found = [index for index in order if scores[index].argmax() == number]
        for index in found[: count // len(names)]:
            cv2.imwrite(str(folder / name / f"{index:04}.png"), np.ascontiguousarray(candidates[index, :, :, ::-1]))


def write_frames(folder: Path, count: int, seed: int = 0) -> None:
    """Write images without classes."""
    folder.mkdir(exist_ok=True)
    for index, image in enumerate(colours(count, seed)):
        cv2.imwrite(str(folder / f"{index:03}.png"), np.ascontiguousarray(image[:, :, ::-1]))


def write_pair(folder: Path) -> Path:
    """Write two models with equal kernels and own BatchNorms, images of which they are sure, and their workload."""
    first = balanced(tiny(0))
    for name, model in (("a", first), ("b", balanced(tiny(1, kernels_of=first)))):
        save(model, folder / f"{name}.safetensors")
        for seed, part in enumerate(("train", "val")):
            write_classes(folder / "data" / name / part, model, 30, CLASSES, seed)
    write_frames(folder / "frames", 40)
    write_workload(folder, asked("a"), asked("b"))
    return folder


def _scores(model: nn.Module, images: NDArray[np.uint8]) -> Tensor:
    """Return a classifier's scores ``[N, classes]`` for images ``[N, height, width, 3]``."""
    spec = cut(model, "classification", InputSpec.model_construct(size=SIZE, _fields_set={"size"})).input
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
    with torch.no_grad():
        scores: Tensor = model.eval()((torch.from_numpy(images).permute(0, 3, 1, 2) * spec.scale - mean) / std)
    return scores
