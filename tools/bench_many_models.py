"""Measure how long a merge of many models takes until its first training step, and in how much memory.

Every model is torchvision's MobileNetV2 at 224 x 224 pixels with weights of its own: random ones, so the accuracies
mean nothing, but the time and the memory are those of trained models. Images are generated. The merge stops at its
first training step.

    .venv/bin/python tools/bench_many_models.py [--models 20] [--frames 600] [--size 224] [--threads 2]
    .venv/bin/python tools/bench_many_models.py --detectors --models 1 --size 800 --frames 60

With ``--detectors`` every model is RetinaNet, with about a hundred candidates a frame, and the merge stops when all
models are loaded and their original answers are known: the memory of this part must not grow with the number of frames.
Prints CPU time and peak memory after each model, each look, and at the end.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import mobilenet_v2
from torchvision.models.detection import RetinaNet, retinanet_resnet50_fpn

from gemel.merging.merge import Listener, MergeOptions, merge_workload
from gemel.workload import load_workload

_CLASSES = 20
"""Number of classes of each classifier."""
_CANDIDATES = 100
"""Number of anchors of a frame that a detector is to score above its threshold, about."""


def main() -> None:
    """Make the workload, merge it up to the first training step, and print what each part took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=int, default=20)
    parser.add_argument("--frames", type=int, default=600)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--detectors", action="store_true", help="RetinaNet in place of MobileNetV2, until it is loaded"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        with ProcessPoolExecutor(1, get_context("spawn")) as apart:
            # The memory that this takes does not count.
            path = apart.submit(
                _workload, root, arguments.models, arguments.frames, arguments.size, arguments.detectors
            ).result()
        watch = _Watch(trains=not arguments.detectors)
        watch.say("models are made")
        try:
            merge_workload(load_workload(path), root / "merged", MergeOptions(device="cpu"), watch)
        except KeyboardInterrupt:
            watch.say("all models are loaded" if arguments.detectors else "first training step")
        else:
            watch.say("end of the search, without a training")


class _Watch(Listener):
    """Listener that prints CPU time and memory at each event, and stops the merge.

    Args:
        trains: whether the merge stops at its first training step, and not as soon as all models are loaded.
    """

    def __init__(self, *, trains: bool) -> None:
        self._began, self._wall, self._trains = time.process_time(), time.monotonic(), trains

    def say(self, what: str) -> None:
        """Print a line with the CPU time and the peak memory so far."""
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        seconds = time.process_time() - self._began
        wall = time.monotonic() - self._wall
        print(f"{seconds:8.1f} CPU s {wall:8.1f} s {memory / 1e9:6.2f} GB  {what}", flush=True)

    def model(self, subject: Any) -> None:
        self.say(f"model {subject.name}, {len(subject.train)} images")

    def left_out(self, model: str, error: Exception) -> None:
        self.say(f"{model} left out: {error}")

    def forecast(self, forecast: Any) -> None:
        left = "" if forecast.seconds is None else f", {forecast.seconds:.0f} s"
        self.say(f"left: {forecast.looks} looks, {forecast.trainings} trainings{left}")
        if not self._trains:
            raise KeyboardInterrupt

    def verdict(self, verdict: Any, report: Any) -> None:
        worst = min(verdict.outcome.relative.values(), default=0.0)
        self.say(f"{verdict.trial.group}: worst query keeps {worst:.3f}, {report.saving:.1%} saved")

    def progress(self, progress: Any) -> None:
        raise KeyboardInterrupt


def _workload(root: Path, models: int, frames: int, size: int, detectors: bool) -> Path:
    """Write a workload of models that watch one folder of generated frames; return its path."""
    rng = np.random.default_rng(0)
    (root / "frames").mkdir()
    pictures = []
    for index in range(frames):
        picture = np.full((240, 320, 3), rng.integers(0, 256, 3), np.uint8)
        for _ in range(8):
            corner, extent = rng.integers(0, 240, 2), rng.integers(20, 120, 2)
            colour = [int(value) for value in rng.integers(0, 256, 3)]
            cv2.rectangle(picture, tuple(map(int, corner)), tuple(map(int, corner + extent)), colour, -1)
        if index < (1 if detectors else 16):
            pictures.append(cv2.resize(picture, (size, size)))
        cv2.imwrite(str(root / "frames" / f"{index:05}.jpg"), picture)
    batch = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float().div(255)
    queries: list[dict[str, Any]] = []
    for index in range(models):
        name = f"m{index:02}"
        torch.manual_seed(index)
        made = _detector(batch) if detectors else _classifier(batch)
        save_file(made.state_dict(), root / f"{name}.safetensors")
        model: dict[str, Any] = {"weights": f"{name}.safetensors", "input": {"size": [size, size]}}
        if detectors:
            task: dict[str, Any] = {"task": "detection", "labels": ["a", "b"], "target": 0.9}
            arguments: dict[str, Any] = {"weights": None, "weights_backbone": None, "num_classes": 2}
            model |= {"factory": "torchvision.models.detection:retinanet_resnet50_fpn", "args": arguments}
        else:
            task = {"task": "classification", "target": 0.99}
            model |= {"factory": "torchvision.models:mobilenet_v2", "args": {"num_classes": _CLASSES}}
        queries.append({"name": name, "feed": "yard", **task, "model": model})
    document = {"schema_version": "1", "feeds": {"yard": {"source": "frames"}}, "queries": queries}
    (root / "workload.yaml").write_text(json.dumps(document))
    return root / "workload.yaml"


@torch.no_grad()
def _classifier(batch: torch.Tensor) -> nn.Module:
    """Return a random model whose answers are centred, so that it tells images apart."""
    model: nn.Module = mobilenet_v2(num_classes=_CLASSES)
    _settle(model, model, batch)
    answers = model(batch)
    head = model.get_submodule("classifier.1")
    assert isinstance(head, nn.Linear)
    head.weight.div_(answers.std(0).clamp(min=1e-6)[:, None])
    head.bias.sub_(answers.mean(0)).div_(answers.std(0).clamp(min=1e-6))
    return model


@torch.no_grad()
def _detector(batch: torch.Tensor) -> RetinaNet:
    """Return a random detector that scores about a hundred anchors of a frame above its threshold."""
    model: RetinaNet = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=2)
    _settle(model, model.backbone, batch)
    head = model.head.classification_head.cls_logits
    head.bias.zero_()
    scores = model.head.classification_head(list(model.backbone(batch).values())).flatten()
    head.weight.div_(scores.std())
    least = scores.topk(_CANDIDATES).values[-1] / scores.std()
    head.bias.fill_(math.log(model.score_thresh / (1 - model.score_thresh)) - float(least))
    return model


@torch.no_grad()
def _settle(model: nn.Module, part: nn.Module, batch: torch.Tensor) -> None:
    """Measure the BatchNorm statistics of a random model by a run of a part that has them all."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None
    model.train()
    part(batch)
    model.eval()


if __name__ == "__main__":
    main()
