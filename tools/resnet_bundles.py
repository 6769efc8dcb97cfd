"""Bundles of ResNet-50 with random weights, merged or not, for benchmarks of times and bytes."""

from __future__ import annotations

from pathlib import Path

import torch
import torchvision
import yaml
from safetensors.torch import save_file

from gemel.bundles.reader import Bundle, open_bundle
from gemel.compiler import compile_workload
from gemel.workload import load_workload

__all__ = ["resnet_bundle"]

_PRIVATE = ("layer4.", "fc.")
"""Prefixes of the names of weights that merged models do not share."""


def resnet_bundle(folder: Path, count: int, *, merged: bool) -> Bundle:
    """Write ResNet-50 models with random weights to disk, and compile them into a bundle.

    Args:
        folder: existing folder that gets the weights and the bundle.
        count: number of models.
        merged: whether the models share all convolutions but those of the last stage.
    """
    work = folder / ("merged" if merged else "unmerged")
    work.mkdir()
    queries = []
    for index in range(count):
        torch.manual_seed(0 if merged else 1 + index)
        common = torchvision.models.resnet50().state_dict()
        torch.manual_seed(1 + index)
        own = torchvision.models.resnet50()
        for layer in own.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(layer.weight, 0.5, 1.5)
        state = {
            key: value if key.startswith(_PRIVATE) or value.ndim < 2 else common[key]
            for key, value in own.state_dict().items()
        }
        save_file(state, work / f"{index}.safetensors")
        model = {
            "factory": "torchvision.models:resnet50",
            "weights": f"{index}.safetensors",
            "input": {"size": [224, 224]},
        }
        queries.append({"name": f"q{index}", "feed": "yard", "task": "classification", "model": model})
    document = {"schema_version": "1", "feeds": {"yard": {"source": "rtsp://nowhere/"}}, "queries": queries}
    (work / "workload.yaml").write_text(yaml.safe_dump(document))
    return open_bundle(compile_workload(load_workload(work / "workload.yaml"), work / "bundle").path)
