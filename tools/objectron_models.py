"""Make PyTorch and ONNX models of the TensorFlow Lite models in MediaPipe's package for 3D boxes, Objectron.

    .venv/bin/python tools/objectron_models.py out/objectron [--check VIDEO]

The npm package ``@mediapipe/objectron`` (Apache-2.0) has a detector and four models of landmarks. They become:

- ``open-images.safetensors``: SSD-MobileNetV2 with 23 classes of Open Images, for
  ``gemel.workload.zoo.ssdlite:ssd_mobilenet_v2`` with ``num_classes=23`` and ``batch_norm=False``.
- ``camera.onnx``, ``chair.onnx``, ``cup.onnx``, ``sneakers.onnx``: a crop of an object -> nine points of its 3D box,
  and whether there is an object. One architecture of the MobileNetV2 family; weights trained apart.

``--check`` runs the originals in TensorFlow Lite's interpreter (package ``ai-edge-litert``) on frames of a video, and
prints the largest differences of outputs.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file, save_file
from tflite_file import Operator, TfliteGraph, constant_of, read_tflite
from torch import Tensor, nn

from gemel.errors import GemelError, ModelError
from gemel.workload.zoo.ssdlite import SsdMobileNetV2, same_padding, ssd_mobilenet_v2

__all__ = ["LANDMARKS", "OPEN_IMAGES", "convert_landmarks", "fetch_objectron", "prepare_objectron", "ssd_state"]

_PACKAGE = "@mediapipe/objectron@0.4.1675468480"
_PACKED = "objectron_solution_packed_assets.data"
_LABELS_END = 184
"""Bytes of the list of labels in the packed file, in front of the detector."""
LANDMARKS = ("camera", "chair", "cup", "sneakers")
"""Names of the four models of landmarks."""
OPEN_IMAGES = (
    "Bicycle", "Boot", "Laptop", "Person", "Chair", "Cattle", "Desk", "Cat", "Computer mouse", "Computer monitor",
    "Box", "Mug", "Coffee cup", "Stationary bicycle", "Table", "Bottle", "High heels", "Vehicle", "Footwear", "Dog",
    "Book", "Camera", "Car",
)  # fmt: skip
"""Classes of the detector, the background not counted, in the order of its outputs."""
_RELU, _RELU6 = 1, 3
_VALID = 1


def fetch_objectron(cache: Path) -> Path:
    """Download the npm package and return the folder with its files; a package that is there is not fetched again."""
    folder = cache / "objectron"
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as work:
            subprocess.run(["npm", "pack", _PACKAGE], cwd=work, check=True, capture_output=True)
            (archive,) = Path(work).glob("*.tgz")
            with tarfile.open(archive) as files:
                files.extractall(work, filter="data")
            (Path(work) / "package").rename(folder)
    return folder


def prepare_objectron(cache: Path) -> Path:
    """Convert all models of the package, and return the folder with the converted files; files that exist are kept."""
    folder, package = cache / "converted", fetch_objectron(cache)
    folder.mkdir(parents=True, exist_ok=True)
    detector = folder / "open-images.safetensors"
    if not detector.exists():
        model = ssd_mobilenet_v2(len(OPEN_IMAGES), batch_norm=False)
        data = (package / _PACKED).read_bytes()
        labels = tuple(data[:_LABELS_END].decode().split("\n")[1:])
        if labels[: len(OPEN_IMAGES)] != OPEN_IMAGES:
            raise ModelError(f"{package / _PACKED}: unexpected labels {labels}")
        _write(detector, lambda path: save_file(ssd_state(_detector(package), model, _PACKED), path))
    for name in LANDMARKS:
        target = folder / f"{name}.onnx"
        if not target.exists():
            graph = read_tflite(_landmarks(package, name), name)
            _write(target, lambda path, graph=graph, name=name: onnx.save(convert_landmarks(graph, name), path))
    return folder


def _write(target: Path, save: Any) -> None:
    """Write a file under another name and rename it when it is whole."""
    part = target.with_name(f".{target.name}")
    save(part)
    part.replace(target)


def _detector(package: Path) -> TfliteGraph:
    return read_tflite((package / _PACKED).read_bytes()[_LABELS_END:], _PACKED)


def _landmarks(package: Path, name: str) -> bytes:
    return (package / f"object_detection_3d_{name}.tflite").read_bytes()


def _kernel(operator: Operator, where: str) -> NDArray[np.float32]:
    """Return a convolution's kernel as PyTorch and ONNX store it: ``[O, I / groups, H, W]``."""
    axes = (3, 0, 1, 2) if operator.kind == "DEPTHWISE_CONV_2D" else (0, 3, 1, 2)
    return np.ascontiguousarray(constant_of(operator, 1, where).transpose(axes))


