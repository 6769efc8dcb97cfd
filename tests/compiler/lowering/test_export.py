"""Test the export of modules that PyTorch's exporter does not take as they are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gemel.compiler.heads import StageModule
from gemel.compiler.heads.stages import BATCH
from gemel.compiler.lowering.export import export_stages
from gemel.errors import CompileError


class Checked(nn.Module):
    """Module that checks a tensor while it runs, as RT-DETRv2 of Hugging Face does."""

    def forward(self, image: Tensor) -> Tensor:
        shapes = torch.tensor([[2, 4], [2, 4]])
        torch._check_tensor_all((shapes[:, 0] * shapes[:, 1]).sum() == image.shape[2] * 2)
        return image * 2


class Unknown(nn.Module):
    """Module with an operation that ONNX does not have."""

    def forward(self, image: Tensor) -> Tensor:
        result: Tensor = torch.special.airy_ai(image)
        return result


def test_checks_of_tensors_are_left_out() -> None:
    stage = StageModule(Checked(), {"image": torch.zeros(2, 3, 8)}, ("out",), BATCH)
    graph = export_stages(stage, "query a").graph
    assert [node.op_type for node in graph if node.op_type not in ("Constant", "Cast")] == ["Mul"]


def test_an_operation_without_translation_is_named() -> None:
    stage = StageModule(Unknown(), {"image": torch.zeros(2, 3, 8)}, ("out",), BATCH)
    with pytest.raises(CompileError, match=r"query a: .*no ONNX operator is known for aten\.special_airy_ai") as caught:
        export_stages(stage, "query a")
    assert "\n" not in str(caught.value)
