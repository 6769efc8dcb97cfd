"""Tests of fine-tuning detectors and classifiers to cameras, and of the workload that is made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("tflite")

import fine_tunes
from camera_sets import Scene
from safetensors.torch import load_file
from train_queries import (
    DetectorAccuracy,
    classifier_accuracy,
    detector_accuracy,
    fit_head,
    train_classifier,
    train_detector,
)

from gemel.bundles.manifest import InputSpec
from gemel.workload import load_workload
from gemel.workload.zoo.ssdlite import SsdMobileNetV2


class _Small(SsdMobileNetV2):
    """Detector with a small input, so that training it takes little time."""

    def input_defaults(self) -> InputSpec:
        return InputSpec(size=(64, 64), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def _detector() -> _Small:
    torch.manual_seed(0)
    return _Small(1, lite=False, batch_norm=False).eval()


def _scenes() -> list[Scene]:
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 255, (80, 100, 3)).astype(np.uint8)
    return [
        Scene(frame, np.array([[10, 10, 60, 70], [70, 20, 78, 30]], np.float32)),
        Scene(frame, np.zeros((0, 4), np.float32)),
    ]


def test_every_layer_of_a_detector_is_trained_and_a_seed_repeats_it() -> None:
    states = []
    for seed in (0, 0, 1):
        model = _detector()
        start = {name: value.clone() for name, value in model.state_dict().items()}
        assert train_detector(model, _scenes(), seed, steps=2) == 16
        assert not model.training
        states.append(model.state_dict())
        # On a level where no anchor shows an object, boxes have no gradient.
        still = [name for name, value in start.items() if torch.equal(value, states[-1][name])]
        assert not [name for name in still if not name.startswith("box_heads")]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert any(not torch.equal(value, states[2][name]) for name, value in states[0].items())


def test_accuracy_of_a_detector_is_that_of_what_it_reports() -> None:
    class Blind(_Small):
        """Detector that is sure of nothing."""

        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            logits, boxes = super().forward(image)
            return logits - 100, boxes

    class Sighted(_Small):
        """Detector that is sure of the anchors that are nearest to the objects."""

        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            logits, boxes = super().forward(image)
            anchors = torch.from_numpy(self.decode((64, 64))[1]["anchors"])
            logits = torch.full_like(logits, -20.0)
            scale = torch.tensor([64 / 100, 64 / 80] * 2)
            for box in torch.from_numpy(_scenes()[0].boxes) * scale:
                near = (anchors - box).abs().sum(1).argmin()
                size = anchors[near, 2:] - anchors[near, :2]
                middle = (box[:2] + box[2:] - anchors[near, :2] - anchors[near, 2:]) / 2 / size
                boxes[:, near] = torch.cat([middle * 10, ((box[2:] - box[:2]) / size).log() * 5])
                logits[:, near, 1] = 3.0
            return logits, boxes

    blind, sighted = (make(1, lite=False, batch_norm=False).eval() for make in (Blind, Sighted))
    assert detector_accuracy(blind, _scenes()) == DetectorAccuracy(0.0, 0.0)
    found = detector_accuracy(sighted, _scenes()[:1])
    assert (found.precision, found.f1) == pytest.approx((1.0, 1.0))
    # On a frame without objects the same two boxes are wrong.
    assert detector_accuracy(sighted, _scenes()).f1 == pytest.approx(2 * 2 / (4 + 2))


class _Classifier(nn.Module):
    """Classifier with the layers that torchvision's ``mobilenet_v2`` has by name."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.classifier = nn.Sequential(nn.Identity(), nn.Linear(4, 2))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.classifier(self.features(image).mean((2, 3)))
        return scores


def _windows() -> tuple[torch.Tensor, torch.Tensor]:
    """Return dark images of class 0 and bright ones of class 1."""
    labels = torch.arange(64) % 2
    return (labels * 200 + 20).view(-1, 1, 1, 1).expand(-1, 3, 8, 8).to(torch.uint8).contiguous(), labels


