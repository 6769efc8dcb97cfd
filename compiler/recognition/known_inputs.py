"""Settings of inputs that many models were trained with: fields of an input of the workload."""

from __future__ import annotations

__all__ = ["IMAGENET", "MMDETECTION"]

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "fit": "stretch"}
"""Input settings of models that take RGB images with the mean and spread of ImageNet."""
MMDETECTION = {
    "color": "bgr",
    "scale": 1.0,
    "mean": (103.53, 116.28, 123.675),
    "std": (57.375, 57.12, 58.395),
    "fit": "letterbox",
}
"""Input settings of models that MMDetection trained: BGR images from 0 to 255."""
