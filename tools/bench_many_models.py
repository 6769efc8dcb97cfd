"""Measure how long a merge of many models takes until its first training step, and in how much memory.

Every model is torchvision's MobileNetV2 at 224 x 224 pixels with weights of its own: random ones, so the accuracies
mean nothing, but the time and the memory are those of trained models. Images are generated. The merge stops at its
first training step.

    .venv/bin/python tools/bench_many_models.py [--models 20] [--frames 600] [--size 224] [--threads 2]

Prints CPU time and peak memory after each model, each look, and at the first training step.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import mobilenet_v2

from gemel.merging.merge import Listener, MergeOptions, merge_workload
from gemel.workload import load_workload

_CLASSES = 20
"""Number of classes of each model."""


def main() -> None:
    """Make the workload, merge it up to the first training step, and print what each part took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=int, default=20)
    parser.add_argument("--frames", type=int, default=600)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        path = _workload(root, arguments.models, arguments.frames, arguments.size)
        watch = _Watch()
        try:
            merge_workload(load_workload(path), root / "merged", MergeOptions(device="cpu"), watch)
        except KeyboardInterrupt:
            watch.say("first training step")
        else:
            watch.say("end of the search, without a training")


class _Watch(Listener):
    """Listener that prints CPU time and memory at each event, and stops the merge at the first training step."""

    def __init__(self) -> None:
        self._began, self._wall = time.process_time(), time.monotonic()

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

    def verdict(self, verdict: Any, report: Any) -> None:
        worst = min(verdict.outcome.relative.values(), default=0.0)
        self.say(f"{verdict.trial.group}: worst query keeps {worst:.3f}, {report.saving:.1%} saved")

    def progress(self, progress: Any) -> None:
        raise KeyboardInterrupt


def _workload(root: Path, models: int, frames: int, size: int) -> Path:
    """Write a workload of MobileNetV2 models that watch one folder of generated frames; return its path."""
    rng = np.random.default_rng(0)
    (root / "frames").mkdir()
    pictures = []
    for index in range(frames):
        picture = np.full((240, 320, 3), rng.integers(0, 256, 3), np.uint8)
        for _ in range(8):
            corner, extent = rng.integers(0, 240, 2), rng.integers(20, 120, 2)
            colour = [int(value) for value in rng.integers(0, 256, 3)]
            cv2.rectangle(picture, tuple(map(int, corner)), tuple(map(int, corner + extent)), colour, -1)
        pictures.append(picture)
        cv2.imwrite(str(root / "frames" / f"{index:05}.jpg"), picture)
    images = [cv2.resize(picture, (size, size)) for picture in pictures[:16]]
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float().div(255)
    queries = []
    for index in range(models):
        torch.manual_seed(index)
        model = mobilenet_v2(num_classes=_CLASSES)
        _settle(model, batch)
        save_file(model.state_dict(), root / f"m{index:02}.safetensors")
        queries.append(
            {
                "name": f"m{index:02}",
                "feed": "yard",
                "task": "classification",
                "target": 0.99,
                "model": {
                    "factory": "torchvision.models:mobilenet_v2",
                    "args": {"num_classes": _CLASSES},
                    "weights": f"m{index:02}.safetensors",
                    "input": {"size": [size, size]},
                },
            }
        )
    document = {"schema_version": "1", "feeds": {"yard": {"source": "frames"}}, "queries": queries}
    (root / "workload.yaml").write_text(json.dumps(document))
    return root / "workload.yaml"


@torch.no_grad()
def _settle(model: nn.Module, batch: torch.Tensor) -> None:
    """Measure a random model's BatchNorm statistics and centre its answers, so that it tells images apart."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None
    model.train()
    model(batch)
    model.eval()
    answers = model(batch)
    head = model.get_submodule("classifier.1")
    assert isinstance(head, nn.Linear)
    head.weight.div_(answers.std(0).clamp(min=1e-6)[:, None])
    head.bias.sub_(answers.mean(0)).div_(answers.std(0).clamp(min=1e-6))


if __name__ == "__main__":
    main()
