"""Hugging Face's detectors with random weights: DETR and its descendants, from folders and as exported ONNX files.

The library answers by itself: its own processor resizes and normalises the frame, and its own
``post_process_object_detection`` makes the answer. Processors are set to sizes that need no shrinking, because they
shrink frames with antialiasing and gemel does not.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

import torch
import transformers

from gemel.frames.frame import Image
from gemel.runtime.decode.results import Detection, Result

from .case import STREET, Answer, Case
from .hugging_face_folder import FolderModel, image_processor, library_inputs, stretched

__all__ = ["CASES"]

_THRESHOLD = 0.3
_LAYERS = 2
_SHORTER = {"shortest_edge": 272, "longest_edge": 640}
_WIDE = {"height": 320, "width": 640}
_UNSCALED = stretched(320, 640)
"""Frames of the size that RT-DETR's cases take. These choose 300 places by their scores, and with random weights the
rounding of a resized pixel changes the choice."""
_RESNET18 = {
    "layer_type": "basic",
    "embedding_size": 64,
    "hidden_sizes": [64, 128, 256, 512],
    "depths": [2, 2, 2, 2],
}
_SURE, _BOXES = (-4.0, 1.5), (0.0, 1.5)
"""Mean and standard deviation of the class scores, and of the box values, both before the sigmoid."""


def _resnet(*stages: str) -> Any:
    return transformers.ResNetConfig(**_RESNET18, out_features=list(stages))


def _last(name: str) -> Callable[[int], Any]:
    """Return a function that makes the configuration of a DETR on the last stage of a ResNet18."""

    def config(classes: int) -> Any:
        stages = ("stage2", "stage3", "stage4") if name == "DeformableDetr" else ("stage4",)
        return getattr(transformers, f"{name}Config")(
            backbone_config=_resnet(*stages), encoder_layers=_LAYERS, decoder_layers=_LAYERS, num_labels=classes
        )

    return config


def _real_time(name: str) -> Callable[[int], Any]:
    """Return a function that makes the configuration of RT-DETR-R18."""

    def config(classes: int) -> Any:
        backbone = transformers.RTDetrResNetConfig(**_RESNET18 | {"out_features": ["stage2", "stage3", "stage4"]})
        return getattr(transformers, f"{name}Config")(
            backbone_config=backbone,
            encoder_in_channels=[128, 256, 512],
            decoder_layers=_LAYERS,
            num_labels=classes,
        )

    return config


def _fine(classes: int) -> Any:
    """Return the configuration of D-FINE-S with fewer layers."""
    backbone = transformers.HGNetV2Config(
        hidden_sizes=[64, 256, 512, 1024],
        stem_channels=[3, 16, 16],
        stage_in_channels=[16, 64, 256, 512],
        stage_mid_channels=[16, 32, 64, 128],
        stage_out_channels=[64, 256, 512, 1024],
        stage_num_blocks=[1, 1, 2, 1],
        stage_numb_of_layers=[3, 3, 3, 3],
        use_learnable_affine_block=True,
        out_features=["stage2", "stage3", "stage4"],
    )
    return transformers.DFineConfig(
        backbone_config=backbone,
        encoder_in_channels=[256, 512, 1024],
        decoder_layers=_LAYERS,
        hidden_expansion=0.5,
        depth_mult=0.34,
        num_labels=classes,
    )


def _detections(model: FolderModel) -> Callable[[Path], Answer]:
    """Return a function that opens a detector in Hugging Face's transformers, and clips its boxes to the frame."""

    def answers(folder: Path) -> Answer:
        module = model.open(folder / "model")
        processor = transformers.AutoImageProcessor.from_pretrained(folder / "model")
        # Conditional and deformable DETR report 100 objects unless asked for more, RT-DETR as many as it has queries.
        limits = "top_k" in signature(processor.post_process_object_detection).parameters
        limit = {"top_k": module.config.num_queries} if limits else {}

        def answer(image: Image) -> Result:
            height, width = image.shape[:2]
            with torch.inference_mode():
                outputs = module(**library_inputs(processor, image))
            (found,) = processor.post_process_object_detection(
                outputs, threshold=_THRESHOLD, target_sizes=[(height, width)], **limit
            )
            edges = found["boxes"].clamp(torch.zeros(4), torch.tensor([width, height] * 2))
            rows = zip(edges.tolist(), found["scores"].tolist(), found["labels"].tolist(), strict=True)
            names = module.config.id2label
            return tuple(Detection(tuple(box), score, names[number], number) for box, score, number in rows)

        return answer

    return answers


