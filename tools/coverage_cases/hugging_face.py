"""Hugging Face's classifiers, embeddings and segmentation models with random weights, from saved folders.

Users have such folders from ``save_pretrained``, from their training, or from the hub: config.json, model.safetensors
and preprocessor_config.json. No query needs a key beside the folder: size, normalisation and labels are in the files.
Published configurations are made smaller, so that random weights and 20 frames take seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers

from gemel.frames.frame import Image
from gemel.runtime.decode.results import Class, Embedding, Mask, Result, Segmentation, SegmentedClass

from .case import STREET, Answer, Case
from .hugging_face_folder import FolderModel, image_processor, input_in, library_inputs, stretched
from .torchvision_models import normalised

__all__ = ["CASES"]

_SMALL_VIT = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}
_RESNET18 = {
    "layer_type": "basic",
    "embedding_size": 64,
    "hidden_sizes": [64, 128, 256, 512],
    "depths": [2, 2, 2, 2],
}
_FRAME = {"height": 272, "width": 640}
"""Height and width in pixels of the street video's frames."""
_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def _classes(model: FolderModel) -> Callable[[Path], Answer]:
    """Return a function that opens a classifier in Hugging Face's transformers.

    Frames are preprocessed as the bundle does: the library's processors resize with antialiasing, and many cut off the
    edges of a frame.
    """

    def answers(folder: Path) -> Answer:
        module, spec = model.open(folder / "model"), input_in(folder / "model")

        def answer(image: Image) -> Result:
            with torch.inference_mode():
                logits = module(normalised(image, spec)).logits
            scores, numbers = logits.softmax(-1).flatten().topk(5)
            names = module.config.id2label
            pairs = zip(numbers.tolist(), scores.tolist(), strict=True)
            return tuple(Class(names[number], score, number) for number, score in pairs)

        return answer

    return answers


def _vector(model: FolderModel, output: str) -> Callable[[Path], Answer]:
    """Return a function that opens an embedding in Hugging Face's transformers, on inputs as the bundle gets them."""

    def answers(folder: Path) -> Answer:
        module, spec = model.open(folder / "model"), input_in(folder / "model")

        def answer(image: Image) -> Result:
            with torch.inference_mode():
                values = getattr(module(normalised(image, spec)), output).flatten()
            return Embedding(tuple((values / values.norm()).tolist()))

        return answer

    return answers


def _pixels(model: FolderModel) -> Callable[[Path], Answer]:
    """Return a function that opens a segmentation model in Hugging Face's transformers.

    The library's own processor and ``post_process_semantic_segmentation`` make the answer. The processors are set to
    the size of the street video's frames, because they shrink frames with antialiasing and gemel does not.
    """

    def answers(folder: Path) -> Answer:
        module = model.open(folder / "model")
        processor = transformers.AutoImageProcessor.from_pretrained(folder / "model")

        def answer(image: Image) -> Result:
            size = (image.shape[0], image.shape[1])
            with torch.inference_mode():
                outputs = module(**library_inputs(processor, image))
            numbers = processor.post_process_semantic_segmentation(outputs, target_sizes=[size])[0].numpy()
            names = module.config.id2label
            seen = np.unique(numbers).tolist()
            return Segmentation(size, tuple(SegmentedClass(names[n], n, Mask.of(numbers == n)) for n in seen))

        return answer

    return answers


def _classifier(name: str, model: FolderModel, other: int = 3) -> Case:
    return model.case(name, "classification", 10, _classes(model), other)


def _embedding(name: str, model: FolderModel, output: str) -> Case:
    return model.case(name, "embedding", 0, _vector(model, output))


def _segmenter(name: str, model: FolderModel, side: int = 0) -> Case:
    """Return the case of a segmentation model. ``side``: side of the square input; 0 if any size is allowed."""
    return model.case(name, "segmentation", 21, _pixels(model), 5, frames=stretched(side, side) if side else STREET)


_CLASSES, _HEAD = "AutoModelForImageClassification", {"classifier": (0.0, 3.0)}
_PIXELS = "AutoModelForSemanticSegmentation"