def test_a_head_is_fitted_before_the_rest_is_trained() -> None:
    torch.manual_seed(1)
    model = _Classifier()
    images, labels = _windows()
    features = {name: value.clone() for name, value in model.features.state_dict().items()}
    fit_head(model, images, labels, 0)
    assert all(torch.equal(value, features[name]) for name, value in model.features.state_dict().items())
    assert classifier_accuracy(model, images, labels) == 1.0
    assert classifier_accuracy(model, images, 1 - labels) == 0.0
    assert train_classifier(model, images, labels, 0, steps=3) == 96
    assert not model.training
    assert not torch.equal(model.state_dict()["features.0.weight"], features["0.weight"])


def test_distances_are_relative_to_the_public_kernels() -> None:
    model = nn.ModuleDict({"body": nn.Conv2d(1, 1, 1), "deep": nn.Conv2d(1, 1, 1), "head": nn.Conv2d(1, 1, 1)})
    with torch.no_grad():
        for value in model.parameters():
            value.fill_(1.0)
    public = {"body.weight": torch.full((1, 1, 1, 1), 2.0), "deep.weight": torch.ones(1, 1, 1, 1)}
    found = fine_tunes.distances(public, model)
    assert found == pytest.approx({"distance": (1 / 5) ** 0.5, "least": 0.0, "median": 0.25, "most": 0.5})


def test_the_workload_has_four_detectors_and_four_classifiers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned: list[str] = []
    figures = {"measure": "AP@50", "public": 0.25, "tuned": 0.75, "evaluated": 9, "images": 8}
    moved = {"distance": 0.1, "least": 0.0, "median": 0.1, "most": 0.2}

    def tune(*arguments: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        tuned.append(str(arguments[1]))
        return {"w": torch.tensor([float(len(tuned))])}, {**figures, **moved}

    def make(*arguments: Any) -> None:
        [each for each in arguments if isinstance(each, Path)][-1].mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(fine_tunes, "_public_models", lambda output, weights: ({}, {}))
    monkeypatch.setattr(fine_tunes, "_detector", lambda state: None)
    monkeypatch.setattr(fine_tunes, "_STREET", tmp_path / "street")
    (tmp_path / "street" / "data").mkdir(parents=True)
    (tmp_path / "street" / "data" / "junction.avi").touch()
    fakes = {"label_camera": lambda *_: None, "write_scenes": make, "write_windows": make, "link_feed": make}
    fakes |= {"write_judged": make, "judge_parts": make}
    for name, function in {**fakes, "_tune_detector": tune, "_tune_classifier": tune}.items():
        monkeypatch.setattr(fine_tunes, name, function)
    fine_tunes.main([str(tmp_path), "-o", str(tmp_path / "out")])
    workload = load_workload(tmp_path / "out" / "w5.yaml")
    tasks = [query.task for query in workload.queries]
    assert tasks == ["detection"] * 4 + ["classification"] * 4
    assert "AP@50 0.250 of the public model, 0.750 fine-tuned (n=9); kernels moved by 0.100" in capsys.readouterr().out
    values = [load_file(tmp_path / "out" / str(query.model.weights))["w"].item() for query in workload.queries]
    assert sorted(values) == [1, 2, 3, 4, 5, 6, 7, 8]
    for query in workload.queries:
        kept = json.loads((tmp_path / "out" / "weights" / "w5" / f"{query.name}.json").read_text())
        assert kept["tuned"] == 0.75
    # A second call trains only what is missing.
    (tmp_path / "out" / "weights" / "w5" / "junction-person.safetensors").unlink()
    fine_tunes.main([str(tmp_path), "-o", str(tmp_path / "out"), "--camera", "hall"])
    assert len(tuned) == 8
    page = tmp_path / "page.md"
    fine_tunes.main([str(tmp_path), "-o", str(tmp_path / "out"), "--camera", "junction", "--report", str(page)])
    assert len(tuned) == 9
    rows = [line for line in page.read_text().splitlines() if "AP@50" in line]
    assert len(rows) == 8
    assert rows[0].startswith("| junction-person | AP@50 | 0.250 | 0.750 |  |  | 9 | 0.100 (0.100, 0.200) | 8 |")