def ssd_state(graph: TfliteGraph, model: SsdMobileNetV2, where: str) -> dict[str, Tensor]:
    """Convert a TensorFlow Lite detector of the object-detection API to a state dict of ``ssd_mobilenet_v2``.

    Names of constants in such files say little, as the converter merges equal ones. So layers are paired by their order
    and shapes: a head is a convolution whose output is only reshaped. Box heads are reordered from (dy, dx, dh, dw) to
    (dx, dy, dw, dh).

    Args:
        graph: graph of the file.
        model: detector without BatchNorms whose state dict is wanted.
        where: path to name in errors.

    Raises:
        ModelError: the file has other layers than the model.
    """
    convolutions = [each for each in graph.operators if each.kind.endswith("CONV_2D")]
    reshaped = {str(each.inputs[0]) for each in graph.operators if each.kind == "RESHAPE"}
    heads = [each for each in convolutions if each.output in reshaped]
    # Of the two heads of a level, one gives four values for each anchor.
    boxes = [4 * head.anchors for head in model.box_heads]
    ordered = [each for each in convolutions if each.output not in reshaped]
    ordered += [each for each in heads if len(_kernel(each, where)) not in boxes]
    ordered += [each for each in heads if len(_kernel(each, where)) in boxes]
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)]
    if len(ordered) != len(layers):
        raise ModelError(f"{where}: {len(ordered)} convolutions; expected {len(layers)}, those of SSD-MobileNetV2")
    state = {}
    for (name, layer), operator in zip(layers, ordered, strict=True):
        kernel, bias = _kernel(operator, where), constant_of(operator, 2, where)
        if name.startswith("box_heads"):
            kernel, bias = (
                each.reshape(-1, 4, *each.shape[1:])[:, [1, 0, 3, 2]].reshape(each.shape) for each in (kernel, bias)
            )
        if kernel.shape != tuple(layer.weight.shape):
            shape = tuple(layer.weight.shape)
            raise ModelError(f"{where}: {operator.output} has a kernel {kernel.shape}; {name} needs {shape}")
        state[f"{name}.weight"] = torch.from_numpy(np.ascontiguousarray(kernel))
        state[f"{name}.bias"] = torch.from_numpy(np.ascontiguousarray(bias))
    return state