_VIT = FolderModel(
    "ViTForImageClassification",
    lambda classes: transformers.ViTConfig(**_SMALL_VIT, num_labels=classes),
    image_processor("ViTImageProcessor"),
    _HEAD,
    _CLASSES,
)
_BEIT = FolderModel(
    "BeitForImageClassification",
    lambda classes: transformers.BeitConfig(**_SMALL_VIT, use_relative_position_bias=True, num_labels=classes),
    image_processor("BeitImageProcessor"),
    _HEAD,
)
_RESNET = FolderModel(
    "ResNetForImageClassification",
    lambda classes: transformers.ResNetConfig(**_RESNET18, num_labels=classes),
    image_processor("ConvNextImageProcessor", size={"shortest_edge": 224}, **_IMAGENET),
    {"classifier.1": (0.0, 3.0)},
    _CLASSES,
)
_MOBILEVIT = FolderModel(
    "MobileViTForImageClassification",
    lambda classes: transformers.MobileViTConfig(
        hidden_sizes=[64, 80, 96],
        neck_hidden_sizes=[16, 16, 24, 48, 64, 80, 320],
        expand_ratio=2.0,
        num_labels=classes,
    ),
    image_processor("MobileViTImageProcessor"),
    _HEAD,
)
_CONVNEXT = FolderModel(
    "ConvNextV2ForImageClassification",
    lambda classes: transformers.ConvNextV2Config(
        depths=[2, 2, 6, 2], hidden_sizes=[40, 80, 160, 320], num_labels=classes
    ),
    image_processor("ConvNextImageProcessor", size={"shortest_edge": 224}, **_IMAGENET),
    _HEAD,
)
_SWIN = FolderModel(
    "SwinForImageClassification",
    lambda classes: transformers.SwinConfig(embed_dim=48, depths=[2, 2, 2, 2], num_labels=classes),
    image_processor("ViTImageProcessor", **_IMAGENET),
    _HEAD,
)
_DINO = FolderModel(
    "Dinov2Model",
    lambda classes: transformers.Dinov2Config(hidden_size=192, num_attention_heads=3, image_size=518, patch_size=14),
    image_processor("BitImageProcessor", size={"shortest_edge": 256}, **_IMAGENET),
    {"encoder.layer.11.mlp.fc2": (0.0, 3.0)},
    "AutoModel",
)
_CLIP = FolderModel(
    "CLIPVisionModelWithProjection",
    lambda classes: transformers.CLIPVisionConfig(**_SMALL_VIT, patch_size=32, projection_dim=128),
    image_processor("CLIPImageProcessor"),
    {"visual_projection": (0.0, 3.0)},
)
_SEGFORMER = FolderModel(
    "SegformerForSemanticSegmentation",
    lambda classes: transformers.SegformerConfig(num_labels=classes),
    image_processor("SegformerImageProcessor", size=_FRAME),
    {"decode_head.classifier": (0.0, 3.0)},
    _PIXELS,
)
_DPT = FolderModel(
    "DPTForSemanticSegmentation",
    lambda classes: transformers.DPTConfig(
        **_SMALL_VIT, neck_hidden_sizes=[24, 48, 96, 96], fusion_hidden_size=64, num_labels=classes
    ),
    image_processor("DPTImageProcessor"),
    {"head.head.4": (0.0, 3.0)},
)
_UPERNET = FolderModel(
    "UperNetForSemanticSegmentation",
    lambda classes: transformers.UperNetConfig(
        backbone_config=transformers.ConvNextConfig(
            depths=[2, 2, 6, 2],
            hidden_sizes=[40, 80, 160, 320],
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
        hidden_size=128,
        auxiliary_in_channels=160,
        num_labels=classes,
    ),
    image_processor("SegformerImageProcessor", size=_FRAME),
    {"decode_head.classifier": (0.0, 3.0)},
)
_DEEPLAB = FolderModel(
    "MobileNetV2ForSemanticSegmentation",
    lambda classes: transformers.MobileNetV2Config(num_labels=classes, image_size=513, output_stride=16),
    image_processor("MobileNetV2ImageProcessor", size={"shortest_edge": 272}, crop_size=_FRAME),
    {"segmentation_head.classifier.convolution": (0.0, 3.0)},
)
_DEPTH = FolderModel(
    "GLPNForDepthEstimation",
    lambda classes: transformers.GLPNConfig(hidden_sizes=[16, 32, 80, 128], decoder_hidden_size=32),
    # The network takes multiples of 32.
    image_processor("ViTImageProcessor", size={"height": 256, "width": 640}, do_normalize=False),
)
_MASKS = FolderModel(
    "Mask2FormerForUniversalSegmentation",
    lambda classes: transformers.Mask2FormerConfig(
        backbone_config=transformers.SwinConfig(
            embed_dim=48, depths=[2, 2, 2, 2], out_features=["stage1", "stage2", "stage3", "stage4"]
        ),
        encoder_layers=1,
        decoder_layers=2,
        num_labels=classes,
    ),
    image_processor("Mask2FormerImageProcessor", size={"height": 128, "width": 128}),
)
_SAM = FolderModel(
    "SamModel",
    lambda classes: transformers.SamConfig(
        vision_config={
            "hidden_size": 192,
            "num_attention_heads": 3,
            "mlp_dim": 768,
            "num_hidden_layers": 2,
            "global_attn_indexes": [1],
            "image_size": 256,
        },
        prompt_encoder_config={"image_size": 256, "image_embedding_size": 16},
    ),
    image_processor("SamImageProcessor", size={"longest_edge": 256}, pad_size={"height": 256, "width": 256}),
)

CASES: tuple[Case, ...] = (
    _classifier("vit (Hugging Face)", _VIT),
    _classifier("beit (Hugging Face)", _BEIT),
    _classifier("resnet18 (Hugging Face)", _RESNET),
    _classifier("mobilevit (Hugging Face)", _MOBILEVIT),
    _classifier("convnextv2 (Hugging Face)", _CONVNEXT),
    _classifier("swin (Hugging Face)", _SWIN),
    _embedding("dinov2 (Hugging Face)", _DINO, "pooler_output"),
    _embedding("clip vision (Hugging Face)", _CLIP, "image_embeds"),
    _segmenter("segformer (Hugging Face)", _SEGFORMER),
    _segmenter("dpt (Hugging Face)", _DPT, 384),
    _segmenter("upernet (Hugging Face)", _UPERNET),
    _segmenter("deeplabv3+ mobilenet_v2 (Hugging Face)", _DEEPLAB),
    _VIT.exported("vit.onnx (Hugging Face)", "classification", 10, _classes(_VIT), ("logits",)),
    _SEGFORMER.exported("segformer.onnx (Hugging Face)", "segmentation", 21, _pixels(_SEGFORMER), ("logits",)),
    _DEPTH.case("glpn depth (Hugging Face)", "raw", 0, None),
    _MASKS.case("mask2former (Hugging Face)", "segmentation", 21, None),
    _SAM.case("sam (Hugging Face)", "segmentation", 0, None),
)
