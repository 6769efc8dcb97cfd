"""Tensors that conversion would store in several forms are found, and stay one tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from converted import convert
from helpers import query, save
from precision_cases import drawn, write_workload
from tiny_models import TinyTransformer

from gemel.bundles.decode_specs import ClassificationDecode
from gemel.bundles.manifest import InputSpec
from gemel.calib.record import ModelRecord
from gemel.calib.request import PrecisionSettings
from gemel.calib.weights import WeightUse
from gemel.compiler.lowering.lower import Lowered


@pytest.mark.parametrize("other", ["fp32", "int8"])
def test_a_weight_that_is_no_layers_kernel_stays_one_tensor_beside_fp16(pair: Path, other: str) -> None:
    """A transformer transposes weights before it multiplies with them, so they are no layer's kernel."""
    torch.manual_seed(0)
    model = TinyTransformer()
    for name in ("t", "u"):
        save(model, pair / f"{name}.safetensors")
    queries = [query(name, "tiny_models:TinyTransformer") for name in "tu"]
    queries[1]["precision"] = other
    made = convert(write_workload(pair, *queries), PrecisionSettings("fp16", "min-max"))
    assert made.types("t")["mix.0.weight"] == made.types("u")["mix.0.weight"]


def test_a_kernel_that_models_read_along_other_axes_stays_float32() -> None:
    """Scales along each axis would round the kernel differently."""
    kernel = np.random.default_rng(0).normal(0, 1, (6, 6)).astype(np.float32)
    nodes = {"a": "out = MatMul(image, k)", "b": "out = Gemm<transB=1>(image, k)", "c": "out = Gemm(image, k)"}
    models = {
        name: Lowered(
            name, {"main": drawn(each, (6,), k=kernel)}, ClassificationDecode(classes=6), InputSpec(size=(1, 6))
        )
        for name, each in nodes.items()
    }
    record = ModelRecord(precision="int8", model="", data="", frames=1, peaks={})

    def contested(*names: str, precision: Any = "int8") -> list[str]:
        records = dict.fromkeys(names, record.model_copy(update={"precision": precision}))
        return list(WeightUse([models[name] for name in names]).contested(records).values())

    assert contested("a", "b") == ["int8 in a, int8 in b"]
    assert contested("a", "c") == contested("a", "b", precision="fp16") == []