def convert_landmarks(graph: TfliteGraph, name: str) -> onnx.ModelProto:
    """Convert a graph of convolutions, additions, a mean and linear layers to ONNX, with images as N C H W.

    The outputs are called ``landmarks`` (the longer one) and ``presence``.

    Raises:
        ModelError: an operator or setting is not known.
    """
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, NDArray[Any]] = {}
    shapes = graph.shapes
    names = {graph.inputs[0]: "image"}
    names |= {each: "landmarks" if shapes[each][-1] > 1 else "presence" for each in graph.outputs}

    def put(kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> None:
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))

    for number, each in enumerate(graph.operators):
        inputs = [names.get(value, value) for value in each.inputs if isinstance(value, str)]
        output, options = names.get(each.output, each.output), each.options
        relu = options.get("activation", 0)
        if relu not in (0, _RELU, _RELU6):
            raise ModelError(f"{name}: {each.kind} has the unknown activation {relu}")
        plain = f"{output}:sum" if relu else output
        if each.kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
            layer = f"layers.{number}"
            linear = each.kind == "FULLY_CONNECTED"
            constants[f"{layer}.weight"] = constant_of(each, 1, name) if linear else _kernel(each, name)
            constants[f"{layer}.bias"] = constant_of(each, 2, name)
            inputs = [inputs[0], f"{layer}.weight", f"{layer}.bias"]
            if linear:
                put("Gemm", inputs, plain, transB=1)
            else:
                put("Conv", inputs, plain, **_window(each, shapes, constants[f"{layer}.weight"], name))
        elif each.kind == "ADD":
            put("Add", inputs, plain)
        elif each.kind == "MEAN":
            # N H W C -> N C H W moves the axes 1 and 2 to 2 and 3.
            if list(constant_of(each, 1, name)) != [1, 2]:
                raise ModelError(f"{name}: a mean over other axes than those of the image")
            put("ReduceMean", inputs, plain, axes=[2, 3], keepdims=options.get("keep", 0))
        elif each.kind == "LOGISTIC":
            put("Sigmoid", inputs, plain)
        else:
            raise ModelError(f"{name}: the operator {each.kind} is not known")
        if relu:
            limits = [plain, "zero", "six"] if relu == _RELU6 else [plain]
            put("Clip" if relu == _RELU6 else "Relu", limits, output)
    constants |= {"zero": np.array(0, np.float32), "six": np.array(6, np.float32)}
    batch, height, width, channels = shapes[graph.inputs[0]]
    assert batch == 1
    made = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", channels, height, width])],
        [
            helper.make_tensor_value_info(names[each], TensorProto.FLOAT, ["N", shapes[each][-1]])
            for each in graph.outputs
        ],
        [numpy_helper.from_array(value, key) for key, value in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def _window(
    operator: Operator, shapes: Mapping[str, tuple[int, ...]], kernel: NDArray[Any], where: str
) -> dict[str, Any]:
    """Return the attributes of an ONNX convolution."""
    options, image = operator.options, operator.inputs[0]
    if options["dilation"] != 1 or not isinstance(image, str):
        raise ModelError(f"{where}: {operator.output}: a dilated convolution, or one of a constant")
    pads = [(0, 0), (0, 0)]
    if options["padding"] != _VALID:
        pads = [same_padding(shapes[image][axis], kernel.shape[axis + 1], options["stride"]) for axis in (1, 2)]
    groups = len(kernel) if operator.kind == "DEPTHWISE_CONV_2D" else 1
    return {
        "kernel_shape": kernel.shape[2:],
        "strides": [options["stride"]] * 2,
        "pads": [side for pair in zip(*pads, strict=True) for side in pair],
        "group": groups,
    }


def _differences(cache: Path, video: Path, count: int = 5) -> dict[str, float]:
    """Return, for each model, the largest difference between its outputs and those of TensorFlow Lite's interpreter.

    Raises:
        ImportError: the package ``ai-edge-litert`` is not installed.
    """
    from ai_edge_litert.interpreter import Interpreter

    package, folder = fetch_objectron(cache), prepare_objectron(cache)
    capture, frames = cv2.VideoCapture(str(video)), []
    for number in np.linspace(0, capture.get(cv2.CAP_PROP_FRAME_COUNT) - 1, count).astype(int):
        capture.set(cv2.CAP_PROP_POS_FRAMES, int(number))
        frames.append(cv2.cvtColor(capture.read()[1], cv2.COLOR_BGR2RGB))
    found = {}
    model = ssd_mobilenet_v2(len(OPEN_IMAGES), batch_norm=False).eval()
    model.load_state_dict(load_file(folder / "open-images.safetensors"))
    contents = {name: _landmarks(package, name) for name in LANDMARKS}
    contents["open-images"] = (package / _PACKED).read_bytes()[_LABELS_END:]
    for name, content in contents.items():
        interpreter = Interpreter(model_content=content, num_threads=1)
        interpreter.allocate_tensors()
        (wanted,) = interpreter.get_input_details()
        size = int(wanted["shape"][1])
        worst = 0.0
        for frame in frames:
            image = cv2.resize(frame, (size, size)).astype(np.float32)[None] / 255
            image = image * 2 - 1 if name == "open-images" else image
            interpreter.set_tensor(wanted["index"], image)
            interpreter.invoke()
            theirs = [interpreter.get_tensor(each["index"]) for each in interpreter.get_output_details()]
            planes = np.ascontiguousarray(image.transpose(0, 3, 1, 2))
            if name == "open-images":
                with torch.no_grad():
                    logits, boxes = (each.numpy() for each in model(torch.from_numpy(planes)))
                ours = [boxes[..., [1, 0, 3, 2]], logits]
            else:
                ours = onnxruntime.InferenceSession(folder / f"{name}.onnx").run(None, {"image": planes})
            by_shape = {each.shape: each for each in ours}
            worst = max(worst, *(float(np.abs(by_shape[each.shape] - each).max()) for each in theirs))
        found[name] = worst
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path, help="folder for the package and the converted models")
    parser.add_argument("--check", type=Path, metavar="VIDEO", help="compare with TensorFlow Lite on its frames")
    options = parser.parse_args(arguments)
    try:
        print(prepare_objectron(options.cache))
    except GemelError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    if options.check:
        for name, difference in _differences(options.cache, options.check).items():
            print(f"{name}: outputs differ by at most {difference:.2g}")


if __name__ == "__main__":
    main()