def _detector(name: str, model: FolderModel, frames: str | Callable[[Path], str] = STREET) -> Case:
    """Return the case of a detector; its sibling is a fine-tune of 3 classes with a frozen backbone."""
    return model.case(name, "detection", 20, _detections(model), 3, frames=frames, threshold=_THRESHOLD)


_DETR = FolderModel(
    "DetrForObjectDetection",
    _last("Detr"),
    image_processor("DetrImageProcessor", size=_SHORTER),
    {"class_labels_classifier": (0.0, 3.0), "bbox_predictor.layers.2": _BOXES},
    "AutoModelForObjectDetection",
)
_CONDITIONAL = FolderModel(
    "ConditionalDetrForObjectDetection",
    _last("ConditionalDetr"),
    image_processor("ConditionalDetrImageProcessor", size=_SHORTER),
    {"class_labels_classifier": _SURE, "bbox_predictor.layers.2": _BOXES},
)
_DEFORMABLE = FolderModel(
    "DeformableDetrForObjectDetection",
    _last("DeformableDetr"),
    image_processor("DeformableDetrImageProcessor", size=_SHORTER),
    {f"class_embed.{_LAYERS - 1}": _SURE, f"bbox_embed.{_LAYERS - 1}.layers.2": _BOXES},
)
_YOLOS = FolderModel(
    "YolosForObjectDetection",
    lambda classes: transformers.YolosConfig(
        hidden_size=192, num_attention_heads=3, intermediate_size=768, num_labels=classes
    ),
    image_processor("YolosImageProcessor", size=_SHORTER),
    {"class_labels_classifier.layers.2": (0.0, 3.0), "bbox_predictor.layers.2": _BOXES},
)
_QUERIES = {
    "model.enc_score_head": (-4.0, 3.0),
    f"model.decoder.class_embed.{_LAYERS - 1}": _SURE,
    f"model.decoder.bbox_embed.{_LAYERS - 1}.layers.2": _BOXES,
}
_RTDETR = FolderModel(
    "RTDetrForObjectDetection",
    _real_time("RTDetr"),
    image_processor("RTDetrImageProcessor", size=_WIDE),
    _QUERIES,
    "AutoModelForObjectDetection",
)
_RTDETR_V2 = FolderModel(
    "RTDetrV2ForObjectDetection",
    _real_time("RTDetrV2"),
    image_processor("RTDetrImageProcessor", size=_WIDE),
    _QUERIES,
)
_DFINE = FolderModel(
    "DFineForObjectDetection",
    _fine,
    image_processor("RTDetrImageProcessor", size=_WIDE),
    _QUERIES,
)

CASES: tuple[Case, ...] = (
    _detector("detr (Hugging Face)", _DETR),
    _detector("conditional detr (Hugging Face)", _CONDITIONAL),
    _detector("deformable detr (Hugging Face)", _DEFORMABLE),
    _detector("yolos (Hugging Face)", _YOLOS),
    _detector("rt-detr (Hugging Face)", _RTDETR, _UNSCALED),
    _detector("rt-detr v2 (Hugging Face)", _RTDETR_V2, _UNSCALED),
    _detector("d-fine (Hugging Face)", _DFINE, _UNSCALED),
    _RTDETR.exported(
        "rt-detr.onnx (Hugging Face)",
        "detection",
        20,
        _detections(_RTDETR),
        ("logits", "pred_boxes"),
        frames=_UNSCALED,
        threshold=_THRESHOLD,
    ),
)
